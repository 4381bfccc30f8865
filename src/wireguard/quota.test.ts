import assert from "node:assert/strict";
import { test } from "node:test";
import { Quota } from "./quota.ts";

test("a quota gives so many in a stretch of time, and as many in the next", () => {
  const quota = new Quota(2, 10);
  const taken = [0, 1, 2, 9, 10, 11, 12, 500].map((now) => quota.take(now));
  assert.deepEqual(taken, [true, true, false, false, true, true, false, true]);
});

test("what takes longer than the stretch uses the quota up all the same", () => {
  const quota = new Quota(2, 10);
  const taken = [0, 20, 40, 49, 51].map((now) => {
    const isTaken = quota.take(now);
    if (isTaken) quota.noteDone(now + 20);
    return isTaken;
  });
  assert.deepEqual(taken, [true, true, false, false, true]);
});
