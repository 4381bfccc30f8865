import { messageOf } from "#base/errors.ts";
import { formatPrefix, isV6, maskPrefix, type Prefix, parseIp } from "#base/ip.ts";
import { type FirewallRule, RuleAction, RuleDirection, RuleProtocol } from "#gen/management_pb.ts";
import { decodeCompactPrefix } from "#management/protocol/compact-prefix.ts";
import { FILTER_RULES_PER_SOURCE, type FilterProtocol, type PortRange, type SourceRule } from "#wireguard/filter.ts";

/** Access rules of one source prefix; its host bits are zero. */
export interface SourceAccess {
  readonly source: Prefix;
  readonly rules: readonly SourceRule[];
}

const ANY_V4: Prefix = { address: parseIp("0.0.0.0"), bits: 0 };
const ANY_V6: Prefix = { address: parseIp("::"), bits: 0 };
/** What a rule to drop becomes when it cannot be read: nothing less would be sure to hold what it should hold off. */
const DROP_ALL: SourceRule = { protocol: "all", verdict: "drop" };

const PROTOCOLS: Readonly<Partial<Record<RuleProtocol, FilterProtocol>>> = {
  [RuleProtocol.ALL]: "all",
  [RuleProtocol.TCP]: "tcp",
  [RuleProtocol.UDP]: "udp",
  [RuleProtocol.ICMP]: "icmp",
};

/**
 * Turns the access rules of a network map into filter rules by source, keyed by the source's text (management document, section
 * 3.7). Rules for the other direction are left out: nothing that this machine sends is held back. A rule that cannot be read
 * is named in `problems`: one that accepts is left out, one that drops becomes as wide as it could have been meant.
 */
export function convertRules(rules: readonly FirewallRule[], problems: string[]): Map<string, SourceAccess> {
  const bySource = new Map<string, { source: Prefix; rules: Map<string, SourceRule> }>();
  for (const rule of rules) {
    if (rule.Direction !== RuleDirection.IN) continue;
    for (const { source, ...converted } of convert(rule, problems)) {
      const text = formatPrefix(source);
      const group = bySource.get(text) ?? { source, rules: new Map<string, SourceRule>() };
      group.rules.set(ruleText(converted), converted);
      bySource.set(text, group);
    }
  }
  return new Map(
    [...bySource].map(([text, { source, rules: own }]) => [
      text,
      { source, rules: withinLimit(text, [...own.values()], problems) },
    ]),
  );
}

/** Equal for rules that say the same. */
export function rulesText(rules: readonly SourceRule[]): string {
  return rules.map(ruleText).sort().join(",");
}

function ruleText({ verdict, protocol, ports }: SourceRule): string {
  return `${verdict} ${protocol}${ports ? ` ${ports.first}-${ports.last}` : ""}`;
}

type Converted = SourceRule & { readonly source: Prefix };

function convert(rule: FirewallRule, problems: string[]): readonly Converted[] {
  const isAccept = rule.Action === RuleAction.ACCEPT;
  let sources: readonly Prefix[] = [ANY_V4, ANY_V6];
  try {
    sources = [readSource(rule)];
    const protocol = PROTOCOLS[rule.Protocol];
    if (protocol === undefined) throw new TypeError(`protocol ${rule.Protocol} is not known`);
    const ports = protocol === "icmp" ? undefined : readPorts(rule);
    return [{ source: sources[0]!, protocol, verdict: isAccept ? "accept" : "drop", ...(ports && { ports }) }];
  } catch (error) {
    const what = isAccept ? "left out" : `dropping all from ${sources.map(formatPrefix).join(" and ")}`;
    problems.push(`access rule ${policyText(rule)}: ${messageOf(error)}; ${what}`);
    return isAccept ? [] : sources.map((source) => ({ ...DROP_ALL, source }));
  }
}

/** The prefixes win where there are any, and only the first of them counts. */
function readSource({ sourcePrefixes, PeerIP }: FirewallRule): Prefix {
  if (sourcePrefixes.length > 0) return maskPrefix(decodeCompactPrefix(sourcePrefixes[0]!));
  const address = parseIp(PeerIP);
  if (address === ANY_V4.address) return ANY_V4;
  if (address === ANY_V6.address) return ANY_V6;
  return { address, bits: isV6(address) ? 128 : 32 };
}

/** `PortInfo` where it says something, then `Port`; undefined: all. */
function readPorts({ PortInfo: info, Port }: FirewallRule): PortRange | undefined {
  const { portSelection } = info ?? {};
  if (portSelection?.case === "port" && portSelection.value !== 0)
    return checkRange({ first: portSelection.value, last: portSelection.value });
  if (portSelection?.case === "range") {
    const { start: first, end: last } = portSelection.value;
    if (first !== 0 || last !== 0) return checkRange({ first, last });
  }
  if (Port === "") return undefined;
  const port = /^\d{1,5}$/.test(Port) ? Number(Port) : Number.NaN;
  if (Number.isNaN(port)) throw new TypeError(`${JSON.stringify(Port.slice(0, 32))} is no port`);
  return port === 0 ? undefined : checkRange({ first: port, last: port });
}

function checkRange(range: PortRange): PortRange {
  if (range.first > range.last || range.last > 65_535)
    throw new RangeError(`ports ${range.first}-${range.last} are not within 0 to 65535`);
  return range;
}

/** Rules to drop first; of what is too much, what accepts is left out. */
function withinLimit(source: string, rules: readonly SourceRule[], problems: string[]): readonly SourceRule[] {
  if (rules.length <= FILTER_RULES_PER_SOURCE) return rules;
  problems.push(`${source} has ${rules.length} access rules, more than ${FILTER_RULES_PER_SOURCE}: fewer are accepted`);
  const drops = rules.filter(({ verdict }) => verdict === "drop");
  if (drops.length > FILTER_RULES_PER_SOURCE) return [DROP_ALL];
  return [...drops, ...rules.filter(({ verdict }) => verdict === "accept")].slice(0, FILTER_RULES_PER_SOURCE);
}

function policyText({ PolicyID }: FirewallRule): string {
  const text = new TextDecoder().decode(PolicyID.subarray(0, 64));
  return text === "" ? "without a policy" : `of policy ${JSON.stringify(text)}`;
}
