import { formatPrefix, type Prefix } from "#base/ip.ts";
import { checkRules, type FilterRules, groupBySource, type SourceRule } from "../filter.ts";
import type { CommandSender } from "./commands.ts";
import { FilterMode } from "./filter.ts";
import { encodeRules } from "./filter-table.ts";
import { Command } from "./records.ts";

/** Writes the packet filter's rules for the worker, and keeps them for a worker that takes over. */
export class FilterSender {
  #mode: FilterMode = FilterMode.off;
  readonly #sources = new Map<string, { readonly source: Prefix; readonly rules: readonly SourceRule[] }>();

  /** Replaces all rules at once; undefined switches the filter off. Throws FilterError before anything is sent. */
  set(commands: CommandSender, rules: FilterRules | undefined): void {
    const groups = groupBySource(rules?.inbound ?? []);
    this.#mode = filterMode(rules);
    this.#sources.clear();
    for (const [text, group] of groups) this.#sources.set(text, group);
    this.#sendAll(commands);
  }

  /** Replaces the rules of one source; none forgets it. Throws FilterError. */
  setSource(commands: CommandSender, source: Prefix, rules: readonly SourceRule[]): void {
    checkRules(source, rules);
    const text = formatPrefix(source);
    if (rules.length === 0) this.#sources.delete(text);
    else this.#sources.set(text, { source, rules });
    send(commands, source, rules);
  }

  /** All rules in force, for a worker that has none. */
  repeat(commands: CommandSender): void {
    if (this.#mode !== FilterMode.off || this.#sources.size > 0) this.#sendAll(commands);
  }

  #sendAll(commands: CommandSender): void {
    commands.send({ opcode: Command.filterBegin, slot: 0, argument: this.#mode });
    for (const { source, rules } of this.#sources.values()) send(commands, source, rules);
    commands.send({ opcode: Command.filterCommit, slot: 0 });
  }
}

function send(commands: CommandSender, { address, bits }: Prefix, rules: readonly SourceRule[]): void {
  const encoded = encodeRules(rules);
  commands.send({
    opcode: Command.filterSource,
    slot: 0,
    address,
    argument: bits,
    payloadBytes: encoded.length,
    fill: (bytes, at) => bytes.set(encoded, at),
  });
}

function filterMode(rules: FilterRules | undefined): FilterMode {
  if (!rules) return FilterMode.off;
  return rules.otherwise === "accept" ? FilterMode.acceptOtherwise : FilterMode.dropOtherwise;
}
