import assert from "node:assert/strict";
import { test } from "node:test";
import { ManualClock } from "#base/time.ts";
import {
  PAGE_KEYS_MAX,
  SESSION_IDLE,
  SESSION_LIFE,
  SESSIONS_MAX,
  TOKEN_LIFE,
  TOKENS_MAX,
  type UiPass,
  UiSessions,
} from "./ui-sessions.ts";

function open(sessions: UiSessions): UiPass {
  return sessions.exchange(sessions.issueToken(), undefined) ?? assert.fail("the token was refused");
}

test("a token opens one session, once, and only in its time", () => {
  const clock = new ManualClock();
  const sessions = new UiSessions(clock);
  const token = sessions.issueToken();
  assert.equal(sessions.exchange(`${token}x`, undefined), undefined, "a wrong one");
  assert.equal(sessions.exchange("", undefined), undefined, "none");
  assert.ok(sessions.exchange(token, undefined));
  assert.equal(sessions.exchange(token, undefined), undefined, "used");
  const late = sessions.issueToken();
  clock.advance(TOKEN_LIFE);
  assert.equal(sessions.exchange(late, undefined), undefined, "expired");
});

test("a session needs both halves of its pass, and those of one session", () => {
  const sessions = new UiSessions(new ManualClock());
  const [one, other] = [open(sessions), open(sessions)];
  assert.ok(sessions.find(one));
  assert.equal(sessions.find({ cookie: one.cookie, pageKey: "" }), undefined);
  assert.equal(sessions.find({ cookie: "", pageKey: one.pageKey }), undefined);
  assert.equal(sessions.find({ cookie: one.cookie, pageKey: other.pageKey }), undefined);
  assert.equal(sessions.find({ cookie: one.pageKey, pageKey: one.cookie }), undefined);
});

test("an unused session ends, one with a stream lasts, and none lasts longer than its life", () => {
  const clock = new ManualClock();
  const sessions = new UiSessions(clock);
  const [unused, watching] = [open(sessions), open(sessions)];
  const session = sessions.find(watching)!;
  const end = session.begin();
  clock.advance(SESSION_IDLE);
  assert.equal(sessions.find(unused), undefined);
  assert.ok(sessions.find(watching));
  assert.equal(sessions.nextExpiry, SESSION_LIFE);
  end();
  end();
  assert.equal(sessions.nextExpiry, 2 * SESSION_IDLE, "counted out once, unused from now on");
  session.begin();
  clock.advance(SESSION_LIFE);
  assert.equal(sessions.nextExpiry, undefined);
  assert.ok(session.ended.aborted, "what it had under way ends with it");
});

test("tokens and sessions are bounded; who watches is the last to go", () => {
  const clock = new ManualClock();
  const sessions = new UiSessions(clock);
  const watching = open(sessions);
  sessions.find(watching)!.begin();
  clock.advance(1);
  const unused = open(sessions);
  clock.advance(1);
  const rest = Array.from({ length: SESSIONS_MAX - 1 }, () => open(sessions));
  assert.equal(sessions.find(unused), undefined);
  for (const pass of [watching, ...rest]) assert.ok(sessions.find(pass));

  const tokens = Array.from({ length: TOKENS_MAX + 1 }, () => sessions.issueToken());
  assert.equal(sessions.exchange(tokens[0]!, undefined), undefined);
  assert.ok(sessions.exchange(tokens[1]!, undefined));
});

test("clearing ends everything", () => {
  const sessions = new UiSessions(new ManualClock());
  const token = sessions.issueToken();
  const pass = open(sessions);
  const session = sessions.find(pass)!;
  sessions.clear();
  assert.ok(session.ended.aborted);
  assert.equal(sessions.find(pass), undefined);
  assert.equal(sessions.exchange(token, undefined), undefined);
  assert.equal(sessions.nextExpiry, undefined);
});

test("a further tab of a browser joins its session, and the other tabs stay", () => {
  const clock = new ManualClock();
  const sessions = new UiSessions(clock);
  const first = open(sessions);
  clock.advance(1000);
  const second = sessions.exchange(sessions.issueToken(), first.cookie)!;
  assert.equal(second.cookie, first.cookie);
  assert.notEqual(second.pageKey, first.pageKey);
  for (const pass of [first, second]) assert.ok(sessions.find(pass));
  const foreign = sessions.exchange(sessions.issueToken(), "a cookie that somebody made up")!;
  assert.notEqual(foreign.cookie, "a cookie that somebody made up");
  for (let tab = 0; tab < PAGE_KEYS_MAX; tab++) sessions.exchange(sessions.issueToken(), first.cookie);
  assert.equal(sessions.find(first), undefined, "the oldest of too many tabs is let go");
});
