import assert from "node:assert/strict";
import { test } from "node:test";
import { REWRITE_POLICY, RewriteGuard } from "./rewrite-guard.ts";

const { pause, rewritings, window, truce } = REWRITE_POLICY;

test("a file that is rewritten now and then is taken back at once, or when the pause since the last time is over", () => {
  const guard = new RewriteGuard();
  guard.notePut(0);
  assert.deepEqual(guard.noteRewritten(60_000), { at: 60_000, isFight: false });
  guard.notePut(60_000);
  assert.deepEqual(guard.noteRewritten(60_100), { at: 60_000 + pause, isFight: false });
});

test("who rewrites it again and again gets it for a truce, and after that is answered anew", () => {
  const guard = new RewriteGuard();
  let now = 0;
  for (let i = 1; i < rewritings; i++) {
    const answer = guard.noteRewritten(now);
    assert.equal(answer.isFight, false, `rewriting ${i}`);
    now = answer.at;
    guard.notePut(now);
  }
  assert.deepEqual(guard.noteRewritten(now), { at: now + truce, isFight: true });
  assert.equal(guard.count, rewritings);
  guard.notePut(now + truce);
  assert.deepEqual(guard.noteRewritten(now + truce), { at: now + truce + pause, isFight: false });
  assert.equal(guard.count, 1);
});

test("rewritings that are further apart than the window are never a fight", () => {
  const guard = new RewriteGuard();
  for (let i = 0; i < 100; i++) {
    const now = (i * window) / (rewritings - 1);
    assert.equal(guard.noteRewritten(now).isFight, false, `rewriting ${i}`);
    guard.notePut(now);
  }
});
