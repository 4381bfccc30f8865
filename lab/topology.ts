import { type IpAddress, parseIp, parsePrefix, prefixContains } from "#base/ip.ts";
import { LabError } from "./errors.ts";
import type { LinkOptions } from "./link.ts";
import type { NatOptions } from "./nat.ts";

/**
 * A small internet as plain data. Every site hangs on one core by one link; hosts of a site share its LAN.
 *
 * ```
 *   host --.                                          .-- host
 *   host --+-- LAN -- NAT? -- link -- core -- link -- LAN (public addresses)
 *                             half            half
 *                             the delay       the delay
 * ```
 *
 * The one-way delay between two hosts is the sum of the `latencyMs` of both sites; within a LAN there is none. IPv6 is
 * never translated. Addresses that are not given are chosen: a site with a NAT gets 192.168.N.0/24 and the public address
 * 198.19.N.1, one without gets 198.18.N.0/24, IPv6 is 2001:db8:N::/64, with N the site's number from 1.
 */
export interface LabTopology {
  readonly sites: readonly SiteSpec[];
  readonly hosts: readonly HostSpec[];
  /** For loss, jitter and port choice: the same seed and the same packets give the same run. Default 1. */
  readonly seed?: number;
}

/** A site. The link options hold for each direction of its link: a `loss` of 0.1 loses 10% out and 10% in. */
export interface SiteSpec extends LinkOptions {
  /** Letters, digits and hyphens. */
  readonly name: string;
  /** Absent: hosts have public addresses. */
  readonly nat?: NatOptions;
  /** `blocked`: UDP does not pass the site's edge in either direction, of either IP version. Default `pass`. */
  readonly udp?: "pass" | "blocked";
  /** IPv4 range of the LAN, such as `192.168.1.0/24`. */
  readonly lan?: string;
  /** Outer address of the NAT; only with `nat`. */
  readonly publicAddress?: string;
  /** A /64 for the LAN; `true` chooses one. Default: no IPv6. */
  readonly ipv6?: boolean | string;
  /** Largest packet on the link and the hosts' interfaces, in bytes, 1280 to 9000. Default 1500. */
  readonly mtu?: number;
  /** As `mtu`, for the link alone: a narrow place on the path that hosts must find out about. */
  readonly linkMtu?: number;
}

export interface HostSpec {
  /** Letters, digits and hyphens. */
  readonly name: string;
  /** Name of its site. */
  readonly site: string;
  readonly address?: string;
  /** Only where the site has IPv6. */
  readonly address6?: string;
}

/** Sites with one host each, of the same name, and 10 ms from the core unless they say otherwise. */
export function hostPerSite(sites: Readonly<Record<string, Omit<SiteSpec, "name">>>): LabTopology {
  const names = Object.keys(sites);
  return {
    sites: names.map((name) => ({ latencyMs: 10, ...sites[name], name })),
    hosts: names.map((name) => ({ name, site: name })),
  };
}

/** A site with everything decided. */
export interface Site {
  readonly name: string;
  readonly link: LinkOptions;
  readonly nat: NatOptions | undefined;
  readonly udp: "pass" | "blocked";
  readonly lan: { readonly address: IpAddress; readonly bits: number };
  readonly publicAddress: IpAddress | undefined;
  readonly lan6: { readonly address: IpAddress; readonly bits: number } | undefined;
  readonly mtu: number;
  readonly linkMtu: number;
}

/** A host with everything decided. */
export interface HostPlan {
  readonly name: string;
  readonly site: string;
  readonly address: IpAddress;
  readonly address6: IpAddress | undefined;
}

export interface ResolvedTopology {
  readonly sites: readonly Site[];
  readonly hosts: readonly HostPlan[];
  readonly seed: number;
}

export const DEFAULT_MTU = 1500;
export const MTU_MIN = 1280;
export const MTU_MAX = 9000;
export const SITES_MAX = 250;
export const NAME_PATTERN = /^[a-z0-9][a-z0-9-]{0,31}$/i;

/** Fills in what was left open and refuses what contradicts itself. Throws LabError `topology-invalid`. */
export function resolveTopology(topology: LabTopology): ResolvedTopology {
  if (topology.sites.length > SITES_MAX) throw invalid(`${topology.sites.length} sites, the limit is ${SITES_MAX}`);
  mustBeDistinct(
    "site",
    topology.sites.map((site) => site.name),
  );
  mustBeDistinct(
    "host",
    topology.hosts.map((host) => host.name),
  );
  const sites = topology.sites.map((site, index) => resolveSite(site, index + 1));
  const hosts: HostPlan[] = [];
  for (const host of topology.hosts) {
    const site = sites.find((candidate) => candidate.name === host.site);
    if (!site) throw invalid(`host ${host.name} is in site ${JSON.stringify(host.site)}, which does not exist`);
    hosts.push(placeHost(host, site, hosts));
  }
  mustBeDistinct(
    "public address",
    sites.flatMap(
      (site) => site.publicAddress ?? hosts.filter((host) => host.site === site.name).map((h) => h.address),
    ),
  );
  mustBeDistinct(
    "IPv6 address",
    hosts.flatMap((host) => host.address6 ?? []),
  );
  return { sites, hosts, seed: topology.seed ?? 1 };
}

/** The host with its addresses, chosen among those that `others` leave free. Throws LabError `topology-invalid`. */
export function placeHost(host: HostSpec, site: Site, others: readonly HostPlan[]): HostPlan {
  const neighbours = others.filter((other) => other.site === site.name && other.name !== host.name);
  const choose = (prefix: Site["lan"], taken: readonly (IpAddress | undefined)[], wanted?: string): IpAddress => {
    if (wanted === undefined) return freeAddress(prefix, taken, site.name);
    const address = parseAddress(wanted, `address of host ${host.name}`);
    if (!prefixContains(prefix, address))
      throw invalid(`address ${wanted} of host ${host.name} is not in ${prefix.address}/${prefix.bits}`);
    if (taken.includes(address)) throw invalid(`address ${wanted} of host ${host.name} is taken`);
    return address;
  };
  if (host.address6 !== undefined && !site.lan6)
    throw invalid(`host ${host.name} has an IPv6 address, but site ${site.name} has no IPv6`);
  return {
    name: host.name,
    site: site.name,
    address: choose(
      site.lan,
      neighbours.map((n) => n.address),
      host.address,
    ),
    address6:
      site.lan6 &&
      choose(
        site.lan6,
        neighbours.map((n) => n.address6),
        host.address6,
      ),
  };
}

function resolveSite(spec: SiteSpec, number: number): Site {
  const { name, nat, udp, lan, publicAddress, ipv6, mtu = DEFAULT_MTU, linkMtu = mtu, ...link } = spec;
  for (const value of [mtu, linkMtu]) {
    if (!(Number.isInteger(value) && value >= MTU_MIN && value <= MTU_MAX))
      throw invalid(`MTU ${value} of site ${name} must be ${MTU_MIN} to ${MTU_MAX}`);
  }
  for (const key of ["loss", "reorder", "duplicate"] as const) {
    const share = link[key] ?? 0;
    if (!(share >= 0 && share <= 1)) throw invalid(`${key} ${share} of site ${name} must be 0 to 1`);
  }
  if (publicAddress !== undefined && !nat) throw invalid(`site ${name} has a publicAddress but no nat`);
  return {
    name,
    link,
    nat,
    udp: udp ?? "pass",
    lan: parseLan(lan ?? (nat ? `192.168.${number}.0/24` : `198.18.${number}.0/24`), name, 4),
    publicAddress: nat ? parsePublicAddress(publicAddress ?? `198.19.${number}.1`, name) : undefined,
    lan6: ipv6 ? parseLan(ipv6 === true ? `2001:db8:${number.toString(16)}::/64` : ipv6, name, 6) : undefined,
    mtu,
    linkMtu,
  };
}

function parseLan(text: string, site: string, version: 4 | 6): Site["lan"] {
  const prefix = parsePrefix(text);
  const isV6 = prefix.address.includes(":");
  if (isV6 !== (version === 6)) throw invalid(`range ${text} of site ${site} is not IPv${version}`);
  const [least, most] = version === 4 ? [8, 30] : [64, 64];
  if (prefix.bits < least || prefix.bits > most)
    throw invalid(`range ${text} of site ${site} must have ${least} to ${most} bits`);
  return prefix;
}

/** Hosts start at .2: .1 is the site's router, where there is one to be seen. */
function freeAddress(prefix: Site["lan"], taken: readonly (IpAddress | undefined)[], site: string): IpAddress {
  for (let number = 2; number < 0xfffe; number++) {
    const address = addressIn(prefix, number);
    if (!prefixContains(prefix, address) || isBroadcast(prefix, address)) break;
    if (!taken.includes(address)) return address;
  }
  throw invalid(`site ${site} has no free address left in ${prefix.address}/${prefix.bits}`);
}

/** The address `number` places above the prefix's own; `number` is below 65536. */
export function addressIn(prefix: Site["lan"], number: number): IpAddress {
  if (prefix.address.includes(":")) return parseIp(`${prefix.address.replace(/::.*$/, "")}::${number.toString(16)}`);
  const parts = prefix.address.split(".").map(Number);
  return parseIp([parts[0], parts[1], parts[2]! + (number >> 8), (parts[3]! + number) & 0xff].join("."));
}

function isBroadcast(prefix: Site["lan"], address: IpAddress): boolean {
  if (prefix.address.includes(":")) return false;
  const value = address.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
  return (value + 1) % 2 ** (32 - prefix.bits) === 0;
}

function parseAddress(text: string, what: string): IpAddress {
  try {
    return parseIp(text);
  } catch (cause) {
    throw new LabError("topology-invalid", `${what}: ${JSON.stringify(text)} is no IP address`, { cause });
  }
}

function parsePublicAddress(text: string, site: string): IpAddress {
  const address = parseAddress(text, `publicAddress of site ${site}`);
  if (address.includes(":")) throw invalid(`publicAddress ${text} of site ${site} must be IPv4`);
  return address;
}

function mustBeDistinct(what: string, values: readonly string[]): void {
  const seen = new Set<string>();
  for (const value of values) {
    if ((what === "site" || what === "host") && !NAME_PATTERN.test(value))
      throw invalid(`${what} name ${JSON.stringify(value)} must be letters, digits and hyphens, at most 32`);
    if (seen.has(value)) throw invalid(`${what} ${value} is there twice`);
    seen.add(value);
  }
}

function invalid(message: string): LabError {
  return new LabError("topology-invalid", message);
}
