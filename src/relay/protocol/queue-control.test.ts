import assert from "node:assert/strict";
import { test } from "node:test";
import { ALLOWANCE_BYTES, LONG_BURST_BYTES, QueueControl } from "./queue-control.ts";

/** So that the allowance is gone within the interval. */
const MESSAGE_BYTES = 65_536;

/** Times of the drops when messages come every `every` ms and each of them waits as `waited` says. */
function drops(waited: (now: number) => number, from: number, to: number, every = 1, control = new QueueControl()) {
  const times: number[] = [];
  for (let now = from; now < to; now += every) {
    if (control.decideDrop(MESSAGE_BYTES, now)) times.push(now);
    control.noteWait(waited(now), now);
  }
  return times;
}

test("short waits and small bursts drop nothing, however long they go on", () => {
  const control = new QueueControl();
  for (let now = 0; now < 10_000; now++) {
    control.noteWait(10, now);
    control.noteBurst(LONG_BURST_BYTES, now);
    assert.equal(control.decideDrop(MESSAGE_BYTES, now), false);
  }
});

test("a burst shorter than the interval passes untouched, and again after a pause", () => {
  const control = new QueueControl();
  const waited = (now: number): number => (now % 500 < 90 ? 20 : 1);
  assert.deepEqual(drops(waited, 0, 5_000, 1, control), []);
});

test("what waited for a peer to wake passes untouched, however slowly it comes and goes", () => {
  const control = new QueueControl();
  let passed = 0;
  for (let now = 0; passed < 1024 * 1024; now += 10) {
    assert.equal(control.decideDrop(1350, now), false);
    control.noteWait(400, now);
    passed += 1350;
  }
  let more = 0;
  for (let now = passed / 135; !control.decideDrop(1350, now); now += 10) {
    control.noteWait(400, now);
    more += 1350;
    assert.ok(passed + more < ALLOWANCE_BYTES + 3 * 1350, "the allowance is one");
  }
});

test("a queue that stands for the interval loses one message, then more and more often", () => {
  const times = drops(() => 20, 0, 1_000);
  assert.ok(times[0]! >= 100 && times[0]! <= 102, String(times[0]));
  const gaps = times.slice(1).map((time, index) => time - times[index]!);
  assert.ok(Math.abs(gaps[0]! - 100) <= 1, String(gaps));
  assert.ok(Math.abs(gaps[2]! - 100 / Math.sqrt(3)) <= 1, String(gaps));
  assert.deepEqual(
    gaps,
    [...gaps].sort((a, b) => b - a),
  );
});

test("a queue that is empty now and then, but long every few milliseconds, stands as well", () => {
  const times = drops((now) => (now % 20 === 0 ? 15 : 0), 0, 1_000);
  assert.ok(times.length >= 5, String(times));
});

test("bursts of one sender that follow each other stand, even when none of them waits", () => {
  const control = new QueueControl();
  let dropped = 0;
  for (let now = 0; now < 1_000; now += 10) {
    control.noteBurst(LONG_BURST_BYTES + 1, now);
    control.noteWait(0, now);
    if (control.decideDrop(MESSAGE_BYTES, now)) dropped++;
  }
  assert.ok(dropped >= 5, String(dropped));
});

test("drops end when the queue is short again, and begin sooner than at first when it soon stands anew", () => {
  const control = new QueueControl();
  const first = drops(() => 20, 0, 500, 1, control);
  assert.deepEqual(
    drops(() => 1, 500, 700, 1, control).filter((time) => time > 560),
    [],
  );
  const again = drops(() => 20, 700, 1_200, 1, control);
  assert.ok(again[0]! >= 800, "again only after the interval");
  assert.ok(again.length > first.length, `${again.length} drops, ${first.length} at first`);
  drops(() => 1, 1_200, 5_000, 1, control);
  assert.equal(drops(() => 20, 5_000, 5_500, 1, control).length, first.length, "long ago is forgotten");
});

/*
 * A sender like TCP into a link of one message per millisecond: it has `window` messages on their way, one more for each
 * round trip, and 30 % less after a drop, which it notices when those before it have left.
 */
function windowAfter(milliseconds: number, controlled: boolean): { readonly longest: number; readonly left: number } {
  const control = new QueueControl();
  const queue: number[] = [];
  let window = 100;
  let inFlight = 0;
  let reduceAt = Number.POSITIVE_INFINITY;
  let longest = 0;
  let left = 0;
  for (let now = 0; now < milliseconds; now++) {
    if (now >= reduceAt) {
      window *= 0.7;
      reduceAt = Number.POSITIVE_INFINITY;
    }
    while (inFlight < Math.floor(window)) {
      if (controlled && control.decideDrop(12_000, now)) reduceAt = Math.min(reduceAt, now + queue.length + 1);
      else {
        queue.push(now);
        inFlight++;
      }
    }
    const sentAt = queue.shift();
    if (sentAt === undefined) continue;
    control.noteWait(now - sentAt, now);
    inFlight--;
    left++;
    window += 1 / window;
    if (now > milliseconds / 2) longest = Math.max(longest, now - sentAt);
  }
  return { longest, left };
}

test("a sender that fills what there is keeps the link busy behind a short queue", () => {
  const free = windowAfter(10_000, false);
  const held = windowAfter(10_000, true);
  assert.ok(free.longest > 100, `without control ${free.longest} ms`);
  assert.ok(held.longest < 25, `with control ${held.longest} ms`);
  assert.ok(held.left > 0.97 * free.left, `${held.left} messages, ${free.left} without control`);
});
