import { Emitter } from "#base/emitter.ts";
import { messageOf } from "#base/errors.ts";
import { formatPrefix, maskPrefix, type Prefix } from "#base/ip.ts";
import type { Millis } from "#base/time.ts";
import { checkRules, type FilterRules, type FilterVerdict, groupBySource, type SourceRule } from "../filter.ts";
import { ExternalDeviceError } from "./external-error.ts";
import { type Nft, nftProgram } from "./nft.ts";
import { NFT_DROP_COUNTER } from "./nft-flows.ts";
import { isNftInterfaceName, NftTable, nftRemoval, nftTableName, type SourceChange } from "./nft-table.ts";
import { OpenSources } from "./open-sources.ts";
import type { PacketRules, PacketRulesEvents } from "./parts.ts";

/** Between two questions for the count of dropped packets, each of which is a process. */
const COUNT_INTERVAL: Millis = 1000;

/** A set of rules; sources by their text, those without rules are not there. */
interface Wanted {
  readonly sources: Map<string, SourceChange>;
  readonly otherwise: FilterVerdict;
}

/**
 * The packet filter of an interface by nftables, in a table of its own: what other tables drop stays dropped. Changes are
 * gathered while nft works, and then made in one transaction.
 */
export class NftRules implements PacketRules {
  readonly events = new Emitter<PacketRulesEvents>();
  readonly #interfaceName: string;
  readonly #nft: Nft;
  /** Why this machine cannot filter. */
  readonly #unusable: ExternalDeviceError | undefined;
  #wanted: Wanted | undefined;
  /** What is in the kernel; undefined: no table. */
  #table: NftTable | undefined;
  /** There may be one. */
  #isMade = false;
  /** Somebody took it away, maybe we ourselves. */
  #isSuspect = false;
  #stopWatching: (() => void) | undefined;
  /** What is wanted, as far as the form of the table depends on it. */
  readonly #open = new OpenSources();
  /** Sources whose rules may not be in the kernel as they are wanted. */
  readonly #changed = new Map<string, Prefix>();
  #isChanged = false;
  #working: Promise<void> | undefined;
  /** Packets dropped, as far as they were counted last; of earlier tables. */
  #dropped = 0;
  #droppedBefore = 0;
  #countedAt = Number.NEGATIVE_INFINITY;
  #closed = false;

  private constructor(interfaceName: string, nft: Nft, unusable: ExternalDeviceError | undefined) {
    this.#interfaceName = interfaceName;
    this.#nft = nft;
    this.#unusable = unusable;
  }

  /**
   * Asks the machine whether it can filter; if not, rules are refused with the reason. What an earlier owner of the interface
   * left is taken away.
   */
  static async open(interfaceName: string, nft: Nft = nftProgram()): Promise<NftRules> {
    try {
      await probeNft(interfaceName, nft);
      await nft.run(nftRemoval(interfaceName));
    } catch (error) {
      if (!(error instanceof ExternalDeviceError)) throw error;
      return new NftRules(interfaceName, nft, error);
    }
    return new NftRules(interfaceName, nft, undefined);
  }

  set(rules: FilterRules | undefined): void {
    if (this.#closed) return;
    const wanted = rules && this.#read(rules);
    for (const [text, { source }] of this.#wanted?.sources ?? []) {
      this.#changed.set(text, source);
      if (!wanted?.sources.has(text)) this.#open.setRules(source, []);
    }
    for (const [text, { source, rules: own }] of wanted?.sources ?? []) {
      this.#changed.set(text, source);
      this.#open.setRules(source, own);
    }
    this.#open.otherwise = wanted?.otherwise ?? "drop";
    this.#wanted = wanted;
    this.#work();
  }

  setSource(source: Prefix, rules: readonly SourceRule[]): void {
    if (this.#closed) return;
    checkRules(source, rules);
    if (this.#unusable) throw this.#unusable;
    // As in the embedded filter: what is said before there is a set of rules is forgotten with it.
    if (!this.#wanted) return;
    const text = formatPrefix(maskPrefix(source));
    if (rules.length > 0) this.#wanted.sources.set(text, { source, rules });
    else this.#wanted.sources.delete(text);
    this.#open.setRules(source, rules);
    this.#changed.set(text, source);
    this.#work();
  }

  movePrefixes(before: readonly Prefix[], now: readonly Prefix[]): void {
    if (this.#closed) return;
    this.#open.movePrefixes(before, now);
    if (this.#wanted && this.#open.form !== this.#table?.form) this.#work();
  }

  /** `drop-filter` is what the last question had for an answer, and asks anew: who looks now and then is a moment behind. */
  counters(): ReadonlyMap<string, number> {
    const now = performance.now();
    if (this.#table && now - this.#countedAt >= COUNT_INTERVAL) {
      this.#countedAt = now;
      void this.#count(this.#table);
    }
    return new Map([
      ["drop-filter", this.#droppedBefore + this.#dropped],
      ["filter-tracked", this.#table?.form === "tracked" ? 1 : 0],
    ]);
  }

  async #count(table: NftTable): Promise<void> {
    try {
      const dropped = await this.#nft.count(nftTableName(this.#interfaceName), NFT_DROP_COUNTER);
      if (table === this.#table) this.#dropped = dropped;
    } catch {
      // It is being taken away.
    }
  }

  async settled(): Promise<void> {
    while (this.#working) await this.#working;
  }

  async close(): Promise<void> {
    if (!this.#closed) {
      this.set(undefined);
      this.#closed = true;
    }
    await this.settled();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Throws FilterError, and why this machine cannot filter. */
  #read({ inbound, otherwise }: FilterRules): Wanted {
    const sources = new Map<string, SourceChange>();
    for (const { source, rules } of groupBySource(inbound).values()) {
      const text = formatPrefix(maskPrefix(source));
      sources.set(text, { source, rules: [...(sources.get(text)?.rules ?? []), ...rules] });
    }
    if (this.#unusable) throw this.#unusable;
    return { sources, otherwise };
  }

  /** Brings the kernel to what is wanted, unless that is under way. */
  #work(): void {
    this.#isChanged = true;
    this.#working ??= this.#bringAbout();
  }

  async #bringAbout(): Promise<void> {
    // What is said in one go is done in one.
    await Promise.resolve();
    while (this.#isChanged) {
      this.#isChanged = false;
      const changed = [...this.#changed];
      this.#changed.clear();
      try {
        if (!(await this.#update(changed))) await this.#replace();
      } catch (error) {
        this.#table = undefined;
        this.events.emit("failed", { reason: messageOf(error) });
      }
    }
    this.#working = undefined;
  }

  /** Rules that are gone let everything in: `nft flush ruleset`, as a firewall does when it starts, takes ours away too. */
  #watch(): void {
    this.#stopWatching ??= this.#nft.watchRemovals((table) => {
      if ((table !== undefined && table !== nftTableName(this.#interfaceName)) || !this.#table) return;
      this.#isSuspect = true;
      this.#work();
    });
  }

  /** Changes what is there; false: that is not possible. */
  async #update(changed: readonly (readonly [string, Prefix])[]): Promise<boolean> {
    if (!this.#table || !this.#wanted) return false;
    const { sources, otherwise } = this.#wanted;
    const wasSuspect = this.#isSuspect;
    this.#isSuspect = false;
    const changes = changed.map(([text, source]) => sources.get(text) ?? { source, rules: [] });
    const text = this.#table.update(changes, otherwise, this.#open.form);
    try {
      if (text !== "") await this.#nft.run(text);
      else if (wasSuspect) await this.#nft.run(this.#table.touch(), { check: true });
      return true;
    } catch {
      // Somebody else took the table away, or changed it. What is wanted is known; what is wrong, the whole of it will tell.
      return false;
    }
  }

  async #replace(): Promise<void> {
    if (this.#wanted) {
      const { sources, otherwise } = this.#wanted;
      const table = new NftTable(this.#interfaceName);
      this.#isMade = true;
      await this.#nft.run(table.create(sources.values(), otherwise, this.#open.form));
      this.#table = table;
      this.#droppedBefore += this.#dropped;
      this.#dropped = 0;
      this.#watch();
      return;
    }
    this.#table = undefined;
    this.#stopWatching?.();
    this.#stopWatching = undefined;
    if (this.#isMade) await this.#nft.run(nftRemoval(this.#interfaceName));
    this.#isMade = false;
  }
}

/**
 * Whether this machine could filter packets of the interface; changes nothing. Throws ExternalDeviceError `program-missing`,
 * `not-permitted`, `kernel-unsupported` or `control-failed`.
 */
export async function probeNft(interfaceName: string, nft: Nft = nftProgram()): Promise<void> {
  if (!isNftInterfaceName(interfaceName))
    throw new ExternalDeviceError("control-failed", `nft cannot name the interface ${JSON.stringify(interfaceName)}`);
  await nft.run(new NftTable(interfaceName).create([], "drop", "tracked"), { check: true });
}

/** Takes away the filter of an interface whose owner died; without nft there is none. Throws ExternalDeviceError. */
export async function removeNftRules(interfaceName: string, nft: Nft = nftProgram()): Promise<void> {
  try {
    await nft.run(nftRemoval(interfaceName));
  } catch (error) {
    if ((error as ExternalDeviceError).code !== "program-missing") throw error;
  }
}
