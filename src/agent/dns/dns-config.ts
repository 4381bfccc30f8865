import { messageOf } from "#base/errors.ts";
import { type Endpoint, parseIp } from "#base/ip.ts";
import type { DNSConfig, SimpleRecord } from "#gen/management_pb.ts";
import { type DomainName, isDomainName, toDomainName } from "./domain-name.ts";

/** What the network says about names, parsed once at the border (management document, section 3.7, DNSConfig). */
export interface DnsConfig {
  /** The network wants agents to answer and to configure their hosts. */
  readonly enabled: boolean;
  readonly zones: readonly DnsZone[];
  readonly groups: readonly NameserverGroup[];
  /** What was left out and why, for the log. */
  readonly problems: readonly string[];
}

/** A zone whose records the network sends. */
export interface DnsZone {
  readonly apex: DomainName;
  readonly records: readonly DnsRecord[];
  /** The host completes short names with it. */
  readonly search: boolean;
  /** What is not in it does not exist; else others are asked for what is not in it. */
  readonly authoritative: boolean;
}

export interface DnsRecord {
  readonly name: DomainName;
  readonly type: "A" | "AAAA" | "CNAME";
  /** An address, or the name that a CNAME leads to. */
  readonly data: string;
  /** Seconds. */
  readonly ttl: number;
}

/** Servers that are asked for some domains, or for everything. */
export interface NameserverGroup {
  readonly servers: readonly Endpoint[];
  /** For whatever no zone and no other group has. */
  readonly primary: boolean;
  readonly domains: readonly DomainName[];
  readonly search: boolean;
}

export const NO_DNS: DnsConfig = { enabled: false, zones: [], groups: [], problems: [] };

const RECORD_TYPES: Readonly<Record<number, DnsRecord["type"]>> = { 1: "A", 5: "CNAME", 28: "AAAA" };
/** A kind of name server that is asked with DNS over UDP. */
const NS_TYPE_UDP = 1n;
/** Longest time in seconds that a record may be kept (RFC 2181, section 8, has 2^31-1); a week is enough for anybody. */
const TTL_MAX = 604_800;

/** Never throws: a bad entry is left out and named. */
export function parseDnsConfig(config: DNSConfig | undefined): DnsConfig {
  if (!config) return NO_DNS;
  const problems: string[] = [];
  const isOnly = config.CustomZones.length === 1;
  const zones = config.CustomZones.flatMap((zone): DnsZone[] => {
    if (!isDomainName(zone.Domain)) {
      problems.push(`zone ${JSON.stringify(zone.Domain.slice(0, 64))}: not a domain name`);
      return [];
    }
    if (zone.Records.length === 0) return [];
    const records = zone.Records.flatMap((record) => parseRecord(record, problems));
    return [
      {
        apex: toDomainName(zone.Domain),
        records,
        search: !zone.SearchDomainDisabled,
        authoritative: isOnly || !zone.NonAuthoritative,
      },
    ];
  });
  const groups = config.NameServerGroups.flatMap((group): NameserverGroup[] => {
    const servers = group.NameServers.flatMap(({ IP, NSType, Port }): Endpoint[] => {
      try {
        const port = Number(Port);
        if (NSType !== NS_TYPE_UDP) throw new Error(`kind ${NSType} is not known`);
        if (!(port > 0 && port <= 65535)) throw new Error(`port ${port} is none`);
        return [{ address: parseIp(IP), port }];
      } catch (error) {
        problems.push(`name server ${JSON.stringify(IP.slice(0, 64))}: ${messageOf(error)}`);
        return [];
      }
    });
    const domains = group.Domains.flatMap((domain): DomainName[] => {
      if (isDomainName(domain)) return [toDomainName(domain)];
      problems.push(`match domain ${JSON.stringify(domain.slice(0, 64))}: not a domain name`);
      return [];
    });
    if (servers.length === 0 || (!group.Primary && domains.length === 0)) return [];
    return [{ servers, primary: group.Primary, domains, search: group.SearchDomainsEnabled }];
  });
  return { enabled: config.ServiceEnable, zones, groups, problems };
}

/** One record; an empty list when it is none, with the reason in `problems`. */
export function parseRecord(record: SimpleRecord, problems: string[]): DnsRecord[] {
  const type = RECORD_TYPES[Number(record.Type)];
  const shown = JSON.stringify(record.Name.slice(0, 64));
  if (record.Class !== "IN" || !type || !isDomainName(record.Name)) {
    problems.push(
      `record ${shown}: type ${record.Type}, class ${JSON.stringify(record.Class.slice(0, 8))} is not served`,
    );
    return [];
  }
  const ttl = Math.max(0, Math.min(TTL_MAX, Number(record.TTL)));
  const name = toDomainName(record.Name);
  try {
    if (type === "CNAME") {
      if (!isDomainName(record.RData))
        throw new Error(`${JSON.stringify(record.RData.slice(0, 64))} is not a domain name`);
      return [{ name, type, data: toDomainName(record.RData), ttl }];
    }
    const address = parseIp(record.RData);
    if (address.includes(":") !== (type === "AAAA")) throw new Error(`${address} does not fit type ${type}`);
    return [{ name, type, data: address, ttl }];
  } catch (error) {
    problems.push(`record ${shown}: ${messageOf(error)}`);
    return [];
  }
}
