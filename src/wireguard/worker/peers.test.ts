import assert from "node:assert/strict";
import { test } from "node:test";
import { Peers } from "./peers.ts";

test("an asleep peer has an object only while it holds something", () => {
  const peers = new Peers(4);
  peers.add(1, true, 25);
  assert.equal(peers.active(1), undefined);
  const peer = peers.activate(1);
  peer.stagedPackets = 1;
  peers.releaseIfIdle(peer);
  assert.equal(peers.active(1), peer);
  peer.stagedPackets = 0;
  peers.releaseIfIdle(peer);
  assert.equal(peers.active(1), undefined);
  assert.ok(peers.exists(1) && peers.isAsleep(1));
});

test("letting go of an object twice leaves the one that took its place alone", () => {
  const peers = new Peers(4);
  peers.add(1, false, 25);
  const first = peers.active(1)!;
  peers.setAsleep(1, true);
  peers.releaseIfIdle(first);
  // The peer wakes and sleeps again; a timer still holds the first object.
  const second = peers.activate(1);
  peers.setAsleep(1, false);
  peers.releaseIfIdle(first);
  assert.equal(peers.active(1), second);
});
