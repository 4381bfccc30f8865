import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { REPLAY_WINDOW, ReplayWindow } from "./replay-window.ts";

test("each counter is accepted once, in any order within the window", () => {
  const window = new ReplayWindow();
  for (const counter of [0, 1, 5, 3, 4, 2, 100, 64, 63, 31, 32]) {
    assert.equal(window.accept(counter), true, `first ${counter}`);
    assert.equal(window.accept(counter), false, `again ${counter}`);
  }
});

test("8127 old is accepted, 8129 old is refused", () => {
  for (const last of [8129, 1_000_000, 2 ** 32 + 5, 2 ** 52]) {
    const window = new ReplayWindow();
    assert.ok(window.accept(last));
    assert.equal(window.accept(last - 8127), true);
    assert.equal(window.accept(last - 8128), true);
    assert.equal(window.accept(last - 8129), false);
  }
});

test("big jumps forget what lies behind, and nothing behind is taken for new", () => {
  const window = new ReplayWindow();
  for (let i = 0; i < 8192; i++) assert.ok(window.accept(i));
  assert.ok(window.accept(8192 * 5));
  assert.equal(window.accept(8191), false);
  // Not seen, though its bit's place was used by an earlier counter.
  assert.equal(window.accept(8192 * 5 - 100), true);
});

test("it decides as a set of all seen counters does", () => {
  fc.assert(
    fc.property(
      fc.nat(2 ** 40),
      fc.array(fc.integer({ min: -9000, max: 9000 }), { maxLength: 500 }),
      (start, steps) => {
        const window = new ReplayWindow();
        const seen = new Set<number>();
        let last = 0;
        let counter = start;
        for (const step of steps) {
          counter = Math.max(0, last + step);
          const expected = last - counter <= REPLAY_WINDOW && !seen.has(counter);
          assert.equal(window.accept(counter), expected, `${counter} after ${last}`);
          if (expected) {
            seen.add(counter);
            last = Math.max(last, counter);
          }
        }
      },
    ),
  );
});
