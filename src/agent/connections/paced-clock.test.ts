import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { type Clock, ManualClock } from "#base/time.ts";
import { CALLBACKS_PER_TURN, PacedClock } from "./paced-clock.ts";

/** A clock that counts what runs in one callback of the clock below. */
function setup() {
  const manual = new ManualClock(1_000);
  const turns: number[] = [];
  const below: Clock = {
    now: () => manual.now(),
    wall: () => manual.wall(),
    after: (delay, callback) =>
      manual.after(delay, () => {
        turns.push(0);
        callback();
      }),
  };
  return { manual, turns, paced: new PacedClock(below) };
}

test("of many callbacks that are due at once a few run in a turn, all in the end", () => {
  const { manual, turns, paced } = setup();
  let run = 0;
  const count = 10 * CALLBACKS_PER_TURN;
  for (let i = 0; i < count; i++) {
    paced.after(100, () => {
      run++;
      turns[turns.length - 1]!++;
    });
  }
  assert.equal(manual.pending, 1);
  manual.advance(100);
  assert.equal(run, count);
  assert.ok(turns.every((each) => each <= CALLBACKS_PER_TURN));
  assert.equal(manual.pending, 0);
});

test("a callback that throws does not keep the others from running", () => {
  const { manual, paced } = setup();
  let run = false;
  paced.after(1, () => {
    throw new Error("a mistake");
  });
  paced.after(2, () => {
    run = true;
  });
  assert.throws(() => manual.advance(1), /a mistake/);
  manual.advance(1);
  assert.ok(run);
});

test("random timers fire when they would without, those that were cancelled never", () => {
  const timer = fc.record({ delay: fc.nat(50), cancelAt: fc.option(fc.nat(60)) });
  fc.assert(
    fc.property(fc.array(timer, { maxLength: 40 }), (timers) => {
      const { manual, paced } = setup();
      const fired = new Map<number, number>();
      timers.forEach(({ delay, cancelAt }, index) => {
        const handle = paced.after(delay, () => fired.set(index, manual.now() - 1_000));
        if (cancelAt !== null) manual.after(cancelAt, () => handle.cancel());
      });
      manual.advance(100);
      timers.forEach(({ delay, cancelAt }, index) => {
        if (cancelAt === null || cancelAt > delay) assert.equal(fired.get(index), delay);
        else if (cancelAt < delay) assert.equal(fired.has(index), false);
      });
      assert.equal(manual.pending, 0);
    }),
  );
});
