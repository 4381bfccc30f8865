import assert from "node:assert/strict";
import { test } from "node:test";
import type { PublicKey } from "#base/keys.ts";
import { ChangeLog } from "./change-log.ts";

const key = (index: number): PublicKey => `k${index}` as PublicKey;

test("who has a revision is told what changed after it, each peer once", () => {
  const log = new ChangeLog();
  for (const index of [1, 2, 1, 3]) log.note(key(index));
  assert.equal(log.revision, 4);
  assert.deepEqual([...log.since(1)!], [key(2), key(1), key(3)]);
  assert.deepEqual([...log.since(4)!], []);
});

test("a revision that is forgotten, or was never given out, is not answered", () => {
  const log = new ChangeLog();
  assert.equal(log.since(1), undefined);
  for (let index = 0; index < 40_000; index++) log.note(key(index % 7));
  assert.equal(log.revision, 40_000);
  assert.equal(log.since(0), undefined);
  assert.equal(log.since(40_001), undefined);
  assert.equal(log.since(39_000)?.size, 7);
});

test("two logs do not take each other's revisions for their own", () => {
  assert.notEqual(new ChangeLog().epoch, new ChangeLog().epoch);
});
