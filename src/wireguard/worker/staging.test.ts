import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Arena } from "./arena.ts";
import { Peer } from "./peers.ts";
import { STAGED_DEVICE_MAX_BYTES, STAGED_PEER_MAX_BYTES, STAGED_PEER_MAX_POOL_BYTES, Staging } from "./staging.ts";
import { Counter, Stats } from "./stats.ts";

const BLOCK = 2048;

function setup(peers = 4) {
  const arena = new Arena(1 << 18);
  const stats = Stats.create(Math.max(64, peers));
  const staging = new Staging(arena, stats);
  const at = arena.take(70_000) + 64;
  const push = (peer: Peer, bytes: Uint8Array): boolean => {
    arena.bytes.set(bytes, at - 10);
    return staging.push(peer, at, bytes.length - 10, 1);
  };
  const shift = (peer: Peer): Uint8Array | undefined => {
    const length = staging.shift(peer, at);
    return length < 0 ? undefined : arena.bytes.slice(at - 10, at + length);
  };
  return { staging, stats, push, shift, peers: Array.from({ length: peers }, (_, slot) => new Peer(slot, true)) };
}

test("packets come back whole with their virtio header, in order for each peer", () => {
  const packet = fc.record({ peer: fc.nat(3), size: fc.integer({ min: 30, max: 66_000 }), take: fc.boolean() });
  fc.assert(
    fc.property(fc.array(packet, { maxLength: 60 }), (steps) => {
      const { push, shift, peers, stats } = setup();
      const waiting: Buffer[][] = peers.map(() => []);
      steps.forEach(({ peer, size, take }, i) => {
        const bytes = Buffer.alloc(size, i + 1);
        const cost = (packets: Buffer[]): number => packets.reduce((sum, b) => sum + b.length, 0);
        assert.ok(push(peers[peer]!, bytes));
        waiting[peer]!.push(bytes);
        while (cost(waiting[peer]!) > STAGED_PEER_MAX_BYTES) waiting[peer]!.shift();
        assert.equal(peers[peer]!.stagedBytes, cost(waiting[peer]!));
        if (take) assert.deepEqual(shift(peers[peer]!), new Uint8Array(waiting[peer]!.shift()!));
      });
      peers.forEach((peer, i) => {
        for (const expected of waiting[i]!) assert.deepEqual(shift(peer), new Uint8Array(expected));
        assert.equal(shift(peer), undefined);
        assert.equal(stats.peer(peer.slot).stagedBytes, 0);
      });
      assert.equal(stats.words[Counter["staged-bytes"]], 0);
    }),
    { numRuns: 40 },
  );
});

test("a peer holds 1 MiB of packets, whatever blocks they take: the oldest make room and are counted", () => {
  const { push, shift, peers, stats } = setup();
  for (let i = 0; i < 1100; i++) push(peers[0]!, Buffer.alloc(1024, i & 0xff));
  assert.equal(peers[0]!.stagedBytes, STAGED_PEER_MAX_BYTES);
  assert.equal(stats.words[Counter["drop-staged-peer-full"]], 1100 - 1024);
  assert.equal(shift(peers[0]!)![0], 1100 - 1024);
});

test("a peer's tiny packets take 4 MiB of the pool at most", () => {
  const { push, peers, stats } = setup();
  for (let i = 0; i < 3000; i++) push(peers[0]!, Buffer.alloc(50));
  assert.equal(peers[0]!.stagedPackets, STAGED_PEER_MAX_POOL_BYTES / BLOCK);
  assert.equal(stats.words[Counter["staged-bytes"]], STAGED_PEER_MAX_POOL_BYTES);
});

test("the device holds 32 MiB: one flooded peer after the other, then only what makes its own room", () => {
  const { push, peers, stats, staging } = setup(40);
  for (const peer of peers) for (let i = 0; i < 512; i++) push(peer, Buffer.alloc(2048));
  assert.equal(stats.words[Counter["staged-bytes"]], STAGED_DEVICE_MAX_BYTES);
  assert.equal(peers[32]!.stagedPackets, 0, "nothing is left for it");
  assert.equal(peers[0]!.stagedPackets, 512, "and nothing was taken from others");
  assert.ok(stats.words[Counter["drop-staged-device-full"]]! > 0);
  for (const peer of peers) staging.clear(peer, Counter["drop-staged-removed"]);
  assert.equal(stats.words[Counter["staged-bytes"]], 0);
  assert.ok(push(peers[32]!, Buffer.alloc(66_000)), "the room is there again");
});
