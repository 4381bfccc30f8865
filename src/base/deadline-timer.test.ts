import assert from "node:assert/strict";
import { test } from "node:test";
import { DeadlineTimer } from "./deadline-timer.ts";
import { ManualClock } from "./time.ts";

test("it fires once for the latest deadline given, late ones at once, and none when there is none", () => {
  const clock = new ManualClock(1000);
  const fired: number[] = [];
  const timer = new DeadlineTimer(clock, () => fired.push(clock.now()));
  timer.set(1100);
  timer.set(1050);
  timer.set(1050);
  assert.equal(clock.pending, 1);
  clock.advance(200);
  assert.deepEqual(fired, [1050]);
  timer.set(1050);
  clock.advance(0);
  assert.deepEqual(fired, [1050, 1200]);
  timer.set(1300);
  timer.set(undefined);
  clock.advance(500);
  assert.deepEqual({ fired, pending: clock.pending }, { fired: [1050, 1200], pending: 0 });
});
