import assert from "node:assert/strict";
import { test } from "node:test";
import type { PublicKey } from "#base/keys.ts";
import { WAKE_BUCKETS, WakeMeter } from "./wake-meter.ts";

const [bob, eve] = ["bob", "eve"] as unknown as [PublicKey, PublicKey];
const entry = (event: string, detail = "", sinceWake?: number) => ({
  at: 0,
  event,
  detail,
  ...(sinceWake === undefined ? {} : { sinceWake }),
});

test("a wake counts under its cause, and once with its time when a handshake proves it", () => {
  const meter = new WakeMeter();
  meter.note(bob, entry("wake", "tcp 100.64.0.1:1 -> 100.64.0.2:22", 0));
  meter.note(bob, entry("offer-sent", "", 3));
  meter.note(bob, entry("connected", "handshake by relay", 80));
  // The path was lost and came back hours later: not a wake.
  meter.note(bob, entry("connected", "handshake", 7_200_000));
  meter.note(eve, entry("wake", "dns question for eve.perch", 0));
  meter.note(eve, entry("sleep"));
  meter.note(eve, entry("connected", "a handshake of theirs"));
  const { byKind, buckets, sum, proven } = meter.totals;
  assert.deepEqual(
    [...byKind],
    [
      ["tcp", 1],
      ["dns", 1],
    ],
  );
  assert.equal(proven, 1);
  assert.equal(sum, 80);
  assert.equal(buckets[WAKE_BUCKETS.indexOf(0.1)], 1);
  assert.equal(
    buckets.reduce((a, b) => a + b),
    1,
  );
});

test("a wake that took longer than the last bound is in the last place", () => {
  const meter = new WakeMeter();
  for (const sinceWake of [10, 90_000, 90_001]) {
    meter.note(bob, entry("wake", "its offer", 0));
    meter.note(bob, entry("connected", "", sinceWake));
  }
  assert.equal(meter.totals.buckets[0], 1, "a bound belongs to its bucket");
  assert.deepEqual(meter.totals.buckets.slice(-2), [1, 1]);
});
