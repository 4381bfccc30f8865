import { fromBinary } from "@bufbuild/protobuf";
import { messageOf } from "#base/errors.ts";
import { type Endpoint, formatEndpoint, type IpAddress, maskPrefix, type Prefix, parseIp } from "#base/ip.ts";
import { PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import type { Clock } from "#base/time.ts";
import { type DNSConfig, type PerchMapPart, SimpleRecordSchema } from "#gen/management_pb.ts";
import { type DnsConfig, NO_DNS, parseDnsConfig, parseRecord } from "./dns-config.ts";
import { type DnsCounter, DnsResponder, type Knowledge } from "./dns-responder.ts";
import { DnsServer } from "./dns-server.ts";
import { type DomainName, parentOf, reverseZones, toDomainName } from "./domain-name.ts";
import { Forwarder } from "./forwarder.ts";
import type { HostNames, HostResolver, HostResolverKind, NoHostResolver } from "./host-resolver.ts";
import { type NamedPeer, NameTable } from "./name-table.ts";
import { createAuthorities } from "./resolve.ts";

/** What the engine tells of the network map; every call costs what it changes. */
export interface NameSink {
  setOwn(own: OwnNames): void;
  applyPeers(change: {
    readonly removed: readonly PublicKey[];
    readonly changed: readonly NamedPeer[];
    readonly added: readonly NamedPeer[];
  }): void;
  /** Names beside the peers' own; they come with the parts of a map. */
  applyPart(part: PerchMapPart): void;
  /** The network's settings, whole with each map. */
  applyConfig(config: DNSConfig | undefined, serial: number): void;
  /** The number of a map whose settings are those of the last one. */
  noteSerial(serial: number): void;
  /** Networks that are reached through the tunnel. */
  setTunnelNetworks(networks: readonly Prefix[]): void;
  /** The interface has its addresses, perhaps new ones; `isNew`: it is another one, of which the host knows nothing yet. */
  interfaceReady(isNew: boolean): void;
}

/** Our own place in the network. */
export interface OwnNames {
  readonly address: Prefix;
  readonly address6: Prefix | undefined;
  readonly fqdn: string;
}

export interface NameServiceDeps {
  readonly clock: Clock;
  readonly log: Logger;
  /** Whether a peer sleeps; with `act` it is woken. */
  readonly wake: (key: PublicKey, name: string, act: boolean) => boolean;
  /** Something that status shows changed. */
  readonly changed: () => void;
  /** `changed`: its problem or its fallback is another. */
  readonly chooseHost: (changed: () => void) => Promise<HostResolver | NoHostResolver>;
}

export interface NameServiceOptions {
  readonly ownKey: PublicKey;
  readonly interfaceName: string;
  /** Local decision; undefined: the network's. */
  readonly enabled: boolean | undefined;
  /** A question for a sleeping peer's name wakes it. */
  readonly wakes: boolean;
}

export interface DnsStatus {
  readonly enabled: boolean;
  /** The network's own setting, whatever the local one is. */
  readonly networkEnabled: boolean;
  readonly domain: string;
  /** Where questions are answered; undefined while they are not. */
  readonly server: Endpoint | undefined;
  /** Whose programs ask us; undefined: nobody who does not do so on purpose. */
  readonly host: HostResolverKind | undefined;
  /** Why names do not work, or not everywhere. */
  readonly problem: string | undefined;
  readonly wakes: boolean;
  readonly groups: DnsConfig["groups"];
}

const DNS_PORT = 53;
/** Where we answer when another program has port 53 of every address: systemd-resolved can be told. */
const OTHER_PORT = 5053;
/** Taken in turn when port 53 of our own address cannot be had. Not 127.0.0.53, which is resolved's. */
const LOOPBACK = parseIp("127.0.0.153");
const LOOPBACK_NETWORK: readonly IpAddress[] = [parseIp("127.0.0.1"), parseIp("::1"), LOOPBACK];
/** Beyond so many the reverse zones are not told to the host one by one; they are answered all the same. */
const MATCH_REVERSE_MAX = 16;

/**
 * Names of the network on this machine: owns the table, the server and the host's settings. What the map says takes effect in the
 * table at once; sockets and the host follow in order, one change after the other, and nobody waits for them.
 */
export class NameService implements NameSink, AsyncDisposable {
  readonly #deps: NameServiceDeps;
  readonly #options: NameServiceOptions;
  readonly #table = new NameTable();
  readonly #forwarder: Forwarder;
  readonly #responder: DnsResponder;
  #config: DnsConfig = NO_DNS;
  #own: OwnNames;
  #tunnelNetworks: readonly Prefix[] = [];
  #serial = 0;
  #server: DnsServer | undefined;
  #host: HostResolver | NoHostResolver | undefined;
  #told: string | undefined;
  #problem: string | undefined;
  /** Settled work, and what waits behind it. */
  #tail: Promise<void> = Promise.resolve();
  #isDue = false;
  #closed: Promise<void> | undefined;

  constructor(deps: NameServiceDeps, options: NameServiceOptions, own: OwnNames) {
    this.#deps = deps;
    this.#options = options;
    this.#own = own;
    this.#forwarder = new Forwarder(deps.clock);
    this.#responder = new DnsResponder(
      { clock: deps.clock, table: this.#table, forwarder: this.#forwarder, wake: deps.wake },
      this.#knowledge(),
    );
    this.#putOwn();
  }

  get status(): DnsStatus {
    const told = this.#told !== undefined && this.#host?.kind !== "none" ? this.#host : undefined;
    return {
      enabled: this.#isWanted,
      networkEnabled: this.#config.enabled,
      domain: this.#domain ?? "",
      server: this.#server?.endpoint,
      host: told?.problem === undefined ? told?.kind : undefined,
      problem: this.#problem ?? told?.problem,
      wakes: this.#options.wakes,
      groups: this.#config.groups,
    };
  }

  get counters(): ReadonlyMap<DnsCounter, number> {
    return this.#responder.counters;
  }

  setOwn(own: OwnNames): void {
    const before = this.#own;
    this.#own = own;
    if (own.fqdn === before.fqdn && addressesOf(own).join() === addressesOf(before).join()) return;
    this.#putOwn();
    this.#learn();
  }

  applyPeers(change: Parameters<NameSink["applyPeers"]>[0]): void {
    for (const key of change.removed) this.#table.removePeer(key);
    for (const peer of change.changed) this.#table.putPeer(peer);
    for (const peer of change.added) this.#table.putPeer(peer);
  }

  applyPart(part: PerchMapPart): void {
    const problems: string[] = [];
    for (const { peer, records } of part.peers) {
      if (!peer) continue;
      try {
        const key = PublicKey.parse(peer.wgPubKey);
        const parsed = records.flatMap((bytes) => parseRecord(fromBinary(SimpleRecordSchema, bytes), problems));
        this.#table.setRecords(key, parsed);
      } catch (error) {
        problems.push(`records of ${peer.fqdn || peer.wgPubKey.slice(0, 16)}: ${messageOf(error)}`);
      }
    }
    this.#complain(problems);
  }

  applyConfig(config: DNSConfig | undefined, serial: number): void {
    this.#config = parseDnsConfig(config);
    this.#serial = serial;
    this.#complain(this.#config.problems);
    this.#setZones();
    this.#learn();
  }

  noteSerial(serial: number): void {
    this.#serial = serial;
    if (this.#table.isStale) this.#setZones();
    this.#responder.knowledge = { ...this.#responder.knowledge, serial };
  }

  setTunnelNetworks(networks: readonly Prefix[]): void {
    this.#tunnelNetworks = networks;
    this.#responder.knowledge = this.#knowledge();
  }

  interfaceReady(isNew: boolean): void {
    // resolved keeps what it is told with the interface.
    if (isNew && this.#host?.kind === "systemd-resolved") this.#told = undefined;
    this.#settleSoon();
  }

  /** Resolves when what the last change asked for has been done, or has failed. For tests. */
  settled(): Promise<void> {
    return this.#tail;
  }

  /** Gives the host its resolver back, then stops answering. Idempotent. */
  close(): Promise<void> {
    this.#closed ??= this.#tail.then(async () => {
      await this.#restoreHost();
      this.#forwarder.close();
      await this.#server?.close();
      this.#server = undefined;
    });
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  get #isWanted(): boolean {
    return this.#options.enabled ?? this.#config.enabled;
  }

  get #domain(): DomainName | undefined {
    return parentOf(toDomainName(this.#own.fqdn));
  }

  get #overlay(): readonly Prefix[] {
    const { address, address6 } = this.#own;
    return (address6 ? [address, address6] : [address]).map(maskPrefix);
  }

  #setZones(): void {
    this.#table.setRecords(
      "zones",
      this.#config.zones.flatMap(({ records }) => records),
    );
  }

  #putOwn(): void {
    const { ownKey } = this.#options;
    this.#table.putPeer({ key: ownKey, fqdn: this.#own.fqdn, addresses: addressesOf(this.#own) });
  }

  #hostChanged(): void {
    this.#responder.knowledge = this.#knowledge();
    this.#deps.changed();
  }

  /** What changed shows in answers at once, and in sockets and the host's settings soon. */
  #learn(): void {
    this.#responder.knowledge = this.#knowledge();
    this.#settleSoon();
  }

  #knowledge(): Knowledge {
    const own = new Set<IpAddress>([...addressesOf(this.#own), ...LOOPBACK_NETWORK]);
    const server = this.#server?.endpoint.address;
    const fallback = this.#host && this.#host.kind !== "none" ? this.#host.fallback() : [];
    return {
      authorities: createAuthorities(this.#config, this.#domain, this.#overlay),
      self: toDomainName(this.#own.fqdn),
      serial: this.#serial,
      fallback: fallback.filter(({ address }) => address !== server && !own.has(address)),
      ownAddresses: own,
      tunnelNetworks: [...this.#overlay, ...this.#tunnelNetworks],
      wakes: this.#options.wakes,
    };
  }

  #settleSoon(): void {
    if (this.#isDue || this.#closed) return;
    this.#isDue = true;
    this.#tail = this.#tail.then(async () => {
      this.#isDue = false;
      if (this.#closed) return;
      const before = JSON.stringify(this.status);
      try {
        await this.#settle();
      } catch (error) {
        this.#problem = messageOf(error);
        this.#deps.log.warn("names do not work as they should", { err: this.#problem });
      }
      if (JSON.stringify(this.status) !== before) this.#deps.changed();
    });
  }

  async #settle(): Promise<void> {
    if (!this.#isWanted) {
      await this.#restoreHost();
      await this.#server?.close();
      this.#server = undefined;
      this.#problem = undefined;
      return;
    }
    this.#host ??= await this.#deps.chooseHost(() => this.#hostChanged());
    await this.#listen();
    this.#problem = undefined;
    await this.#tellHost(this.#server!.endpoint);
    this.#responder.knowledge = this.#knowledge();
  }

  async #listen(): Promise<void> {
    const { address } = this.#own.address;
    const isFallback = this.#server && this.#server.endpoint.address === LOOPBACK;
    if (this.#server?.endpoint.address === address || isFallback) return;
    await this.#server?.close();
    this.#server = undefined;
    const choices = [
      { address, port: DNS_PORT },
      { address: LOOPBACK, port: DNS_PORT },
      { address, port: OTHER_PORT },
    ];
    const failures: string[] = [];
    for (const endpoint of choices) {
      try {
        const { log } = this.#deps;
        this.#server = await DnsServer.listen(endpoint, (...message) => this.#responder.answer(...message), log);
        return;
      } catch (error) {
        failures.push(`${formatEndpoint(endpoint)}: ${(error as NodeJS.ErrnoException).code ?? messageOf(error)}`);
      }
    }
    throw new Error(`no place to answer at: ${failures.join(", ")}`);
  }

  async #tellHost(server: Endpoint): Promise<void> {
    const host = this.#host;
    if (!host) return;
    if (host.kind === "none") {
      this.#problem = host.reason;
      return;
    }
    if (!host.anyPort && server.port !== DNS_PORT) {
      await this.#restoreHost();
      this.#problem = `port ${DNS_PORT} is taken by another program, and ${host.kind} knows no other`;
      return;
    }
    const names = this.#hostNames(server);
    const told = JSON.stringify(names);
    if (told === this.#told) return;
    await host.apply(names);
    if (this.#told === undefined)
      this.#deps.log.info("programs of this machine find the network's names", { by: host.kind });
    this.#told = told;
  }

  #hostNames(server: Endpoint): HostNames {
    const { zones, groups } = this.#config;
    const domain = this.#domain;
    const isZone = zones.some(({ apex }) => apex === domain);
    const search = [
      ...(domain !== undefined && !isZone ? [domain] : []),
      ...zones.flatMap((zone) => (zone.search ? [zone.apex] : [])),
      ...groups.flatMap((group) => (group.search ? group.domains : [])),
    ];
    const reverse = this.#overlay.flatMap(reverseZones);
    const match = [
      ...zones.map(({ apex }) => apex),
      ...groups.flatMap(({ domains }) => domains),
      ...(reverse.length <= MATCH_REVERSE_MAX ? reverse : []),
    ];
    return {
      interfaceName: this.#options.interfaceName,
      server,
      search: [...new Set(search)],
      match: [...new Set(match)],
      everything: groups.some(({ primary }) => primary),
    };
  }

  async #restoreHost(): Promise<void> {
    const host = this.#host;
    if (!host || host.kind === "none") return;
    this.#told = undefined;
    for (const problem of await host.restore())
      this.#deps.log.error("the host's resolver is not restored", { problem });
  }

  #complain(problems: readonly string[]): void {
    for (const problem of problems) this.#deps.log.warn("part of the network's names left out", { problem });
  }
}

function addressesOf({ address, address6 }: OwnNames): IpAddress[] {
  return address6 ? [address.address, address6.address] : [address.address];
}
