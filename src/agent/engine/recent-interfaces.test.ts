import assert from "node:assert/strict";
import { test } from "node:test";
import { ManualClock } from "#base/time.ts";
import { RecentInterfaces } from "./recent-interfaces.ts";

test("interfaces are read once for all that ask at the same time, and anew when time passed or a change is told", () => {
  const clock = new ManualClock();
  let reads = 0;
  const recent = new RecentInterfaces(clock, () => {
    reads++;
    return {};
  });
  const first = recent.read();
  for (let asked = 0; asked < 1000; asked++) assert.equal(recent.read(), first);
  assert.equal(reads, 1);
  clock.advance(250);
  assert.notEqual(recent.read(), first);
  assert.equal(reads, 2);
  recent.forget();
  recent.read();
  assert.equal(reads, 3);
});
