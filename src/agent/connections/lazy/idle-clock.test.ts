import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { ManualClock } from "#base/time.ts";
import { IdleClock } from "./idle-clock.ts";

test("a key is looked at when its time has come, and again when it says so", () => {
  const clock = new ManualClock();
  const looks: [string, number][] = [];
  const idle = new IdleClock<string>(clock, (key, now) => {
    looks.push([key, now]);
    return looks.length < 3 ? now + 50 : undefined;
  });
  idle.watch("a", 100);
  clock.advance(1000);
  assert.deepEqual(looks, [
    ["a", 100],
    ["a", 150],
    ["a", 200],
  ]);
  assert.equal(idle.size, 0);
  assert.equal(clock.pending, 0);
});

test("any number of watched keys has one timer, none watched has none", () => {
  const clock = new ManualClock();
  const idle = new IdleClock<number>(clock, () => undefined);
  for (let key = 0; key < 1000; key++) idle.watch(key, 5000 - key);
  assert.equal(clock.pending, 1);
  for (let key = 0; key < 1000; key++) idle.unwatch(key);
  assert.equal(clock.pending, 0);
});

test("random watches and unwatches come due like in a sorted list", () => {
  const operation = fc.record({ key: fc.nat(20), at: fc.nat(1000), remove: fc.boolean() });
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 60 }), (operations) => {
      const clock = new ManualClock();
      const seen: [number, number][] = [];
      const idle = new IdleClock<number>(clock, (key, now) => {
        seen.push([now, key]);
        return undefined;
      });
      const model = new Map<number, number>();
      for (const { key, at, remove } of operations) {
        if (remove) {
          idle.unwatch(key);
          model.delete(key);
        } else {
          idle.watch(key, at);
          model.set(key, at);
        }
      }
      clock.advance(2000);
      const byTime = (a: [number, number], b: [number, number]): number => a[0] - b[0] || a[1] - b[1];
      assert.deepEqual(seen.sort(byTime), [...model].map(([key, at]): [number, number] => [at, key]).sort(byTime));
    }),
  );
});
