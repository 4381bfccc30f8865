import { formatPrefix, type IpAddress, isHostPrefix, isV6, maskPrefix, type Prefix, prefixContains } from "#base/ip.ts";
import type { FilterVerdict, SourceRule } from "../filter.ts";

/**
 * How the rules are enforced:
 *
 *   open      each packet is judged by itself: whatever may come as a reply may come anyway
 *   tracked   who began a flow decides: there are rules to drop, or somebody who may not do everything
 */
export type RuleForm = "open" | "tracked";

/** Where sources may do everything. */
interface Place {
  readonly name: string;
  sources: number;
}

/** By the length of a prefix and its network address. */
type ByPrefix<Value> = Map<number, Map<IpAddress, Value>>;

/** The place of a rule without destination. */
const ANYWHERE = "anywhere";

/**
 * Knows from which prefixes peers may send and what the rules say about them, and decides whether packets have to be told from
 * replies: not so when no rule drops, and each prefix lies within a source that may do everything. Of a rule for one destination
 * that is so while all such rules of the family name the same one, which is our own address then.
 *
 * Pure. A change of a peer, and of the rules of an address, costs a few look-ups, however many there are; one of the rules of a
 * network costs a look at all peers.
 */
export class OpenSources {
  readonly #families = { 4: new Family(), 6: new Family() };
  /** Sources with rules to drop. */
  readonly #dropping = new Set<string>();
  #otherwise: FilterVerdict = "drop";

  /** A peer may send from the prefixes `now`, and from `before` no more; two peers may have the same for a while. */
  movePrefixes(before: readonly Prefix[], now: readonly Prefix[]): void {
    for (const prefix of now) this.#familyOf(prefix).addPrefix(maskPrefix(prefix));
    for (const prefix of before) this.#familyOf(prefix).removePrefix(maskPrefix(prefix));
  }

  /** What happens to packets that no rule matches. */
  set otherwise(verdict: FilterVerdict) {
    this.#otherwise = verdict;
  }

  /** All rules of this source, from now on. */
  setRules(source: Prefix, rules: readonly SourceRule[]): void {
    const prefix = maskPrefix(source);
    if (rules.some(({ verdict }) => verdict === "drop")) this.#dropping.add(formatPrefix(prefix));
    else if (this.#dropping.size > 0) this.#dropping.delete(formatPrefix(prefix));
    this.#familyOf(prefix).setOpen(prefix, placeOf(rules));
  }

  get form(): RuleForm {
    if (this.#dropping.size > 0) return "tracked";
    const isOpen = this.#otherwise === "accept" || (this.#families[4].isOpen && this.#families[6].isOpen);
    return isOpen ? "open" : "tracked";
  }

  #familyOf({ address }: Prefix): Family {
    return this.#families[isV6(address) ? 6 : 4];
  }
}

class Family {
  /** How many peers have each prefix. */
  readonly #peers: ByPrefix<number> = new Map();
  /** Sources that may do everything. */
  readonly #open: ByPrefix<Place> = new Map();
  /** Of the open sources, by name. */
  readonly #places = new Map<string, Place>();
  /** Prefixes of peers that lie in no open source. */
  #closed = 0;

  get isOpen(): boolean {
    return this.#closed === 0 && this.#places.size <= 1;
  }

  addPrefix(prefix: Prefix): void {
    const { address, bits } = prefix;
    const known = this.#peers.get(bits)?.get(address) ?? 0;
    put(this.#peers, prefix, known + 1);
    if (known > 0) return;
    if (!this.#isInOpen(prefix)) this.#closed++;
  }

  removePrefix(prefix: Prefix): void {
    const { address, bits } = prefix;
    const known = this.#peers.get(bits)?.get(address) ?? 0;
    if (known > 1) put(this.#peers, prefix, known - 1);
    if (known !== 1) return;
    take(this.#peers, prefix);
    if (!this.#isInOpen(prefix)) this.#closed--;
  }

  /** The source may do everything in this place; undefined: nowhere. */
  setOpen(source: Prefix, name: string | undefined): void {
    const before = this.#open.get(source.bits)?.get(source.address);
    if (before?.name === name) return;
    if (before && --before.sources === 0) this.#places.delete(before.name);
    if (name === undefined) {
      take(this.#open, source);
      for (const prefix of this.#prefixesIn(source)) if (!this.#isInOpen(prefix)) this.#closed++;
      return;
    }
    const place = this.#places.get(name) ?? { name, sources: 0 };
    this.#places.set(name, place);
    place.sources++;
    if (!before) for (const prefix of this.#prefixesIn(source)) if (!this.#isInOpen(prefix)) this.#closed--;
    put(this.#open, source, place);
  }

  #isInOpen({ address, bits }: Prefix): boolean {
    for (const [length, sources] of this.#open)
      if (length <= bits && sources.has(maskPrefix({ address, bits: length }).address)) return true;
    return false;
  }

  /** The prefixes of peers that lie within this one; looks at all of them where it is a network. */
  *#prefixesIn(network: Prefix): Iterable<Prefix> {
    if (isHostPrefix(network)) {
      if (this.#peers.get(network.bits)?.has(network.address)) yield network;
      return;
    }
    for (const [bits, addresses] of this.#peers) {
      if (bits < network.bits) continue;
      for (const address of addresses.keys()) if (prefixContains(network, address)) yield { address, bits };
    }
  }
}

/** Where the rules let in everything; undefined: nowhere, or in more than one place. */
function placeOf(rules: readonly SourceRule[]): string | undefined {
  const wide = rules.filter(({ verdict, protocol, ports }) => verdict === "accept" && protocol === "all" && !ports);
  const places = new Set(
    wide.map(({ destination }) =>
      destination && destination.bits > 0 ? formatPrefix(maskPrefix(destination)) : ANYWHERE,
    ),
  );
  if (places.has(ANYWHERE)) return ANYWHERE;
  return places.size === 1 ? [...places][0] : undefined;
}

function put<Value>(all: ByPrefix<Value>, { address, bits }: Prefix, value: Value): void {
  const ofLength = all.get(bits);
  if (ofLength) ofLength.set(address, value);
  else all.set(bits, new Map([[address, value]]));
}

function take<Value>(all: ByPrefix<Value>, { address, bits }: Prefix): void {
  const ofLength = all.get(bits);
  ofLength?.delete(address);
  if (ofLength?.size === 0) all.delete(bits);
}
