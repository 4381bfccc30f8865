import assert from "node:assert/strict";
import { test } from "node:test";
import { isLaterTai64n, Tai64nClock } from "./tai64n.ts";
import { wallAfter } from "./timestamp-mark.ts";

const HOUR = 3_600_000;

/** Lives of one device: each begins with what the one before had stored, and ends without a word. */
function livesOf(stored = { wall: 0, writes: 0 }) {
  const mark = {
    load: () => stored.wall,
    store: (wall: number) => {
      stored.wall = wall;
      stored.writes++;
    },
  };
  return { stored, begin: (wall: () => number) => new Tai64nClock(wallAfter(mark, wall)) };
}

test("after a crash and a clock set back by any time, the next timestamp is later than the last", () => {
  for (const back of [1, 1_000, HOUR, 24 * HOUR]) {
    const { begin } = livesOf();
    let wall = 1_800_000_000_123.4;
    const first = begin(() => wall);
    let last = first.next();
    for (let i = 0; i < 50; i++) {
      wall += 61_000;
      last = first.next();
    }
    wall -= back;
    for (let life = 0; life < 5; life++) {
      const clock = begin(() => wall);
      for (let i = 0; i < 3; i++) {
        const next = clock.next();
        assert.ok(isLaterTai64n(next, last), `back ${back}, life ${life}`);
        last = next;
      }
    }
  }
});

test("the mark is written rarely, and many lives in a row do not run away from the clock", () => {
  const { begin, stored } = livesOf();
  let wall = 1_800_000_000_000;
  const clock = begin(() => wall);
  for (let i = 0; i < 3_600; i++) {
    clock.next();
    wall += 1_000;
  }
  assert.equal(stored.writes, 6, "an hour of handshakes");
  for (let life = 0; life < 100; life++) begin(() => wall).next();
  assert.ok(stored.wall - wall <= 600_000 + 100_000, `${stored.wall - wall} ms ahead`);
});

test("with a clock that goes right, timestamps follow it again when the mark is past", () => {
  const { begin } = livesOf();
  let wall = 1_800_000_000_000;
  begin(() => wall).next();
  wall += HOUR;
  assert.deepEqual(begin(() => wall).next(), new Tai64nClock(() => wall).next());
});
