import assert from "node:assert/strict";
import { closeSync, openSync } from "node:fs";
import { test } from "node:test";
import { Arena } from "./arena.ts";
import { PROTOCOL_LIMITS } from "./limits.ts";
import { PathKind, Peer } from "./peers.ts";
import { Sessions } from "./sessions.ts";
import { Staging } from "./staging.ts";
import { Stats } from "./stats.ts";
import { type TransmitDeps, Transmitter } from "./transmit.ts";

test("staged packets that met a full socket say so and leave in the next turn that finds room", () => {
  const arena = new Arena(1 << 20);
  const stats = Stats.create(64);
  const staging = new Staging(arena, stats);
  const sessions = new Sessions(() => undefined);
  const queue = { full: true, blockedFamily: 0, flush: (): boolean => queue.blockedFamily === 0 };
  const sealed: number[] = [];
  const nothing = (): void => {};
  const deps = {
    arena,
    stats,
    staging,
    queue: {
      get full() {
        return queue.full;
      },
      get blockedFamily() {
        return queue.blockedFamily;
      },
      flush: queue.flush,
      reserve: (_: Peer, size: number) => sealed.push(size) && -1,
    },
    filter: { isOn: false },
    limits: PROTOCOL_LIMITS,
    tun: { virtioHeader: false, gone: false },
    reporter: { relay: { bytes: new Uint8Array(8) }, needHandshake: nothing },
    timers: { dataSent: nothing, authenticatedSent: nothing },
  } as unknown as TransmitDeps;
  // A TUN with nothing to read.
  const tunFd = openSync("/dev/null", "r");
  const transmitter = new Transmitter(deps, { tunFd, mtu: 1280 });
  const peer = new Peer(0, false);
  peer.path = PathKind.v4;
  sessions.install(peer, { initiator: true, localIndex: 1, remoteIndex: 2, createdAt: 0 }, new Uint8Array(64), 0);
  const packet = arena.take(2048) + 64;
  arena.bytes.set([0x45, 0, 0, 100], packet);
  for (let i = 0; i < 3; i++) staging.push(peer, packet, 100, 0);

  queue.blockedFamily = 4;
  transmitter.flushStaged(peer);
  assert.equal(transmitter.hasWaiting, true);
  assert.equal(transmitter.turn(), false, "no room yet");
  assert.equal(transmitter.hasWaiting, true);
  queue.blockedFamily = 0;
  transmitter.turn();
  assert.equal(transmitter.hasWaiting, false);
  assert.equal(peer.stagedPackets, 0);
  assert.equal(sealed.length, 3);
  closeSync(tunFd);
});
