import assert from "node:assert/strict";
import { test } from "node:test";
import { ReadingPace } from "./reading-pace.ts";

test("nothing is read for nobody, and at once when somebody wakes", () => {
  const pace = new ReadingPace();
  assert.equal(pace.next("nobody"), undefined);
  assert.ok(pace.next("awake")! <= 0);
  pace.note(1_000, 1_001, false);
  assert.equal(pace.next("nobody"), undefined);
  assert.equal(pace.next("awake"), 2_001);
  assert.equal(pace.next("settling"), 6_001);
});

test("traffic is looked at more often", () => {
  const pace = new ReadingPace();
  pace.note(1_000, 1_001, true);
  assert.equal(pace.next("awake"), 1_251);
  pace.note(1_251, 1_252, false);
  assert.equal(pace.next("awake"), 2_252);
});

test("what just happened is looked at soon and ever later, until a reading began after it", () => {
  const pace = new ReadingPace();
  pace.note(1_000, 1_000, false);
  pace.look(1_010);
  const seen: number[] = [];
  for (let at = pace.next("nobody"); at !== undefined; at = pace.next("nobody")) {
    seen.push(at - 1_010);
    pace.note(at, at, false);
  }
  assert.deepEqual(seen, [3, 10, 30, 80, 200, 450]);
});

test("a reading that takes long is followed by a rest, a shorter one when it is asked for", () => {
  const pace = new ReadingPace();
  pace.note(1_000, 1_100, true);
  pace.look(1_100);
  assert.equal(pace.next("awake"), 1_600);
  pace.note(1_700, 1_800, true);
  assert.equal(pace.next("awake"), 6_800);
});

test("however long a reading took, the next ones are not put off for long", () => {
  const pace = new ReadingPace();
  pace.note(1_000, 10_000, true);
  assert.equal(pace.next("awake"), 25_000);
  pace.look(10_000);
  assert.equal(pace.next("awake"), 12_000);
});

test("however often somebody asks, what is remembered is bounded and the soonest is kept", () => {
  const pace = new ReadingPace();
  for (let at = 0; at < 10_000; at++) pace.look(at);
  assert.equal(pace.next("nobody"), 3);
  let readings = 0;
  for (let at = pace.next("nobody"); at !== undefined; at = pace.next("nobody")) {
    readings++;
    pace.note(at, at, false);
  }
  assert.ok(readings <= 64);
});
