import { resolve } from "node:path";
import { type IpAddress, isV6, parseIp } from "#base/ip.ts";
import type { Millis } from "#base/time.ts";
import { closeAtExit, forgetAtExit, stopProcesses } from "./cleanup.ts";
import type { CapturePoint } from "./control.ts";
import { LabError } from "./errors.ts";
import { Host } from "./host.ts";
import type { LinkOptions } from "./link.ts";
import {
  createNamespacePrefix,
  createNamespaces,
  type HostAddresses,
  installInterface,
  removeNamespaces,
  replaceAddresses,
  sweepDeadLabs,
} from "./namespace.ts";
import type { NatOptions } from "./nat.ts";
import type { NetworkCounters } from "./network.ts";
import type { PacketRuleSpec } from "./packet-rule.ts";
import { assertPrivileges } from "./rootless.ts";
import { RouterClient } from "./router-client.ts";
import {
  type HostPlan,
  type LabTopology,
  placeHost,
  type ResolvedTopology,
  resolveTopology,
  type Site,
} from "./topology.ts";

/** Where to listen: the outer edge of a site (what its provider sees), or the interface of a host. */
export type CaptureTarget = { readonly site: string } | { readonly host: string };

/** New place of a host; what is left out is chosen, and differs from before. */
export interface AddressChange {
  readonly address?: string;
  readonly address6?: string;
  /** Another site: the host has been carried there. Default: the one it is in. */
  readonly site?: string;
}

/**
 * Builds the hosts, links and NATs of a topology and starts them. Needs root or `ensurePrivileges()` before. Labs of owners
 * that are dead are removed first. Throws LabError; nothing is left then.
 */
export async function createLab(topology: LabTopology): Promise<Lab> {
  const resolved = resolveTopology(topology);
  assertPrivileges();
  sweepDeadLabs();
  const prefix = createNamespacePrefix();
  const hosts = resolved.hosts.map((plan) => new Host(plan, prefix + plan.name));
  const lab = new Lab(resolved, hosts, prefix);
  try {
    await lab.start();
  } catch (error) {
    await lab.close();
    throw error;
  }
  return lab;
}

/** A running lab; made by `createLab`. Use it with `await using`, or `close` it. Dying without either cleans up too. */
export class Lab implements AsyncDisposable {
  readonly hosts: readonly Host[];
  readonly #topology: ResolvedTopology;
  readonly #prefix: string;
  readonly #router = new RouterClient();
  /** Of the sites whose address has been changed. */
  readonly #publicAddresses = new Map<string, IpAddress>();
  #closed: Promise<void> | undefined;

  constructor(topology: ResolvedTopology, hosts: readonly Host[], prefix: string) {
    this.#topology = topology;
    this.hosts = hosts;
    this.#prefix = prefix;
    closeAtExit(this);
  }

  /** For `createLab` alone. */
  async start(): Promise<void> {
    const namespaces = this.hosts.map((host) => host.namespace);
    await createNamespaces(namespaces);
    await this.#router.request({
      kind: "open",
      topology: this.#topology,
      namespaces,
      namespacePrefix: this.#prefix,
    });
    await Promise.all(
      this.hosts.map((host) => installInterface(host.namespace, this.#site(host.site).mtu, this.#addresses(host.plan))),
    );
    await this.#router.request({ kind: "start" });
  }

  /** Process id of the router, to measure it. */
  get routerPid(): number | undefined {
    return this.#router.pid;
  }

  /** Throws LabError `topology-invalid` for a name that is not there. */
  host(name: string): Host {
    return this.hosts[this.#hostIndex(name)]!;
  }

  /** Public IPv4 address of a NAT, as others see it now; undefined for a site without one. */
  publicAddress(site: string): IpAddress | undefined {
    return this.#publicAddresses.get(site) ?? this.#site(site).publicAddress;
  }

  /** Nothing passes the site's link any more, what is under way on it is lost. The LAN goes on. */
  async cut(site: string): Promise<void> {
    await this.#router.request({ kind: "cut", site: this.#siteIndex(site), isCut: true });
  }

  async restore(site: string): Promise<void> {
    await this.#router.request({ kind: "cut", site: this.#siteIndex(site), isCut: false });
  }

  /** Changes what the options name and leaves the rest; `up` is from the site to the core. */
  async setLink(site: string, options: LinkOptions, direction: "up" | "down" | "both" = "both"): Promise<void> {
    await this.#router.request({ kind: "link", site: this.#siteIndex(site), direction, options });
  }

  /** The site's share of the one-way delay. */
  setDelay(site: string, latencyMs: Millis): Promise<void> {
    return this.setLink(site, { latencyMs });
  }

  /** Share of packets lost, 0 to 1, out and in alike. */
  setLoss(site: string, loss: number): Promise<void> {
    return this.setLink(site, { loss });
  }

  /** Blocks or passes UDP at the site's edge, in both directions. */
  async blockUdp(site: string, isBlocked: boolean): Promise<void> {
    await this.#router.request({ kind: "udp", site: this.#siteIndex(site), udp: isBlocked ? "blocked" : "pass" });
  }

  /** Replaces the NAT of a site that has one; all mappings are gone. */
  async setNat(site: string, nat: NatOptions): Promise<void> {
    await this.#router.request({ kind: "nat", site: this.#natSite(site), nat });
  }

  /** The NAT forgets its mappings, as in a restart; the next ones have other ports. */
  async rebindNat(site: string): Promise<void> {
    await this.#router.request({ kind: "rebind", site: this.#natSite(site) });
  }

  /** The provider gives the NAT another public address; all mappings are gone. */
  async changePublicAddress(site: string, address: string): Promise<void> {
    const parsed = parseIp(address);
    if (isV6(parsed)) throw new LabError("topology-invalid", `public address ${address} of a NAT must be IPv4`);
    const others = [
      ...this.#topology.sites.filter(({ name }) => name !== site).map(({ name }) => this.publicAddress(name)),
      ...this.hosts.filter((host) => !this.#site(host.site).nat).map((host) => host.address),
    ];
    if (others.includes(parsed)) throw new LabError("topology-invalid", `public address ${address} is taken`);
    await this.#router.request({ kind: "public-address", site: this.#natSite(site), address: parsed });
    this.#publicAddresses.set(site, parsed);
  }

  /** Gives a host other addresses, in its site or in another, and changes its interface accordingly. */
  async changeAddress(host: string, change: AddressChange = {}): Promise<void> {
    const index = this.#hostIndex(host);
    const old = this.hosts[index]!.plan;
    const { site = old.site, ...addresses } = change;
    // The old addresses count as somebody else's, so that the new ones differ.
    const taken = this.hosts.map(({ plan }) => (plan.name === host ? { ...plan, name: "" } : plan));
    const plan = placeHost({ name: host, site, ...addresses }, this.#site(site), taken);
    await this.#router.request({ kind: "place-host", host: index, plan });
    this.hosts[index]!.noteMoved(plan);
    await replaceAddresses(this.hosts[index]!.namespace, this.#site(site).mtu, this.#addresses(plan));
  }

  /** Loses the next packets that match, as the sending host gives them out. */
  async drop(rule: PacketRuleSpec): Promise<void> {
    for (const name of [rule.from, rule.to]) if (name !== undefined) this.#hostIndex(name);
    await this.#router.request({ kind: "rule", rule });
  }

  /** Writes all packets at a place to a pcap file from now on; replaces the file. */
  async startCapture(target: CaptureTarget, file: string): Promise<void> {
    await this.#router.request({ kind: "capture-start", point: this.#capturePoint(target), path: resolve(file) });
  }

  /** The file is complete when this resolves. */
  async stopCapture(target: CaptureTarget): Promise<void> {
    await this.#router.request({ kind: "capture-stop", point: this.#capturePoint(target) });
  }

  /** Totals since the start. */
  async counters(): Promise<NetworkCounters> {
    return (await this.#router.request({ kind: "counters" })) as NetworkCounters;
  }

  /** Stops all programs in the hosts, then the network; idempotent, never throws, takes 5 s at most. */
  close(): Promise<void> {
    this.#closed ??= this.#shutDown();
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** What `close` does, without waiting and without grace: for the end of the process. */
  closeNow(): void {
    removeNamespaces(this.#prefix);
  }

  async #shutDown(): Promise<void> {
    await stopProcesses(this.hosts.map((host) => host.namespace));
    await this.#router.close();
    removeNamespaces(this.#prefix);
    forgetAtExit(this);
  }

  #addresses(plan: HostPlan): HostAddresses {
    const { lan, lan6 } = this.#site(plan.site);
    return {
      address: { address: plan.address, bits: lan.bits },
      address6: plan.address6 && lan6 && { address: plan.address6, bits: lan6.bits },
    };
  }

  #capturePoint(target: CaptureTarget): CapturePoint {
    return "site" in target
      ? { kind: "site", index: this.#siteIndex(target.site) }
      : { kind: "host", index: this.#hostIndex(target.host) };
  }

  #hostIndex(name: string): number {
    const index = this.hosts.findIndex((host) => host.name === name);
    if (index < 0) throw new LabError("topology-invalid", `there is no host ${JSON.stringify(name)}`);
    return index;
  }

  #siteIndex(name: string): number {
    const index = this.#topology.sites.findIndex((site) => site.name === name);
    if (index < 0) throw new LabError("topology-invalid", `there is no site ${JSON.stringify(name)}`);
    return index;
  }

  #site(name: string): Site {
    return this.#topology.sites[this.#siteIndex(name)]!;
  }

  #natSite(name: string): number {
    if (!this.#site(name).nat) throw new LabError("topology-invalid", `site ${name} has no NAT`);
    return this.#siteIndex(name);
  }
}
