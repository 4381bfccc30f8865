import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Backoff } from "./backoff.ts";

test("without jitter delays grow by the factor up to the ceiling and stay there", () => {
  const backoff = new Backoff({ start: 500, factor: 1.5, ceiling: 2000, jitter: 0 });
  assert.deepEqual(
    Array.from({ length: 6 }, () => backoff.next()),
    [500, 750, 1125, 1687.5, 2000, 2000],
  );
});

test("a reset begins again at the start", () => {
  const backoff = new Backoff({ start: 100, factor: 2, ceiling: 10_000, jitter: 0 });
  for (let i = 0; i < 5; i++) backoff.next();
  backoff.reset();
  assert.deepEqual([backoff.next(), backoff.next()], [100, 200]);
});

test("jitter spreads each delay around its nominal value and never changes the nominal ones", () => {
  fc.assert(
    fc.property(
      fc.double({ min: 0, max: 1, noNaN: true }),
      fc.array(fc.double({ min: 0, max: 0.999, noNaN: true }), { minLength: 1, maxLength: 20 }),
      (jitter, randoms) => {
        let drawn = 0;
        const shape = { start: 800, factor: 1.7, ceiling: 10_000 };
        const random = (): number => randoms[drawn++]!;
        const jittered = new Backoff({ ...shape, jitter, random });
        const nominal = new Backoff({ ...shape, jitter: 0 });
        for (const value of randoms) {
          const expected = nominal.next();
          const delay = jittered.next();
          assert.ok(delay >= expected * (1 - jitter) - 1e-6 && delay <= expected * (1 + jitter) + 1e-6);
          assert.ok(Math.abs(delay - expected * (1 + jitter * (2 * value - 1))) < 1e-6);
        }
      },
    ),
  );
});
