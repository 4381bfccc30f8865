import assert from "node:assert/strict";
import { test } from "node:test";
import type { DeviceMark } from "./device-mark.ts";
import { FilterRecord } from "./filter-record.ts";
import { ScriptedRules } from "./testing/scripted-parts.ts";

const MARK: DeviceMark = { kind: "kernel", interfaceName: "wg-test", index: 70_000 };

for (const [what, fails, calls] of [
  ["is removed with the device", false, ["write", "remove"]],
  ["stays while the filter may be left", true, ["write"]],
] as const)
  test(`the record ${what}`, () => {
    const seen: string[] = [];
    const record = new FilterRecord({ write: () => seen.push("write"), remove: () => seen.push("remove") });
    const rules = new ScriptedRules();
    record.write(MARK);
    record.watch(rules);
    if (fails) rules.events.emit("failed", { reason: "nft: no such program" });
    record.remove();
    assert.deepEqual(seen, calls);
  });
