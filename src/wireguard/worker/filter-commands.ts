import type { Prefix } from "#base/ip.ts";
import { checkRules, type FilterRules, groupBySource, type SourceRule } from "../filter.ts";
import type { CommandSender } from "./commands.ts";
import { FilterMode } from "./filter.ts";
import { encodeRules } from "./filter-table.ts";
import { Command } from "./records.ts";

/** Replaces all rules at once; undefined switches the filter off. Throws FilterError before anything is sent. */
export function sendFilter(commands: CommandSender, rules: FilterRules | undefined): void {
  const groups = groupBySource(rules?.inbound ?? []);
  commands.send({ opcode: Command.filterBegin, slot: 0, argument: filterMode(rules) });
  for (const { source, rules: own } of groups.values()) send(commands, source, own);
  commands.send({ opcode: Command.filterCommit, slot: 0 });
}

/** Replaces the rules of one source; none forgets it. Throws FilterError. */
export function sendFilterSource(commands: CommandSender, source: Prefix, rules: readonly SourceRule[]): void {
  checkRules(source, rules);
  send(commands, source, rules);
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
