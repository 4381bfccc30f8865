import assert from "node:assert/strict";
import { test } from "node:test";
import type { TestEvent } from "node:test/reporters";
import { createTotals } from "./test-totals.ts";

const summaryOf = (counts: Record<string, number>, success: boolean, file?: string): TestEvent =>
  ({ type: "test:summary", data: { counts, success, duration_ms: 5, file } }) as unknown as TestEvent;
const finished = (name: string, skip?: string | boolean): TestEvent =>
  ({ type: "test:pass", data: { name, nesting: 0, skip } }) as unknown as TestEvent;
const diagnostic = (message: string, file?: string): TestEvent =>
  ({ type: "test:diagnostic", data: { message, nesting: 0, file } }) as unknown as TestEvent;

test("several runs close with one summary in node's form", () => {
  const totals = createTotals();
  const counts = { tests: 3, suites: 1, passed: 2, failed: 0, cancelled: 0, skipped: 1, todo: 0 };
  assert.equal(totals.note(summaryOf(counts, true, "/a.test.ts")), true, "a file's summary is not the run's");
  assert.equal(totals.note(summaryOf(counts, true)), false);
  assert.equal(totals.note(summaryOf({ ...counts, skipped: 0, passed: 3 }, true)), false);
  assert.equal(totals.success, true);
  assert.deepEqual(
    totals.summary().map((event) => (event.type === "test:diagnostic" ? event.data.message : "")),
    ["tests 6", "suites 2", "pass 5", "fail 0", "cancelled 0", "skipped 1", "todo 0", "duration_ms 10"],
  );
});

test("one failed run fails all, whatever follows", () => {
  const totals = createTotals();
  totals.note(summaryOf({ tests: 1, failed: 1 }, false));
  totals.note(summaryOf({ tests: 1, passed: 1 }, true));
  assert.equal(totals.success, false);
  assert.equal(totals.counts.failed, 1);
});

test("skipped tests are listed with their reason", () => {
  const totals = createTotals();
  for (const event of [finished("ran"), finished("no reason", true), finished("needs root", "not root")])
    totals.note(event);
  assert.deepEqual(totals.skipped, [
    { name: "no reason", reason: "" },
    { name: "needs root", reason: "not root" },
  ]);
});

test("a test's own diagnostics are reported, a run's closing lines are not", () => {
  const totals = createTotals();
  assert.equal(totals.note(diagnostic("tests 12")), false);
  assert.equal(totals.note(diagnostic("duration_ms 12.5")), false);
  assert.equal(totals.note(diagnostic("tests 12", "/a.test.ts")), true);
  assert.equal(totals.note(diagnostic("seed 4711")), true);
});
