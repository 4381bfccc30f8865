import assert from "node:assert/strict";
import { test } from "node:test";
import { parseIp } from "#base/ip.ts";
import { PrivateKey } from "#base/keys.ts";
import { ManualClock } from "#base/time.ts";
import {
  FIRST_HOLD,
  LONGEST_HOLD,
  networkOf,
  SEARCH_MEMORY_MAX,
  SEARCHES_BEFORE_HOLD,
  SearchMemory,
} from "./search-memory.ts";

const peer = PrivateKey.generate().publicKey;

function setUp() {
  const clock = new ManualClock();
  const memory = new SearchMemory({ clock });
  const fail = (times: number, here = "home", there = "office"): void => {
    for (let time = 0; time < times; time++) memory.noteFailed(peer, here, there);
  };
  return { clock, memory, fail };
}

test("three failed searches put the next one off, each further one for twice as long, up to a limit", () => {
  const { clock, memory, fail } = setUp();
  fail(SEARCHES_BEFORE_HOLD - 1);
  assert.equal(memory.holdOf(peer, "home", "office"), undefined);
  for (const length of [FIRST_HOLD, 2 * FIRST_HOLD, 4 * FIRST_HOLD]) {
    fail(1);
    assert.equal(memory.holdOf(peer, "home", "office")?.until, clock.now() + length);
  }
  fail(30);
  assert.equal(memory.holdOf(peer, "home", "office")?.until, clock.now() + LONGEST_HOLD);
});

test("when the time is over one search is made", async () => {
  const { clock, memory, fail } = setUp();
  fail(SEARCHES_BEFORE_HOLD);
  await clock.advance(FIRST_HOLD);
  assert.equal(memory.holdOf(peer, "home", "office"), undefined);
});

test("in another network, of either side, it is tried; back again it is known", () => {
  const { memory, fail } = setUp();
  fail(SEARCHES_BEFORE_HOLD);
  assert.equal(memory.holdOf(peer, "train", "office"), undefined);
  assert.equal(memory.holdOf(peer, "home", "hotel"), undefined);
  assert.equal(memory.holdOf(PrivateKey.generate().publicKey, "home", "office"), undefined);
  assert.equal(memory.holdOf(peer, "home", "office")?.failures, SEARCHES_BEFORE_HOLD);
});

test("a way that is found forgets the failures", () => {
  const { memory, fail } = setUp();
  fail(SEARCHES_BEFORE_HOLD);
  memory.noteFound(peer, "home", "office");
  fail(1);
  assert.equal(memory.holdOf(peer, "home", "office"), undefined);
});

test("the memory is bounded, what failed longest ago goes", () => {
  const { memory, fail } = setUp();
  fail(SEARCHES_BEFORE_HOLD, "first");
  fail(SEARCHES_BEFORE_HOLD, "second");
  for (let other = 0; other < SEARCH_MEMORY_MAX - 1; other++) memory.noteFailed(peer, `network ${other}`, "office");
  assert.equal(memory.holdOf(peer, "first", "office"), undefined);
  assert.ok(memory.holdOf(peer, "second", "office"));
});

test("addresses of one IPv6 network are one network, those of IPv4 are not", () => {
  assert.equal(networkOf(parseIp("2001:db8:1:2::77")), networkOf(parseIp("2001:db8:1:2:abcd::1")));
  assert.notEqual(networkOf(parseIp("2001:db8:1:2::77")), networkOf(parseIp("2001:db8:1:3::77")));
  assert.notEqual(networkOf(parseIp("192.0.2.1")), networkOf(parseIp("192.0.2.2")));
});
