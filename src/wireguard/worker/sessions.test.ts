import assert from "node:assert/strict";
import { test } from "node:test";
import { Peer } from "./peers.ts";
import { OLDER_MAX, type Session, Sessions } from "./sessions.ts";

function setup() {
  const ended: number[] = [];
  const sessions = new Sessions((session) => ended.push(session.localIndex));
  const peer = new Peer(0, false);
  let index = 0;
  const install = (role: "initiator" | "responder"): Session => {
    const options = {
      initiator: role === "initiator",
      localIndex: ++index,
      remoteIndex: 100 + index,
      createdAt: index,
    };
    return sessions.install(peer, options, new Uint8Array(64).fill(index), 0);
  };
  return { ended, sessions, peer, install };
}

test("an initiator's session replaces the current one, which still decrypts", () => {
  const { sessions, peer, install, ended } = setup();
  const first = install("initiator");
  const second = install("initiator");
  assert.equal(peer.current, second);
  assert.equal(peer.previous, first);
  const third = install("initiator");
  assert.deepEqual(peer.older, [first]);
  assert.equal(sessions.find(first.localIndex), first);
  for (let count = 0; count < OLDER_MAX; count++) install("initiator");
  assert.deepEqual(ended, [first.localIndex]);
  assert.equal(sessions.find(third.localIndex), third);
  assert.equal(sessions.find(first.localIndex), undefined);
});

test("a responder's session is not sent with before it is confirmed", () => {
  const { sessions, peer, install } = setup();
  const first = install("initiator");
  const next = install("responder");
  assert.equal(peer.current, first);
  sessions.confirm(peer);
  assert.equal(peer.current, next);
  assert.equal(peer.previous, first);
});

test("a peer put to sleep sends with nothing, and decrypts with its last session until a new one replaces it", () => {
  const { sessions, peer, install, ended } = setup();
  const last = install("initiator");
  sessions.retire(peer);
  sessions.retire(peer);
  assert.equal(peer.current, undefined);
  assert.equal(sessions.find(last.localIndex), last);
  const woken = install("initiator");
  assert.equal(peer.current, woken);
  assert.equal(sessions.find(last.localIndex), last);
  assert.deepEqual(ended, []);
});

test("a session that was never confirmed still decrypts when the next handshake takes its place", () => {
  const { sessions, peer, install, ended } = setup();
  const first = install("responder");
  const second = install("responder");
  assert.equal(peer.next, second);
  assert.equal(sessions.find(first.localIndex), first);
  for (let count = 0; count < OLDER_MAX; count++) install("responder");
  assert.deepEqual(ended, [first.localIndex]);
});

test("what the other end still sends with decrypts after a burst of handshakes that both ends began", () => {
  const { sessions, peer, install } = setup();
  install("initiator");
  sessions.retire(peer);
  const inUse = install("responder");
  // The link was down; now several handshakes come through, before what a relay held up.
  install("initiator");
  install("responder");
  install("responder");
  assert.equal(sessions.find(inUse.localIndex), inUse);
});

test("a sleep keeps both sessions of two handshakes that crossed: the other side may be sending with either", () => {
  const { sessions, peer, install } = setup();
  const theirs = install("responder");
  sessions.confirm(peer);
  const ours = install("initiator");
  sessions.retire(peer);
  assert.equal(sessions.find(theirs.localIndex), theirs);
  assert.equal(sessions.find(ours.localIndex), ours);
  install("initiator");
  sessions.retire(peer);
  assert.ok(sessions.size <= 3);
  sessions.expire(peer, 1000, 0);
  assert.equal(sessions.size, 0);
  assert.equal(peer.hasSession, false);
});

test("both sides waking at once keep what the other one may be sending with", () => {
  const { sessions, peer, install } = setup();
  const last = install("initiator");
  sessions.retire(peer);
  const theirs = install("responder");
  assert.equal(sessions.find(last.localIndex), last);
  const ours = install("initiator");
  assert.equal(peer.current, ours);
  assert.equal(sessions.find(theirs.localIndex), theirs);
});

test("keys are wiped when their session ends", () => {
  const { sessions, peer, install } = setup();
  install("initiator");
  sessions.expire(peer, 1000, 0);
  assert.equal(sessions.size, 0);
  assert.equal(peer.hasSession, false);
});
