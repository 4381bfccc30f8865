import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { systemClock } from "#base/time.ts";
import { Rehearsal } from "./rehearsal.ts";

const timers = (): number => process.getActiveResourcesInfo().filter((name) => name === "Timeout").length;

test("a rehearsal wakes three times up to a direct path, and leaves no timer", async () => {
  const before = timers();
  const rehearsal = new Rehearsal(systemClock);
  for (let tries = 0; tries < 200 && !rehearsal.closed; tries++) await sleep(20);
  assert.deepEqual({ rounds: rehearsal.rounds, closed: rehearsal.closed }, { rounds: 3, closed: true });
  await sleep(5);
  assert.equal(timers(), before);
});

test("one that is closed in the middle leaves no timer either", async () => {
  const before = timers();
  const rehearsal = new Rehearsal(systemClock);
  await sleep(3);
  rehearsal.close();
  rehearsal.close();
  await sleep(5);
  assert.deepEqual({ rounds: rehearsal.rounds, timers: timers() }, { rounds: 0, timers: before });
});
