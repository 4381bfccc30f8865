import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { type IpAddress, parseIp } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import { toDomainName } from "./domain-name.ts";
import { type NamedPeer, NameTable } from "./name-table.ts";

const KEYS = ["k1", "k2", "k3", "k4", "k5"] as PublicKey[];
const NAMES = ["a.perch.test", "b.perch.test", "B.Perch.test.", ""];
const ADDRESSES = ["100.64.0.1", "100.64.0.2", "fd00::1"].map(parseIp);

/** The same as plain lists: who has a name or an address first keeps it until it is put anew or removed. */
class Model {
  peers: NamedPeer[] = [];
  names = new Map<string, PublicKey>();
  addresses = new Map<IpAddress, PublicKey>();

  put(peer: NamedPeer): void {
    this.remove(peer.key);
    this.peers.push(peer);
    const name = toDomainName(peer.fqdn);
    if (name !== "" && !this.names.has(name)) this.names.set(name, peer.key);
    for (const address of peer.addresses) if (!this.addresses.has(address)) this.addresses.set(address, peer.key);
  }

  remove(key: PublicKey): void {
    this.peers = this.peers.filter((peer) => peer.key !== key);
    for (const owned of [this.names, this.addresses] as Map<string, PublicKey>[])
      for (const [what, owner] of owned) if (owner === key) owned.delete(what);
  }
}

test("peers that come, change and go have the names and addresses that nobody had before them", () => {
  const peer = fc.record({
    key: fc.constantFrom(...KEYS),
    fqdn: fc.constantFrom(...NAMES),
    addresses: fc.uniqueArray(fc.constantFrom(...ADDRESSES)),
  });
  const change = fc.oneof(peer, fc.constantFrom(...KEYS));
  fc.assert(
    fc.property(fc.array(change, { maxLength: 60 }), (changes) => {
      const table = new NameTable();
      const model = new Model();
      for (const each of changes) {
        if (typeof each === "string") {
          table.removePeer(each);
          model.remove(each);
        } else {
          table.putPeer(each);
          model.put(each);
        }
        assert.equal(table.peers, model.peers.length);
        for (const address of ADDRESSES) assert.equal(table.peerAt(address)?.key, model.addresses.get(address));
        for (const text of NAMES.slice(0, 2)) {
          const owner = model.peers.find(({ key }) => key === model.names.get(text));
          const said = table.recordsOf(toDomainName(text)).map(({ data }) => data);
          assert.deepEqual(said, owner?.addresses ?? []);
        }
        assert.equal(table.hasBelow(toDomainName("perch.test")), model.names.size > 0);
      }
    }),
    { numRuns: 300 },
  );
});

test("a record that a peer said itself comes back with the zones when the peer has gone", () => {
  const table = new NameTable();
  const [address, other] = ADDRESSES as [IpAddress, IpAddress, IpAddress];
  const name = toDomainName("a.perch.test");
  const zones = [{ name, type: "A" as const, data: address as string, ttl: 60 }];
  table.putPeer({ key: KEYS[0]!, fqdn: name, addresses: [address] });
  table.putPeer({ key: KEYS[1]!, fqdn: "b.perch.test", addresses: [other] });
  table.setRecords("zones", zones);
  assert.equal(table.isStale, false);
  table.removePeer(KEYS[0]!);
  assert.equal(table.isStale, true);
  assert.deepEqual(table.recordsOf(name), []);
  table.setRecords("zones", zones);
  assert.deepEqual(table.recordsOf(name), zones);
  table.removePeer(KEYS[1]!);
  assert.equal(table.isStale, false, "nothing is left out");
});
