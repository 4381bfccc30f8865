import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { test } from "node:test";
import { macState } from "../blake2s.ts";
import { PROTOCOL_LIMITS } from "./limits.ts";
import { rehearse } from "./loop-rehearsal.ts";
import { Ring } from "./ring.ts";
import { Stats } from "./stats.ts";
import type { WorkerStart } from "./worker-start.ts";

/** Rounds, and in each: the packet that woke, and one of two protocols to either side over each of two paths. */
const ARRIVING = 3 * (1 + 2 * 2 * 2);

function workerStart(virtioHeader: boolean): WorkerStart {
  const ring = (): SharedArrayBuffer => Ring.create(4096).buffer;
  return {
    tunFd: -1,
    virtioHeader,
    udpSegmentation: virtioHeader,
    v4Fd: -1,
    v6Fd: -1,
    gso: true,
    gro: true,
    eventFd: -1,
    mtu: 1280,
    port: 51820,
    control: new SharedArrayBuffer(64),
    commands: ring(),
    events: ring(),
    datagrams: ring(),
    relay: ring(),
    stats: Stats.create(4).buffer,
    clockOffset: Number(process.hrtime.bigint()) / 1e6 - performance.now(),
    limits: PROTOCOL_LIMITS,
    mac1Key: macState(new Uint8Array(32)),
    capture: undefined,
  };
}

for (const virtioHeader of [true, false]) {
  test(`all packets of a rehearsal arrive ${virtioHeader ? "with" : "without"} a virtio header`, () => {
    assert.equal(rehearse(workerStart(virtioHeader)), ARRIVING);
  });
}

test("a rehearsal touches nothing of the real loop and leaves no descriptor", () => {
  const start = workerStart(true);
  const openBefore = readdirSync("/proc/self/fd").length;
  rehearse(start);
  assert.equal(readdirSync("/proc/self/fd").length, openBefore);
  for (const buffer of [start.commands, start.events, start.datagrams, start.relay])
    assert.equal(new Ring(buffer).used, 0);
  assert.ok(new Float64Array(start.stats).every((word) => word === 0));
});
