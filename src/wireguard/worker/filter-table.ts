import { ipToBytes } from "#base/ip.ts";
import type { FilterProtocol, SourceRule } from "../filter.ts";
import { AllowedIps } from "./allowed-ips.ts";
import { type InnerFlow, PROTOCOL_ICMP, PROTOCOL_ICMPV6, Shape } from "./inner-flow.ts";
import { PROTOCOL_TCP, PROTOCOL_UDP } from "./inner-packet.ts";

/**
 * A rule in a record's payload:
 *
 *   off  size
 *     0     1  1 accept, 0 drop
 *     1     1  protocol: 0 all, 1 TCP and UDP, 2 TCP, 3 UDP, 4 ICMP
 *     2     1  bits of the destination, 255 any
 *     3     1  0
 *     4     2  first port
 *     6     2  last port
 *     8    16  destination (v4 in the first 4 bytes)
 */
export const RULE_BYTES = 24;

const RuleProtocol = { all: 0, ports: 1, tcp: 2, udp: 3, icmp: 4 } as const;
const ANY_DESTINATION = 255;
const ALL_PORTS = { first: 0, last: 65_535 } as const;

/** Writes the rules for `FilterTable.set`. They were checked (`checkRules`). */
export function encodeRules(rules: readonly SourceRule[]): Uint8Array {
  const bytes = new Uint8Array(rules.length * RULE_BYTES);
  const view = new DataView(bytes.buffer);
  rules.forEach(({ verdict, protocol, ports, destination }, index) => {
    const at = index * RULE_BYTES;
    const { first, last } = ports ?? ALL_PORTS;
    bytes[at] = verdict === "accept" ? 1 : 0;
    bytes[at + 1] = protocolCode(protocol, ports !== undefined);
    bytes[at + 2] = destination?.bits ?? ANY_DESTINATION;
    view.setUint16(at + 4, first, true);
    view.setUint16(at + 6, last, true);
    if (destination) bytes.set(ipToBytes(destination.address), at + 8);
  });
  return bytes;
}

function protocolCode(protocol: FilterProtocol, hasPorts: boolean): number {
  return protocol === "all" && hasPorts ? RuleProtocol.ports : RuleProtocol[protocol];
}

/** The rules of one or many sources that are the same. */
interface RuleSet {
  readonly text: string;
  readonly count: number;
  readonly accept: Uint8Array;
  readonly protocol: Uint8Array;
  readonly first: Uint16Array;
  readonly last: Uint16Array;
  /** Bits, 255 any, and the masked address in four words. */
  readonly destinationBits: Uint8Array;
  readonly destination: Int32Array;
  /** Sources that use it. */
  uses: number;
}

/**
 * The compiled rules: source prefix to rule set. A lookup asks once for each prefix length in use; most networks have
 * host prefixes only. Sources with the same rules, which is most of them, share one set.
 */
export class FilterTable {
  readonly #v4 = new AllowedIps(32);
  readonly #v6 = new AllowedIps(128);
  readonly #sets: (RuleSet | undefined)[] = [];
  readonly #byText = new Map<string, number>();
  readonly #freeSets: number[] = [];
  /** Verdict when no rule matches. */
  readonly #otherwise: boolean;

  constructor(acceptOtherwise: boolean) {
    this.#otherwise = acceptOtherwise;
  }

  /** Sources with rules. */
  get size(): number {
    return this.#v4.size + this.#v6.size;
  }

  /** Distinct sets of rules. */
  get sets(): number {
    return this.#byText.size;
  }

  /**
   * The rules of a source are those in `bytes` (see `encodeRules`) from now on; none removes it. `view` holds its address in
   * network order at `at`.
   */
  set(isV6Source: boolean, view: DataView, at: number, bits: number, bytes: Uint8Array): void {
    const table = isV6Source ? this.#v6 : this.#v4;
    const word = (index: number): number => (isV6Source || index === 0 ? view.getInt32(at + 4 * index) : 0);
    const [a, b, c, d] = [word(0), word(1), word(2), word(3)] as const;
    const before = table.exact(a, b, c, d, bits);
    if (bytes.length < RULE_BYTES) {
      if (before >= 0) table.remove(a, b, c, d, bits, before);
    } else {
      table.add(a, b, c, d, bits, this.#take(bytes));
    }
    if (before >= 0) this.#giveBack(before);
  }

  /**
   * Whether a packet with the flow's addresses and protocol may begin a flow; `reversed` asks for the packet that would
   * come the other way.
   */
  accepts(flow: InnerFlow, reversed: boolean): boolean {
    const table = flow.isV6 ? this.#v6 : this.#v4;
    const { lengths } = table;
    const a = reversed ? flow.destination0 : flow.source0;
    const b = reversed ? flow.destination1 : flow.source1;
    const c = reversed ? flow.destination2 : flow.source2;
    const d = reversed ? flow.destination3 : flow.source3;
    let accepted = this.#otherwise;
    for (let i = 0; i < lengths.length; i++) {
      const index = table.exact(a, b, c, d, lengths[i]!);
      if (index < 0) continue;
      const set = this.#sets[index]!;
      for (let rule = 0; rule < set.count; rule++) {
        const isAccept = set.accept[rule] === 1;
        if (!matches(set, rule, flow, reversed, isAccept)) continue;
        if (!isAccept) return false;
        accepted = true;
      }
    }
    return accepted;
  }

  #take(bytes: Uint8Array): number {
    const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("latin1");
    const known = this.#byText.get(text);
    if (known !== undefined) {
      this.#sets[known]!.uses++;
      return known;
    }
    const index = this.#freeSets.pop() ?? this.#sets.length;
    this.#sets[index] = compile(text, bytes);
    this.#byText.set(text, index);
    return index;
  }

  #giveBack(index: number): void {
    const set = this.#sets[index]!;
    if (--set.uses > 0) return;
    this.#byText.delete(set.text);
    this.#sets[index] = undefined;
    this.#freeSets.push(index);
  }
}

function compile(text: string, bytes: Uint8Array): RuleSet {
  const count = Math.floor(bytes.length / RULE_BYTES);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const set: RuleSet = {
    text,
    count,
    accept: new Uint8Array(count),
    protocol: new Uint8Array(count),
    first: new Uint16Array(count),
    last: new Uint16Array(count),
    destinationBits: new Uint8Array(count),
    destination: new Int32Array(4 * count),
    uses: 1,
  };
  for (let i = 0; i < count; i++) {
    const at = i * RULE_BYTES;
    const bits = bytes[at + 2]!;
    set.accept[i] = bytes[at]!;
    set.protocol[i] = bytes[at + 1]!;
    set.destinationBits[i] = bits;
    set.first[i] = view.getUint16(at + 4, true);
    set.last[i] = view.getUint16(at + 6, true);
    if (bits === ANY_DESTINATION) continue;
    for (let word = 0; word < 4; word++)
      set.destination[4 * i + word] = view.getInt32(at + 8 + 4 * word) & maskWord(bits - 32 * word);
  }
  return set;
}

/** Whether one rule matches; a packet that cannot be read to its end is taken for whatever an accept rule does not want. */
function matches(set: RuleSet, rule: number, flow: InnerFlow, reversed: boolean, isAccept: boolean): boolean {
  const bits = set.destinationBits[rule]!;
  if (bits !== ANY_DESTINATION && !isWithin(set.destination, 4 * rule, bits, flow, reversed)) return false;
  const wanted = set.protocol[rule]!;
  if (wanted === RuleProtocol.all) return true;
  if (flow.shape === Shape.opaque) return !isAccept;
  const { protocol } = flow;
  if (wanted === RuleProtocol.icmp) return protocol === (flow.isV6 ? PROTOCOL_ICMPV6 : PROTOCOL_ICMP);
  const isTcp = protocol === PROTOCOL_TCP;
  if (!isTcp && protocol !== PROTOCOL_UDP) return false;
  if (wanted !== RuleProtocol.ports && isTcp !== (wanted === RuleProtocol.tcp)) return false;
  const port = reversed ? flow.sourcePort : flow.destinationPort;
  return port >= set.first[rule]! && port <= set.last[rule]!;
}

function isWithin(words: Int32Array, at: number, bits: number, flow: InnerFlow, reversed: boolean): boolean {
  const a = reversed ? flow.source0 : flow.destination0;
  if ((a & maskWord(bits)) !== words[at]) return false;
  if (bits <= 32) return true;
  const b = reversed ? flow.source1 : flow.destination1;
  const c = reversed ? flow.source2 : flow.destination2;
  const d = reversed ? flow.source3 : flow.destination3;
  return (
    (b & maskWord(bits - 32)) === words[at + 1] &&
    (c & maskWord(bits - 64)) === words[at + 2] &&
    (d & maskWord(bits - 96)) === words[at + 3]
  );
}

/** The first `bits` bits of a word: none below 1, all from 32 on. */
function maskWord(bits: number): number {
  if (bits <= 0) return 0;
  return bits >= 32 ? -1 : -1 << (32 - bits);
}
