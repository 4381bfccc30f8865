import assert from "node:assert/strict";
import { test } from "node:test";
import { ManualClock } from "#base/time.ts";
import { MessageBudget } from "./message-budget.ts";
import { NEGOTIATION_PATIENCE, WAITING_PATIENCE, WAKES_PER_TURN, WakeQueue } from "./wake-queue.ts";

function setup(negotiating: number, { waiting = 100, rate = 1_000, burst = 1_000 } = {}) {
  const clock = new ManualClock();
  const started: string[] = [];
  const away: string[] = [];
  const budget = new MessageBudget(clock, rate, burst);
  const queue = new WakeQueue<string>(
    {
      clock,
      budget,
      start(key) {
        started.push(key);
        budget.spend();
      },
      turnAway: (key, why) => away.push(`${key} ${why}`),
    },
    { negotiating, waiting },
  );
  return { clock, started, away, budget, queue };
}

test("wakes start at once while there are places, then wait; the most urgent go first", () => {
  const { clock, started, queue } = setup(2);
  queue.request("a", "background");
  queue.request("b", "background");
  queue.request("c", "background");
  queue.request("d", "fan-out");
  queue.request("e", "router");
  queue.request("f", "interactive");
  assert.deepEqual(started, ["a", "b"]);
  assert.equal(queue.waiting, 4);
  for (const key of ["a", "f", "e", "d"]) {
    queue.release(key);
    clock.advance(10);
  }
  assert.deepEqual(started, ["a", "b", "f", "e", "d", "c"]);
});

test("of very many wakes a few begin, then everybody else gets a turn", () => {
  const { clock, started, queue } = setup(64);
  for (let i = 0; i < 64; i++) queue.request(`${i}`, "interactive");
  assert.equal(started.length, WAKES_PER_TURN);
  clock.advance(9);
  assert.equal(started.length, WAKES_PER_TURN);
  clock.advance(1);
  assert.equal(started.length, 2 * WAKES_PER_TURN);
  clock.advance(1_000);
  assert.equal(started.length, 64);
});

test("a background wake becomes interactive when somebody asks for it, and stays so", () => {
  const { started, queue } = setup(1);
  for (const key of ["a", "b", "c"]) queue.request(key, "background");
  queue.request("c", "interactive");
  queue.request("c", "background");
  queue.release("a");
  assert.deepEqual(started, ["a", "c"]);
  assert.equal(queue.waiting, 1);
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

test("a wake that is not wanted any more leaves the queue, and with the last of them its timer", () => {
  const { clock, started, queue } = setup(1);
  queue.request("a", "interactive");
  queue.request("b", "interactive");
  queue.release("b");
  queue.release("a");
  assert.deepEqual(started, ["a"]);
  assert.equal(queue.waiting + queue.negotiating, 0);
  assert.equal(clock.pending, 0);
});

test("more wakes than may wait are refused, permanent peers are not", () => {
  const { away, queue } = setup(1, { waiting: 2 });
  for (const key of ["a", "b", "c", "d"]) queue.request(key, "interactive");
  queue.request("e", "background");
  queue.request("f", "router");
  assert.deepEqual(away, ["d refused"]);
  assert.equal(queue.waiting, 4);
});

test("wakes that take longer than a turn do not begin the next one without a pause", () => {
  const clock = new ManualClock();
  const started: string[] = [];
  const queue = new WakeQueue<string>({
    clock,
    budget: { timeUntil: () => 0 },
    start: (key) => {
      started.push(key);
      // On a busy machine.
      clock.advance(6);
    },
    turnAway: () => {},
  });
  for (let i = 0; i < 4 * WAKES_PER_TURN; i++) queue.request(`peer ${i}`, "interactive");
  assert.equal(started.length, WAKES_PER_TURN);
  clock.advance(9);
  assert.equal(started.length, WAKES_PER_TURN);
  clock.advance(1);
  assert.equal(started.length, 2 * WAKES_PER_TURN);
});

test("a wake whose turn does not come expires, that of a permanent peer waits on", () => {
  const { clock, started, away, queue } = setup(1);
  const hog = (): void => {
    queue.release("hog");
    queue.request("hog", "interactive");
  };
  hog();
  queue.request("a", "fan-out");
  queue.request("z", "background");
  // Somebody more urgent takes each place.
  for (let ms = 0; ms <= WAITING_PATIENCE; ms += 1_000) {
    queue.request(`hog-${ms}`, "interactive");
    clock.advance(1_000);
  }
  assert.deepEqual(away[0], "a expired");
  assert.ok(!started.includes("a"));
  assert.ok(!away.includes("z expired"));
  queue.close();
});

test("wakes begin as fast as the budget of messages allows, and the urgent need not wait for the others", () => {
  const { clock, started, queue, budget } = setup(1_000, { rate: 100, burst: 200 });
  for (let i = 0; i < 500; i++) queue.request(`b${i}`, "background");
  clock.advance(400);
  assert.ok(started.length > 100 && started.length < 200, `${started.length} at once`);
  queue.request("now", "interactive");
  assert.equal(started.at(-1), "now");
  const before = started.length;
  clock.advance(1_000);
  assert.ok(Math.abs(started.length - before - 100) <= 2, `${started.length - before} in a second`);
  // What is sent otherwise is paid for as well.
  for (let i = 0; i < 1_000; i++) budget.spend();
  const indebted = started.length;
  clock.advance(1_000);
  assert.equal(started.length, indebted);
  clock.advance(10_000);
  assert.equal(started.length, 501);
  assert.equal(queue.waiting, 0);
  queue.close();
  assert.equal(clock.pending, 0);
});
