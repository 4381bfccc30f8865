import { unreachable } from "#base/errors.ts";
import { formatPrefix, isV6, maskPrefix, type Prefix, parseIp } from "#base/ip.ts";
import type { FilterProtocol, FilterVerdict, PortRange, SourceRule } from "../filter.ts";
import { changeFlows, createFlows, NFT_DROP_COUNTER } from "./nft-flows.ts";
import type { RuleForm } from "./open-sources.ts";

/*
 * The table of one interface, in the language of nft(8). It hooks behind connection tracking and before NAT, so it sees packets
 * as the peer sent them, be they for this machine or through it:
 *
 *   inbound   what comes from the interface and has to be judged ─▶ rules4, rules6 (nft-flows.ts)
 *   rules4    a lookup for each length of source prefixes in use, of rules that drop and then of those that accept:
 *                 ip saddr & MASK vmap @drop4_24         { 10.0.1.0 : jump list7, ... }
 *             else what the set says about packets without a rule
 *   list7     the rules of one source, or of many that have the same; accept ─▶ in, drop ─▶ refuse (nft-flows.ts)
 *   outbound  nothing is held back, but who begins a flow is remembered (nft-flows.ts)
 */

const ICMP = { 4: 1, 6: 58 } as const;
/** Elements in one line: nft reads a line of any length, but a person who looks at one does not. */
const ELEMENTS_PER_LINE = 500;

type Family = 4 | 6;
const FAMILIES: readonly Family[] = [4, 6];
/** In the order in which they are asked: a rule to drop wins. */
const VERDICTS: readonly FilterVerdict[] = ["drop", "accept"];

/** A chain of rules with one verdict. */
interface RuleList {
  readonly name: string;
  readonly text: string;
  uses: number;
}

interface Entry {
  readonly drop: RuleList | undefined;
  readonly accept: RuleList | undefined;
}

/** A verdict map: the sources of one prefix length that have rules of one verdict. */
interface Lookup {
  readonly name: string;
  readonly family: Family;
  readonly verdict: FilterVerdict;
  readonly bits: number;
  /** Network address to list. */
  readonly sources: Map<string, RuleList>;
}

/** The rules of a source as they shall be; none: it has no rules. */
export interface SourceChange {
  readonly source: Prefix;
  readonly rules: readonly SourceRule[];
}

/** Family and name; characters that nft does not take in a name are written as `_` and their code. */
export function nftTableName(interfaceName: string): string {
  return `inet perch-${interfaceName.replaceAll(/[^A-Za-z0-9.-]/g, (c) => `_${c.codePointAt(0)!.toString(16)}`)}`;
}

/** Takes the table of an interface away, there or not. */
export function nftRemoval(interfaceName: string): string {
  const table = nftTableName(interfaceName);
  return `add table ${table}\ndelete table ${table}\n`;
}

/** Whether nft can name the interface: a text in quotes, in which `*` at the end means any. */
export function isNftInterfaceName(name: string): boolean {
  return !/["\\*\n]/.test(name);
}

/**
 * What is in the kernel, and the texts that change it, each a transaction. No IO. After a text that nft refused this object is of
 * no use: make another and the table anew.
 */
export class NftTable {
  readonly #interfaceName: string;
  readonly #table: string;
  readonly #entries = new Map<string, Entry>();
  /** By their rules. */
  readonly #lists = new Map<string, RuleList>();
  readonly #lookups = new Map<string, Lookup>();
  readonly #ruleChains = new Map<Family, string>();
  #listsMade = 0;
  #form: RuleForm = "tracked";

  constructor(interfaceName: string) {
    this.#interfaceName = interfaceName;
    this.#table = nftTableName(interfaceName);
  }

  /** Makes the table, without what was there by its name. */
  create(sources: Iterable<SourceChange>, otherwise: FilterVerdict, form: RuleForm): string {
    const table = this.#table;
    this.#form = form;
    const lines = [
      `add table ${table}`,
      `add counter ${table} ${NFT_DROP_COUNTER}`,
      `add chain ${table} rules4`,
      `add chain ${table} rules6`,
      ...createFlows(table, this.#interfaceName, form),
    ];
    return `${nftRemoval(this.#interfaceName)}${lines.join("\n")}\n${this.update(sources, otherwise, form)}`;
  }

  /** Can be carried out as long as the table is there. */
  touch(): string {
    return `flush chain ${this.#table} inbound\n`;
  }

  /** How the rules are enforced. */
  get form(): RuleForm {
    return this.#form;
  }

  /** Changes the rules of these sources, each named once, and of no others; costs what changes. */
  update(changes: Iterable<SourceChange>, otherwise: FilterVerdict, form: RuleForm): string {
    const table = this.#table;
    const transaction = new Transaction(table);
    for (const change of changes) this.#change(change, transaction);
    for (const lookup of this.#lookups.values()) {
      if (lookup.sources.size > 0) continue;
      this.#lookups.delete(lookup.name);
      transaction.removeLookup(lookup);
    }
    for (const family of FAMILIES) {
      const text = this.#rulesText(family, otherwise);
      if (text === this.#ruleChains.get(family)) continue;
      this.#ruleChains.set(family, text);
      transaction.replaceRules(family, text);
    }
    for (const list of transaction.released) {
      if (list.uses > 0) continue;
      this.#lists.delete(list.text);
      transaction.removeList(list);
    }
    const text = transaction.text();
    if (form === this.#form) return text;
    const lines = changeFlows(table, this.#interfaceName, this.#form, form);
    this.#form = form;
    return `${lines.join("\n")}\n${text}`;
  }

  #change({ source, rules }: SourceChange, transaction: Transaction): void {
    const text = formatPrefix(maskPrefix(source));
    const before = this.#entries.get(text);
    const after: Entry = {
      drop: this.#listOf(source, rules, "drop", transaction),
      accept: this.#listOf(source, rules, "accept", transaction),
    };
    for (const verdict of VERDICTS) {
      const from = before?.[verdict];
      const to = after[verdict];
      if (from === to) continue;
      const lookup = this.#lookup(source, verdict, transaction);
      const { address } = maskPrefix(source);
      if (to) {
        to.uses++;
        lookup.sources.set(address, to);
      } else lookup.sources.delete(address);
      if (from) {
        from.uses--;
        transaction.released.add(from);
      }
      transaction.point(lookup, address, from, to);
    }
    if (after.drop || after.accept) this.#entries.set(text, after);
    else this.#entries.delete(text);
  }

  /** The list of the rules with this verdict. */
  #listOf(
    source: Prefix,
    rules: readonly SourceRule[],
    verdict: FilterVerdict,
    transaction: Transaction,
  ): RuleList | undefined {
    const lines = rules.filter((rule) => rule.verdict === verdict).flatMap((rule) => ruleLines(rule, familyOf(source)));
    if (lines.length === 0) return undefined;
    const text = [...new Set(lines)].join("\n");
    const known = this.#lists.get(text);
    if (known) return known;
    const list: RuleList = { name: `list${++this.#listsMade}`, text, uses: 0 };
    this.#lists.set(text, list);
    transaction.addList(list);
    return list;
  }

  #lookup({ address, bits }: Prefix, verdict: FilterVerdict, transaction: Transaction): Lookup {
    const family = isV6(address) ? 6 : 4;
    const name = `${verdict}${family}_${bits}`;
    const known = this.#lookups.get(name);
    if (known) return known;
    const lookup: Lookup = { name, family, verdict, bits, sources: new Map() };
    this.#lookups.set(name, lookup);
    transaction.addLookup(lookup);
    return lookup;
  }

  #rulesText(family: Family, otherwise: FilterVerdict): string {
    const lookups = [...this.#lookups.values()].filter((lookup) => lookup.family === family);
    const ofVerdict = (verdict: FilterVerdict): string[] =>
      lookups
        .filter((lookup) => lookup.verdict === verdict)
        .sort((a, b) => b.bits - a.bits)
        .map(({ name, bits }) => `${sourceText(family, bits)} vmap @${name}`);
    return [...VERDICTS.flatMap(ofVerdict), verdictText(otherwise)].join("\n");
  }
}

/** The lines of one change, in an order in which each finds what it refers to. */
class Transaction {
  /** Lists that a source does not use any more. */
  readonly released = new Set<RuleList>();
  readonly #table: string;
  readonly #lists: string[] = [];
  readonly #maps = new Set<Lookup>();
  readonly #removed = new Map<Lookup, string[]>();
  readonly #added = new Map<Lookup, string[]>();
  readonly #chains: string[] = [];
  readonly #oldMaps: string[] = [];
  readonly #oldLists: string[] = [];

  constructor(table: string) {
    this.#table = table;
  }

  addList({ name, text }: RuleList): void {
    this.#lists.push(
      `add chain ${this.#table} ${name}`,
      ...text.split("\n").map((rule) => `add rule ${this.#table} ${name} ${rule}`),
    );
  }

  addLookup(lookup: Lookup): void {
    this.#maps.add(lookup);
  }

  /** What a source had in the lookup is `to` from now on. */
  point(lookup: Lookup, address: string, from: RuleList | undefined, to: RuleList | undefined): void {
    if (from) pushTo(this.#removed, lookup, address);
    if (to) pushTo(this.#added, lookup, `${address} : jump ${to.name}`);
  }

  replaceRules(family: Family, text: string): void {
    const chain = `${this.#table} rules${family}`;
    this.#chains.push(`flush chain ${chain}`, ...text.split("\n").map((rule) => `add rule ${chain} ${rule}`));
  }

  removeLookup(lookup: Lookup): void {
    if (!this.#maps.delete(lookup)) this.#oldMaps.push(`delete map ${this.#table} ${lookup.name}`);
    this.#removed.delete(lookup);
  }

  removeList({ name }: RuleList): void {
    this.#oldLists.push(`flush chain ${this.#table} ${name}`, `delete chain ${this.#table} ${name}`);
  }

  text(): string {
    const maps = [...this.#maps].map(
      ({ name, family }) => `add map ${this.#table} ${name} { type ${addressType(family)} : verdict; }`,
    );
    const lines = [
      ...this.#lists,
      ...maps,
      ...this.#elements("delete", this.#removed),
      ...this.#elements("add", this.#added),
      ...this.#chains,
      ...this.#oldMaps,
      ...this.#oldLists,
    ];
    return lines.map((line) => `${line}\n`).join("");
  }

  #elements(verb: "add" | "delete", byLookup: ReadonlyMap<Lookup, readonly string[]>): string[] {
    const lines: string[] = [];
    for (const [{ name }, elements] of byLookup) {
      for (let at = 0; at < elements.length; at += ELEMENTS_PER_LINE) {
        const some = elements.slice(at, at + ELEMENTS_PER_LINE).join(", ");
        lines.push(`${verb} element ${this.#table} ${name} { ${some} }`);
      }
    }
    return lines;
  }
}

/** What nft says of a packet that the rule matches; two lines for TCP and UDP. */
function ruleLines({ destination, protocol, ports, verdict }: SourceRule, family: Family): string[] {
  const to = destination && destination.bits > 0 ? `${ip(family)} daddr ${formatPrefix(maskPrefix(destination))} ` : "";
  const transports = protocol === "all" && ports ? (["tcp", "udp"] as const) : [protocol];
  return transports.map((transport) => `${to}${protocolText(transport, ports, family)}${verdictText(verdict)}`);
}

function protocolText(protocol: FilterProtocol, ports: PortRange | undefined, family: Family): string {
  switch (protocol) {
    case "all":
      return "";
    case "icmp":
      return `meta l4proto ${ICMP[family]} `;
    case "tcp":
    case "udp":
      if (!ports || (ports.first === 0 && ports.last === 65_535)) return `meta l4proto ${protocol} `;
      return `${protocol} dport ${ports.first === ports.last ? ports.first : `${ports.first}-${ports.last}`} `;
    default:
      return unreachable(protocol);
  }
}

function verdictText(verdict: FilterVerdict): string {
  return verdict === "drop" ? "goto refuse" : "accept";
}

function familyOf({ address }: Prefix): Family {
  return isV6(address) ? 6 : 4;
}

function ip(family: Family): string {
  return family === 4 ? "ip" : "ip6";
}

function addressType(family: Family): string {
  return family === 4 ? "ipv4_addr" : "ipv6_addr";
}

/** The key of a lookup: the source address, cut to the prefix length. */
function sourceText(family: Family, bits: number): string {
  const all = family === 4 ? "255.255.255.255" : "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
  const { address } = maskPrefix({ address: parseIp(all), bits });
  return address === all ? `${ip(family)} saddr` : `${ip(family)} saddr & ${address}`;
}

function pushTo<Key>(lists: Map<Key, string[]>, key: Key, item: string): void {
  const list = lists.get(key);
  if (list) list.push(item);
  else lists.set(key, [item]);
}
