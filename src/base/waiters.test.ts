import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { test } from "node:test";
import { Waiters } from "./waiters.ts";

test("all who wait are woken together, and who comes later waits for the next time", async () => {
  const waiters = new Waiters();
  const { signal } = new AbortController();
  const before = [waiters.wait(signal), waiters.wait(signal)];
  waiters.wake();
  const after = waiters.wait(signal);
  assert.deepEqual(await Promise.all(before), [true, true]);
  assert.equal(await Promise.race([after, Promise.resolve("waits")]), "waits");
  waiters.wake();
  assert.equal(await after, true);
});

test("an abort ends the waiting of its own signal alone, and one that came before ends it at once", async () => {
  const waiters = new Waiters();
  const leaving = new AbortController();
  const left = waiters.wait(leaving.signal);
  const stays = waiters.wait(new AbortController().signal);
  leaving.abort();
  assert.equal(await left, false);
  assert.equal(await waiters.wait(leaving.signal), false);
  waiters.wake();
  assert.equal(await stays, true);
});

test("who waits again and again with one signal leaves no listener on it", async () => {
  const waiters = new Waiters();
  const { signal } = new AbortController();
  for (let round = 0; round < 3; round++) {
    const woken = waiters.wait(signal);
    waiters.wake();
    await woken;
  }
  assert.equal(getEventListeners(signal, "abort").length, 0);
});
