import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import fc from "fast-check";
import { ManualClock, systemClock } from "./time.ts";

describe("the manual clock", () => {
  test("fires what becomes due in order of time, ties in order of arming", () => {
    fc.assert(
      fc.property(fc.array(fc.nat(50), { maxLength: 40 }), fc.array(fc.nat(30), { maxLength: 6 }), (delays, steps) => {
        const clock = new ManualClock(1000);
        const fired: number[] = [];
        delays.forEach((delay, index) => {
          clock.after(delay, () => {
            assert.equal(clock.now(), 1000 + delay);
            fired.push(index);
          });
        });
        for (const step of steps) clock.advance(step);
        const elapsed = steps.reduce((sum, step) => sum + step, 0);
        // No step: nothing fires, not even what is due now.
        const expected = delays
          .map((delay, index) => ({ delay, index }))
          .filter(({ delay }) => steps.length > 0 && delay <= elapsed)
          .sort((a, b) => a.delay - b.delay || a.index - b.index)
          .map(({ index }) => index);
        assert.deepEqual(fired, expected);
        assert.equal(clock.pending, delays.length - fired.length);
        assert.equal(clock.now(), 1000 + elapsed);
      }),
    );
  });

  test("fires timers armed on the way, at their own time", () => {
    const clock = new ManualClock();
    const fired: number[] = [];
    const again = (): void => {
      fired.push(clock.now());
      if (fired.length < 4) clock.after(10, again);
    };
    clock.after(10, again);
    clock.advance(35);
    assert.deepEqual(fired, [10, 20, 30]);
    clock.advance(5);
    assert.deepEqual(fired, [10, 20, 30, 40]);
    assert.equal(clock.pending, 0);
  });

  test("a cancelled timer does not fire, also when cancelled by one that fires before it", () => {
    const clock = new ManualClock();
    const fired: string[] = [];
    const second = clock.after(5, () => fired.push("second"));
    clock.after(4, () => {
      fired.push("first");
      second.cancel();
      second.cancel();
    });
    clock.advance(10);
    assert.deepEqual(fired, ["first"]);
  });

  test("a step of the wall clock moves no timer", () => {
    const clock = new ManualClock(0, 1_800_000_000_000);
    let fired = 0;
    clock.after(100, () => fired++);
    clock.stepWall(3_600_000);
    assert.equal(clock.wall(), 1_800_003_600_000);
    assert.equal(clock.now(), 0);
    clock.advance(99);
    assert.equal(fired, 0);
    clock.stepWall(-7_200_000);
    clock.advance(1);
    assert.equal(fired, 1);
    assert.equal(clock.wall(), 1_800_000_000_000 - 3_600_000 + 100);
  });
});

describe("the system clock", () => {
  test("fires once after the delay, and not when cancelled", async () => {
    const start = systemClock.now();
    let cancelledFired = false;
    systemClock
      .after(1, () => {
        cancelledFired = true;
      })
      .cancel();
    // The clock's timers do not keep the process alive; this one does.
    const alive = setTimeout(() => {}, 5000);
    await new Promise<void>((resolve) => void systemClock.after(20, resolve));
    clearTimeout(alive);
    assert.ok(systemClock.now() - start >= 19);
    assert.equal(cancelledFired, false);
  });

  test("a delay longer than setTimeout takes does not fire at once", async () => {
    let fired = false;
    const timer = systemClock.after(2 ** 31 + 1000, () => {
      fired = true;
    });
    const endless = systemClock.after(Number.POSITIVE_INFINITY, () => {
      fired = true;
    });
    await sleep(30);
    timer.cancel();
    endless.cancel();
    assert.equal(fired, false);
  });
});
