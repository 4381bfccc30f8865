import { PerchError } from "#base/errors.ts";
import { formatPrefix, isV6, type Prefix } from "#base/ip.ts";

/**
 * Rules of the device's packet filter, as data. They say which flows from peers may begin; what belongs to a flow that is
 * known passes without being asked again:
 *
 *   - replies to what this machine sent, always (outgoing traffic is never filtered);
 *   - the rest of a flow whose first packet was accepted, in both directions;
 *   - ICMP errors about a known flow;
 *   - later fragments of a packet whose first fragment passed.
 *
 * Rules are a set: their order does not matter. A packet is dropped when any `drop` rule matches it, accepted when an
 * `accept` rule does, and gets `otherwise` when none does. Where a packet hides what a rule asks for (extension headers
 * that cannot be read to their end), every `drop` rule of its source matches and only `accept` rules for all protocols do.
 */
export interface FilterRules {
  readonly inbound: readonly FilterRule[];
  readonly otherwise: FilterVerdict;
}

export type FilterVerdict = "accept" | "drop";

/** `icmp` is ICMP in IPv4 and ICMPv6 in IPv6. */
export type FilterProtocol = "all" | "tcp" | "udp" | "icmp";

export interface FilterRule extends SourceRule {
  /** Inner source address; `0.0.0.0/0` or `::/0` for any of the family. Host bits are ignored. */
  readonly source: Prefix;
}

/** A rule of one source. */
export interface SourceRule {
  /** Inner destination address; default any of the source's family. */
  readonly destination?: Prefix | undefined;
  readonly protocol: FilterProtocol;
  /** Destination ports, both ends included; default all. With `all` it means those ports of TCP and UDP. Not with `icmp`. */
  readonly ports?: PortRange | undefined;
  readonly verdict: FilterVerdict;
}

export interface PortRange {
  readonly first: number;
  readonly last: number;
}

/** Rules of one source prefix; more are refused with `too-many-rules`. */
export const FILTER_RULES_PER_SOURCE = 1024;

/** The device is as it was: a set of rules is taken whole or not at all. */
export class FilterError extends PerchError<"filter-rule-invalid" | "too-many-rules"> {}

/** Rules by source, each prefix once. Throws FilterError. */
export function groupBySource(rules: readonly FilterRule[]): Map<string, { source: Prefix; rules: SourceRule[] }> {
  const groups = new Map<string, { source: Prefix; rules: SourceRule[] }>();
  for (const rule of rules) {
    const text = formatPrefix(rule.source);
    const group = groups.get(text) ?? { source: rule.source, rules: [] };
    group.rules.push(rule);
    groups.set(text, group);
  }
  for (const { source, rules: own } of groups.values()) checkRules(source, own);
  return groups;
}

/** Throws FilterError when the device cannot take the rules. */
export function checkRules(source: Prefix, rules: readonly SourceRule[]): void {
  if (rules.length > FILTER_RULES_PER_SOURCE) {
    throw new FilterError(
      "too-many-rules",
      `${rules.length} rules for ${formatPrefix(source)} are more than ${FILTER_RULES_PER_SOURCE}`,
    );
  }
  for (const { destination, protocol, ports } of rules) {
    const bad = (why: string): FilterError =>
      new FilterError("filter-rule-invalid", `rule for ${formatPrefix(source)}: ${why}`);
    if (destination && isV6(destination.address) !== isV6(source.address))
      throw bad(`destination ${formatPrefix(destination)} is of the other family`);
    if (!ports) continue;
    const { first, last } = ports;
    if (protocol === "icmp") throw bad("ICMP has no ports");
    if (!(Number.isInteger(first) && Number.isInteger(last) && first >= 0 && first <= last && last <= 65_535))
      throw bad(`ports ${first}-${last} are not within 0 to 65535`);
  }
}
