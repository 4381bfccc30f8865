import { type Endpoint, type IpAddress, type Prefix, prefixContains } from "#base/ip.ts";
import type { DnsConfig, DnsRecord } from "./dns-config.ts";
import { type DomainName, parentOf, parseReverseName, reverseZones } from "./domain-name.ts";
import type { NamedPeer, NameTable } from "./name-table.ts";

/** A question of class IN. */
export interface DnsQuestion {
  readonly name: DomainName;
  /** As dns-packet writes types: `A`, `AAAA`, `PTR`, `UNKNOWN_65`. */
  readonly type: string;
}

export type AnswerRecord =
  | DnsRecord
  | { readonly name: DomainName; readonly type: "PTR" | "NS"; readonly data: DomainName; readonly ttl: number };

/** What becomes of a question. */
export type Resolution =
  | {
      readonly kind: "answer";
      readonly rcode: "NOERROR" | "NXDOMAIN";
      readonly answers: readonly AnswerRecord[];
      /** Apex of the zone whose SOA says how long a "no" may be kept; also the answer to a question for the SOA itself. */
      readonly soa?: { readonly apex: DomainName; readonly asked: boolean };
      /** The last CNAME leads out of our zones: others are asked for the rest. */
      readonly rest?: { readonly name: DomainName; readonly servers: readonly Endpoint[] };
      /** Peers whose addresses were asked for by name. */
      readonly named: readonly NamedPeer[];
    }
  | { readonly kind: "forward"; readonly servers: readonly Endpoint[] }
  /** Nobody to ask. */
  | { readonly kind: "refuse" };

/** Who answers for a name and everything below it. */
type Authority =
  | { readonly kind: "zone"; readonly apex: DomainName; readonly authoritative: boolean }
  | { readonly kind: "reverse"; readonly apex: DomainName }
  | { readonly kind: "servers"; readonly servers: readonly Endpoint[] };

/** Which name is whose, derived from the network's settings; a new one is made when they change. */
export interface Authorities {
  readonly byName: ReadonlyMap<DomainName, Authority>;
  readonly overlay: readonly Prefix[];
  /** Name servers of groups that answer for everything. */
  readonly primary: readonly Endpoint[];
}

/** A chain of CNAMEs is followed this far. */
const CHAIN_MAX = 8;
/** Seconds for which NS and PTR records may be kept. */
const TTL = 300;
/** Types that ask for a transfer, not for records. */
const TRANSFERS: ReadonlySet<string> = new Set(["AXFR", "IXFR"]);

/** `domain`: the network's own, of which the peers' names are, whether or not it sends a zone for it. */
export function createAuthorities(
  config: Pick<DnsConfig, "zones" | "groups">,
  domain: DomainName | undefined,
  overlay: readonly Prefix[],
): Authorities {
  const byName = new Map<DomainName, Authority>();
  for (const { servers, domains } of config.groups) {
    for (const name of domains) if (!byName.has(name)) byName.set(name, { kind: "servers", servers });
  }
  for (const apex of overlay.flatMap(reverseZones)) byName.set(apex, { kind: "reverse", apex });
  for (const { apex, authoritative } of config.zones) byName.set(apex, { kind: "zone", apex, authoritative });
  const own = domain === undefined ? undefined : byName.get(domain);
  if (domain !== undefined && own?.kind !== "zone")
    byName.set(domain, { kind: "zone", apex: domain, authoritative: true });
  return { byName, overlay, primary: config.groups.flatMap(({ primary, servers }) => (primary ? servers : [])) };
}

/**
 * Decides what becomes of a question; pure. `fallback` are the servers of the host itself, for what is nobody else's.
 * Costs the labels of the name, whatever the number of peers.
 */
export function resolve(
  table: NameTable,
  authorities: Authorities,
  question: DnsQuestion,
  self: DomainName,
  fallback: readonly Endpoint[],
): Resolution {
  if (TRANSFERS.has(question.type)) return { kind: "refuse" };
  const authority = findAuthority(authorities, question.name);
  switch (authority?.kind) {
    case "zone":
      return resolveInZone(table, authorities, question, authority, self, fallback);
    case "reverse":
      return resolveReverse(table, authorities, question, authority.apex, self);
    case "servers":
      return forward(authority.servers);
    case undefined:
      return forward(elsewhere(authorities, fallback));
  }
}

function resolveInZone(
  table: NameTable,
  authorities: Authorities,
  { name, type }: DnsQuestion,
  zone: Extract<Authority, { readonly kind: "zone" }>,
  self: DomainName,
  fallback: readonly Endpoint[],
): Resolution {
  const answers: AnswerRecord[] = [];
  const named: NamedPeer[] = [];
  let at = name;
  let { apex } = zone;
  for (let length = 0; length < CHAIN_MAX; length++) {
    const records = table.recordsOf(at);
    const exists = records.length > 0 || at === apex || table.hasBelow(at);
    if (!exists && length === 0 && !zone.authoritative) return forward(elsewhere(authorities, fallback));
    if (!exists) return { kind: "answer", rcode: "NXDOMAIN", answers, named, soa: { apex, asked: false } };
    const alias = type === "CNAME" ? undefined : records.find((record) => record.type === "CNAME");
    if (!alias) {
      const found = records.filter((record) => type === "ANY" || record.type === type);
      answers.push(...found);
      for (const { data } of found) {
        const peer = table.peerAt(data as IpAddress);
        if (peer && !named.includes(peer)) named.push(peer);
      }
      if (at === apex && type === "SOA")
        return { kind: "answer", rcode: "NOERROR", answers, named, soa: { apex, asked: true } };
      if (at === apex && type === "NS") answers.push({ name: apex, type: "NS", data: self, ttl: TTL });
      const isEmpty = answers.length === 0 || found.length === 0;
      return { kind: "answer", rcode: "NOERROR", answers, named, ...(isEmpty && { soa: { apex, asked: false } }) };
    }
    answers.push(alias);
    at = alias.data as DomainName;
    const next = findAuthority(authorities, at);
    if (next?.kind !== "zone") {
      const servers = next?.kind === "servers" ? next.servers : elsewhere(authorities, fallback);
      return {
        kind: "answer",
        rcode: "NOERROR",
        answers,
        named,
        ...(servers.length > 0 && { rest: { name: at, servers } }),
      };
    }
    apex = next.apex;
  }
  return { kind: "answer", rcode: "NOERROR", answers, named };
}

function resolveReverse(
  table: NameTable,
  { overlay }: Authorities,
  { name, type }: DnsQuestion,
  apex: DomainName,
  self: DomainName,
): Resolution {
  const no = { answers: [], named: [], soa: { apex, asked: type === "SOA" && name === apex } };
  if (name === apex && type === "NS") {
    return { kind: "answer", rcode: "NOERROR", answers: [{ name, type: "NS", data: self, ttl: TTL }], named: [] };
  }
  const address = parseReverseName(name);
  // Between the zone and an address lie names that exist and have nothing (RFC 8020).
  if (address === undefined) return { kind: "answer", rcode: "NOERROR", ...no };
  const peer = overlay.some((prefix) => prefixContains(prefix, address)) ? table.peerAt(address) : undefined;
  if (!peer || peer.fqdn === "") return { kind: "answer", rcode: "NXDOMAIN", ...no };
  if (type !== "PTR" && type !== "ANY") return { kind: "answer", rcode: "NOERROR", ...no };
  // Who asks what an address is called does not want to talk to it: nobody is woken.
  const data = peer.fqdn as DomainName;
  return { kind: "answer", rcode: "NOERROR", answers: [{ name, type: "PTR", data, ttl: TTL }], named: [] };
}

/** The authority with the longest name that `name` ends in. */
function findAuthority({ byName }: Authorities, name: DomainName): Authority | undefined {
  for (let at: DomainName | undefined = name; at !== undefined; at = parentOf(at)) {
    const found = byName.get(at);
    if (found) return found;
  }
  return undefined;
}

function elsewhere({ primary }: Authorities, fallback: readonly Endpoint[]): readonly Endpoint[] {
  return primary.length > 0 ? primary : fallback;
}

function forward(servers: readonly Endpoint[]): Resolution {
  return servers.length > 0 ? { kind: "forward", servers } : { kind: "refuse" };
}
