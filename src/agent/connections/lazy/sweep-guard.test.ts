import assert from "node:assert/strict";
import { test } from "node:test";
import type { PacketSummary } from "#wireguard/device.ts";
import { HELD_MAX, ROUNDS_WANTED, SWEEP_BURST, SweepGuard } from "./sweep-guard.ts";

const OWN = "100.64.0.1";

function packet(protocol: number, sourcePort: number, destinationPort: number, bytes: number): PacketSummary {
  return { source: OWN, destination: "100.64.0.2", protocol, sourcePort, destinationPort, bytes };
}

/** One program pings everybody: `fping` has one identifier for all, a loop of `ping` one each. */
const echo = (identifier: number): PacketSummary => packet(1, identifier, 0, 84);
/** As `nmap -sS` and its kind craft it, all from one port. */
const scan = (port: number): PacketSummary => packet(6, 61_234, port, 44);
/** As `connect` makes it. */
const connection = (sourcePort: number, port = 22): PacketSummary => packet(6, sourcePort, port, 60);

/** A guard, the time, and whom it woke. */
function setup() {
  const guard = new SweepGuard<number>();
  const woken = new Set<number>();
  const world = {
    guard,
    woken,
    now: 1_000,
    /** A packet to a peer; awake ones are not asked about. True when the peer is awake afterwards. */
    touch(peer: number, what: PacketSummary): boolean {
      if (!woken.has(peer) && guard.judge(peer, what, world.now).kind === "wake") woken.add(peer);
      return woken.has(peer);
    },
    sweep(what: (peer: number) => PacketSummary, pace = 10, peers = 250): void {
      for (let peer = 0; peer < peers; peer++) {
        world.touch(peer, what(peer));
        world.now += pace;
      }
    },
  };
  return world;
}

const SWEEPS: readonly [string, (peer: number) => PacketSummary, number][] = [
  ["fping", () => echo(77), 10],
  ["a loop of ping that waits a second for each", (peer) => echo(1000 + peer), 1000],
  ["a SYN scan", () => scan(22), 2],
  ["a scan by connect with a short patience", (peer) => connection(40_000 + peer), 20],
  ["SNMP from one socket", () => packet(17, 5000, 161, 70), 5],
];

for (const [name, what, pace] of SWEEPS) {
  test(`${name} over 250 sleeping peers wakes three of them`, () => {
    const world = setup();
    world.sweep(what, pace);
    assert.equal(world.woken.size, SWEEP_BURST);
    assert.equal(world.guard.sweepOf(249)?.peers, 250);
    assert.equal(world.guard.sweepOf(0), undefined);
  });
}

test("a host discovery with four probes for each peer, twice, wakes no more than five", () => {
  const world = setup();
  for (let round = 0; round < 2; round++) {
    for (let peer = 0; peer < 250; peer++) {
      const port = 50_000 + round;
      for (const probe of [packet(1, 7, 0, 28), packet(6, port, 443, 44), packet(6, port, 80, 40), packet(1, 9, 0, 40)])
        world.touch(peer, probe);
      world.now += 4;
    }
  }
  assert.ok(world.woken.size <= 5, `${world.woken.size}`);
});

test("a scan of many ports on each peer by connect wakes no more than five in ten seconds", () => {
  const world = setup();
  for (let peer = 0; peer < 250; peer++) {
    for (let port = 1; port <= 100; port++) world.touch(peer, connection(30_000 + port, port));
    world.now += 30;
  }
  assert.ok(world.woken.size <= 5, `${world.woken.size}`);
});

for (const [name, what, pace] of SWEEPS.filter(([each]) => !each.includes("connect"))) {
  test(`a connection to one of the peers goes through at once while ${name} goes over them`, () => {
    const world = setup();
    world.sweep(what, pace, 100);
    assert.equal(world.touch(50, connection(45_000)), true, "held before");
    assert.equal(world.touch(240, connection(45_001)), true, "not touched yet");
    assert.equal(world.woken.size, SWEEP_BURST + 2);
  });
}

test("any number of connections to different ports go through at once while probes go over their peers", () => {
  const world = setup();
  world.sweep(() => echo(77), 10, 100);
  for (let peer = 50; peer < 80; peer++) assert.equal(world.touch(peer, connection(45_000 + peer, 8_000 + peer)), true);
});

test("a ping of somebody's own goes through at once while one program pings them all", () => {
  const world = setup();
  world.sweep(() => echo(77), 10, 100);
  assert.equal(world.touch(50, echo(12)), true);
});

test("a connection to the very port that a scan by connect asks for goes through with its first repetition", () => {
  const world = setup();
  world.sweep((peer) => connection(40_000 + peer), 20, 100);
  assert.equal(world.touch(50, connection(51_000)), false);
  world.now += 1_000;
  assert.equal(world.touch(50, connection(51_000)), true);
});

test("2,000 connections that are repeated all go through; so does what one socket asks again and again", () => {
  for (const [what, after] of [
    [(peer: number) => connection(30_000 + peer), 1_000],
    [(peer: number) => packet(17, 20_000 + peer, 53, 60), 1_000],
    [() => packet(17, 7946, 7946, 90), 5_000],
  ] as const) {
    const world = setup();
    world.sweep(what, 0.5, 2_000);
    assert.equal(world.woken.size, SWEEP_BURST);
    world.now += after - 1_000;
    world.sweep(what, 0.5, 2_000);
    assert.equal(world.woken.size, 2_000);
  }
});

test("a ping that goes on gets through, one that is repeated for two seconds does not", () => {
  const world = setup();
  world.sweep(() => echo(77), 1);
  const start = world.now;
  for (const retry of [500, 1_250, 2_400]) {
    world.now = start + retry;
    world.sweep(() => echo(77), 0);
  }
  assert.equal(world.woken.size, SWEEP_BURST);
  world.now = start + 5_000;
  assert.equal(world.touch(100, echo(77)), true);
});

test("a scan from a fixed port that comes again a minute later is a scan again", () => {
  const world = setup();
  world.sweep(() => scan(22), 2);
  world.now += 60_000;
  world.sweep(() => scan(22), 2);
  assert.ok(world.woken.size <= 2 * SWEEP_BURST, `${world.woken.size}`);
});

test("a monitor that pings everybody each minute is let through after some rounds, a scan that comes twice is not", () => {
  const world = setup();
  for (let round = 1; round < ROUNDS_WANTED; round++) {
    world.sweep(() => echo(round), 10);
    // Those that woke sleep again.
    world.now += 60_000;
  }
  assert.ok(world.woken.size <= ROUNDS_WANTED * SWEEP_BURST, `${world.woken.size}`);
  world.sweep(() => echo(99), 10);
  assert.equal(world.woken.size, 250);
});

test("what one machine behind us does is no reason to doubt another", () => {
  const world = setup();
  world.sweep(() => echo(77), 10, 100);
  for (let peer = 200; peer < 200 + SWEEP_BURST; peer++)
    assert.equal(world.touch(peer, { ...echo(77), source: "192.168.1.9" }), true);
});

test("three peers woken for the same purpose now and then are no sweep", () => {
  const world = setup();
  world.sweep((peer) => connection(40_000 + peer), 4_000);
  assert.equal(world.woken.size, 250);
});

test("a sweep is over after a while, and the next begins with nothing against it", () => {
  const world = setup();
  world.sweep(() => echo(77), 10);
  world.now += 16_000;
  world.sweep((peer) => echo(500 + peer), 10);
  assert.ok(world.woken.size <= 2 * SWEEP_BURST && world.woken.size > SWEEP_BURST, `${world.woken.size}`);
});

test("a flood towards a held peer is looked at a few times in a tenth of a second", () => {
  const world = setup();
  world.sweep(() => echo(77), 10, 10);
  const waits: number[] = [];
  for (let i = 0; i < 20; i++) {
    const verdict = world.guard.judge(9, echo(77), world.now);
    assert.equal(verdict.kind, "hold");
    if (verdict.kind === "hold") waits.push(verdict.lookAt - world.now);
  }
  assert.ok(waits.slice(0, 2).every((wait) => wait <= 0));
  assert.ok(waits.slice(4).every((wait) => wait > 0 && wait <= 100));
});

test("more peers than can be remembered: who comes back in time is let through nevertheless", () => {
  const world = setup();
  const peers = 3 * HELD_MAX;
  const what = (peer: number): PacketSummary => connection(1024 + (peer % 60_000));
  for (let attempt = 0; attempt < 6; attempt++) {
    world.sweep(what, 0, peers);
    world.now += 1_000;
  }
  assert.equal(world.woken.size, peers);
});
