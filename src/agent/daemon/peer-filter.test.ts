import assert from "node:assert/strict";
import { test } from "node:test";
import type { IpAddress } from "#base/ip.ts";
import { findPeer, matchesFilter, type PeerFilter } from "./peer-filter.ts";
import { keyOf, makePeers } from "./testing/fake-agent.ts";

const peers = makePeers(8);
const EVERY_PEER: PeerFilter = { states: new Set(), names: [], addresses: new Set() };
const twin = { ...peers[0]!, key: keyOf(99), fqdn: "PEER-2.other.test", addresses: ["100.65.0.1" as IpAddress] };

test("a peer is found by key, address, full name and first label, without regard to case", () => {
  for (const text of [keyOf(2), "100.64.0.3", "peer-2.perch.test", "PEER-2.Perch.test.", " peer-2 "]) {
    assert.equal(findPeer(peers, text).key, keyOf(2), text);
  }
});

test("an IPv6 address is found in any spelling", () => {
  const six = { ...peers[0]!, key: keyOf(50), addresses: ["fd00::1" as IpAddress] };
  assert.equal(findPeer([...peers, six], "FD00:0:0::0001").key, keyOf(50));
});

test("an unknown peer is named in the error, an ambiguous one with its candidates", () => {
  assert.throws(() => findPeer(peers, "carol"), { code: "peer-unknown", message: /no peer "carol" .*8 peers/ });
  assert.throws(() => findPeer(peers, "peer"), { code: "peer-unknown" });
  assert.throws(() => findPeer([...peers, twin], "peer-2"), {
    code: "peer-ambiguous",
    message: '"peer-2" may be peer-2.perch.test (100.64.0.3), PEER-2.other.test (100.65.0.1); name one by its address',
  });
  assert.equal(findPeer([...peers, twin], "peer-2.other.test").key, keyOf(99));
  assert.throws(() => findPeer(peers, "  "), { code: "value-invalid" });
});

test("a filter holds for peers that satisfy each of its lists", () => {
  const count = (filter: Partial<PeerFilter>): number =>
    peers.filter((peer) => matchesFilter(peer, { ...EVERY_PEER, ...filter })).length;
  assert.equal(count({}), 8);
  assert.equal(count({ states: new Set(["idle"]) }), 2);
  assert.equal(count({ states: new Set(["idle", "connected"]) }), 6);
  assert.equal(count({ names: ["peer-1.", "peer-8"] }), 2);
  assert.equal(count({ addresses: new Set(["100.64.0.2" as IpAddress]), states: new Set(["idle"]) }), 1);
  assert.equal(count({ addresses: new Set(["100.64.0.2" as IpAddress]), states: new Set(["connected"]) }), 0);
});
