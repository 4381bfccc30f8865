import assert from "node:assert/strict";
import { test } from "node:test";
import { ManualClock } from "#base/time.ts";
import { NEGOTIATION_PATIENCE, WakeQueue } from "./wake-queue.ts";

function setup(limit: number) {
  const clock = new ManualClock();
  const started: string[] = [];
  const queue = new WakeQueue<string>(clock, (key) => started.push(key), limit);
  return { clock, started, queue };
}

test("wakes start at once while there are places, then wait; interactive ones go first", () => {
  const { started, queue } = setup(2);
  queue.request("a", "background");
  queue.request("b", "background");
  queue.request("c", "background");
  queue.request("d", "interactive");
  assert.deepEqual(started, ["a", "b"]);
  assert.equal(queue.waiting, 2);
  queue.release("a");
  assert.deepEqual(started, ["a", "b", "d"]);
  queue.release("d");
  assert.deepEqual(started, ["a", "b", "d", "c"]);
});

test("a background wake becomes interactive when somebody asks for it", () => {
  const { started, queue } = setup(1);
  for (const key of ["a", "b", "c"]) queue.request(key, "background");
  queue.request("c", "interactive");
  queue.release("a");
  assert.deepEqual(started, ["a", "c"]);
});

test("a negotiation that proves nothing gives its place away after a while", () => {
  const { clock, started, queue } = setup(1);
  queue.request("a", "interactive");
  queue.request("b", "interactive");
  clock.advance(NEGOTIATION_PATIENCE - 1);
  assert.deepEqual(started, ["a"]);
  clock.advance(1);
  assert.deepEqual(started, ["a", "b"]);
  queue.close();
  assert.equal(clock.pending, 0);
});

test("a wake that is not wanted any more leaves the queue", () => {
  const { started, queue } = setup(1);
  queue.request("a", "interactive");
  queue.request("b", "interactive");
  queue.release("b");
  queue.release("a");
  assert.deepEqual(started, ["a"]);
  assert.equal(queue.waiting + queue.negotiating, 0);
});
