import assert from "node:assert/strict";
import { test } from "node:test";
import { ManualClock } from "#base/time.ts";
import { MAX_HOLD, QUIET_PERIOD, UpdateGate } from "./update-gate.ts";

function setup(): { clock: ManualClock; gate: UpdateGate; times: number[] } {
  const clock = new ManualClock();
  const times: number[] = [];
  return { clock, times, gate: new UpdateGate(clock, () => times.push(clock.now())) };
}

test("5.4: the first update goes out at once, a burst after it becomes one after a quiet second", () => {
  const { clock, gate, times } = setup();
  gate.note();
  assert.deepEqual(times, [0]);
  for (let i = 0; i < 5; i++) {
    clock.advance(300);
    gate.note();
  }
  clock.advance(QUIET_PERIOD - 1);
  assert.deepEqual(times, [0]);
  clock.advance(1);
  assert.deepEqual(times, [0, 2500]);
});

test("5.4: after a quiet second with nothing held the next update goes out at once again, without a timer", () => {
  const { clock, gate, times } = setup();
  gate.note();
  clock.advance(QUIET_PERIOD);
  assert.equal(clock.pending, 0);
  gate.note();
  gate.note();
  clock.advance(QUIET_PERIOD);
  clock.advance(QUIET_PERIOD);
  assert.equal(clock.pending, 0);
  gate.note();
  assert.deepEqual(times, [0, 1000, 2000, 3000]);
});

test("updates that never pause are still told after the longest hold", () => {
  const { clock, gate, times } = setup();
  gate.note();
  for (let i = 0; i < 100; i++) {
    clock.advance(100);
    gate.note();
  }
  assert.equal(times[1], 100 + MAX_HOLD);
});

test("a closed gate has no timer and says nothing", () => {
  const { clock, gate, times } = setup();
  gate.note();
  gate.note();
  gate.close();
  assert.equal(clock.pending, 0);
  clock.advance(10_000);
  assert.deepEqual(times, [0]);
});
