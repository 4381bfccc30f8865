import assert from "node:assert/strict";
import { test } from "node:test";
import { FailedWakes } from "./failed-wakes.ts";

const HOUR = 3_600_000;

test("two failures in a row keep a peer for an hour; one that worked in between does not count", () => {
  const wakes = new FailedWakes<string>();
  assert.equal(wakes.noteFailed("a", 0), undefined);
  wakes.noteProven("a");
  assert.equal(wakes.noteFailed("a", 10), undefined);
  assert.equal(wakes.noteFailed("a", 20), 20 + HOUR);
  assert.equal(wakes.keptUntil("a"), 20 + HOUR);
  assert.equal(wakes.keptUntil("b"), undefined);
  assert.equal(wakes.kept, 1);
});

test("the term ends when the peer is connected, else it doubles, up to a day", () => {
  const wakes = new FailedWakes<string>();
  wakes.noteFailed("a", 0);
  let until = wakes.noteFailed("a", 0)!;
  const terms: number[] = [];
  for (let i = 0; i < 6; i++) {
    const next = wakes.endTerm("a", false, until)!;
    terms.push((next - until) / HOUR);
    until = next;
  }
  assert.deepEqual(terms, [2, 4, 8, 16, 24, 24]);
  wakes.noteProven("a");
  assert.equal(wakes.keptUntil("a"), until, "it has to work for the rest of its term");
  assert.equal(wakes.endTerm("a", true, until), undefined);
  assert.equal(wakes.kept, 0);
  assert.equal(wakes.noteFailed("a", until), undefined, "its failures are forgotten");
});
