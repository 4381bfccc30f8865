/** What may wake, and who stays lazy: the connection manager with its guard, queue and judge of wakes. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as nextTurn } from "node:timers/promises";
import { Body_Type } from "#gen/signal_pb.ts";
import type { PacketSummary } from "#wireguard/device.ts";
import { HOLD_PATIENCE, SWEEP_BURST } from "./lazy/sweep-guard.ts";
import { createInfo, offerBody, setup, THRESHOLD } from "./testing/scripted-manager.ts";
import { MAX_NEGOTIATING } from "./wake-queue.ts";

const HOUR = 3_600_000;
const PING: Partial<PacketSummary> = { protocol: 1, sourcePort: 77, destinationPort: 0, bytes: 84 };

const awake = ({ manager }: ReturnType<typeof setup>): number =>
  [...manager.peers].filter((peer) => peer.status !== "idle").length;

const events = ({ manager }: ReturnType<typeof setup>, key: Parameters<typeof manager.find>[0]): string[] =>
  manager.find(key)!.timeline.map(({ event }) => event);

test("a ping sweep over 250 sleeping peers wakes three, and says of the others why they sleep on", () => {
  const world = setup(250);
  const { clock, device, manager, keys } = world;
  for (const key of keys) {
    device.packetTo(key, PING);
    clock.advance(10);
  }
  assert.equal(awake(world), SWEEP_BURST);
  assert.equal(manager.whyHeld(keys[100]!), "held back: part of a sweep over 250 peers");
  assert.equal(manager.whyHeld(keys[0]!), undefined);
  assert.equal(manager.wakes.held, 250 - SWEEP_BURST);
  assert.equal(manager.wakes.counters.get("wakes-held"), 250 - SWEEP_BURST);
  assert.deepEqual(events(world, keys[100]!), ["held"]);
  assert.equal(manager.find(keys[100]!)!.timeline[0]!.detail, "held back: part of a sweep over 101 peers (ping)");
  // What waits stays for a while, and the device reports what comes next.
  assert.ok(device.postponed.every(([, staged]) => staged === "keep"));
  assert.equal(device.postponed.length, 250 - SWEEP_BURST);
});

test("what a sweep left waiting is dropped when nothing more comes, and leaves no timer", () => {
  const world = setup(20);
  const { clock, device, manager, keys } = world;
  for (const key of keys) device.packetTo(key, PING);
  for (const key of keys.slice(0, SWEEP_BURST)) {
    device.established(key);
    manager.sleep(key, "asked");
  }
  clock.advance(HOLD_PATIENCE);
  const dropped = device.postponed.filter(([, staged]) => staged === "drop").map(([key]) => key);
  assert.deepEqual(new Set(dropped), new Set(keys.slice(SWEEP_BURST)));
  assert.equal(manager.wakes.held, 0);
  assert.equal(manager.whyHeld(keys[10]!), undefined);
  assert.deepEqual(events(world, keys[10]!), ["held", "held-dropped"]);
  assert.equal(clock.pending, 0);
});

test("a connection to a held peer wakes it in the same instant", () => {
  const world = setup(100);
  const { device, manager, keys } = world;
  for (const key of keys) device.packetTo(key, PING);
  device.packetTo(keys[60]!);
  assert.equal(manager.find(keys[60]!)!.status, "connecting");
  assert.deepEqual(device.initiations.at(-1), keys[60]);
  assert.equal(manager.whyHeld(keys[60]!), undefined);
  assert.deepEqual(events(world, keys[60]!).slice(0, 3), ["held", "released", "wake"]);
});

test("a connection that is repeated after a second wakes its peer, be it one of many alike", () => {
  const world = setup(100);
  const { clock, device, keys } = world;
  const connect = (index: number): void =>
    device.packetTo(keys[index]!, { sourcePort: 40_000 + index, destinationPort: 22 });
  for (const index of keys.keys()) connect(index);
  assert.equal(awake(world), SWEEP_BURST);
  clock.advance(1_000);
  for (let index = SWEEP_BURST; index < keys.length; index++) connect(index);
  for (const key of keys) {
    device.established(key);
    clock.advance(10);
  }
  assert.equal(awake(world), 100);
});

test("traffic that a device does not show wakes every peer, and one of many lets a single connection go first", () => {
  const world = setup(200);
  const { clock, device, manager, keys } = world;
  const single = keys.at(-1)!;
  for (const key of keys.slice(0, -1)) device.events.emit("wake", { key, cause: { kind: "activity" } });
  clock.advance(200);
  assert.equal(awake(world), MAX_NEGOTIATING);
  assert.equal(manager.find(keys[0]!)!.timeline[0]!.detail, "traffic from here");
  assert.equal(device.postponed.length, 0, "nothing is held back");
  device.packetTo(single);
  device.established(keys[0]!);
  clock.advance(20);
  assert.equal(manager.find(single)!.status, "connecting", "before those that waited for longer");
  for (let round = 0; round < 10; round++) {
    for (const { key, status } of manager.peers) if (status === "connecting") device.established(key);
    clock.advance(1_000);
  }
  assert.equal(awake(world), 200);
});

test("the offer of a held peer wakes it", () => {
  const { device, manager, keys } = setup(50);
  for (const key of keys) device.packetTo(key, PING);
  manager.receiveSignal(keys[40]!, offerBody());
  assert.equal(manager.find(keys[40]!)!.status, "connecting");
  assert.equal(manager.whyHeld(keys[40]!), undefined);
});

test("a flood towards a held peer is looked at a few times in a tenth of a second", () => {
  const { clock, device, keys } = setup(10);
  for (const key of keys) device.packetTo(key, PING);
  const key = keys[9]!;
  let reports = 0;
  // The device reports only after it was told to.
  const postponedBefore = (): number => device.postponed.filter(([each]) => each === key).length;
  for (let ms = 0; ms < 1_000; ms++) {
    if (postponedBefore() > reports) {
      reports++;
      device.packetTo(key, PING);
    }
    clock.advance(1);
  }
  assert.ok(reports >= 10 && reports <= 45, `${reports} reports`);
});

test("what somebody waits for goes before routers, and these before the rest", () => {
  const { clock, device, manager, keys } = setup(MAX_NEGOTIATING + 1);
  for (const key of keys.slice(0, -1)) device.packetTo(key);
  clock.advance(500);
  const background = createInfo(1_000, "0.44.0");
  const router = { ...createInfo(1_001, "0.44.0"), routes: createInfo(1_002).allowedIps };
  manager.apply({ removed: [], changed: [], added: [background, router] });
  device.packetTo(keys.at(-1)!);
  assert.equal(manager.wakes.waiting, 3);
  const order = [keys.at(-1)!, router.key, background.key];
  for (const [index, key] of order.entries()) {
    assert.equal(manager.find(key)!.status, "idle");
    device.established(keys[index]!);
    clock.advance(10);
    assert.equal(manager.find(key)!.status, "connecting");
  }
});

test("a peer that is away gives its place to the next as soon as the signal server says so", async () => {
  const { clock, device, signal, manager, keys } = setup(MAX_NEGOTIATING + 1);
  signal.delivered = false;
  for (const key of keys) device.packetTo(key);
  clock.advance(500);
  assert.equal(manager.wakes.waiting, 1);
  await nextTurn();
  clock.advance(10);
  await nextTurn();
  assert.deepEqual([manager.wakes.waiting, manager.wakes.negotiating], [0, 0]);
  assert.ok(keys.every((key) => manager.find(key)!.status === "connecting"));
});

test("a wake that never gets its turn says so", () => {
  const world = setup(0);
  const { clock, device, manager } = world;
  // Permanent peers that never answer take all places again and again, but only after those that somebody waits for.
  const hogs = Array.from({ length: 1_500 }, (_, index) => createInfo(index));
  manager.apply({ removed: [], changed: [], added: hogs });
  const last = hogs.at(-1)!.key;
  for (const { key } of hogs) manager.wake(key, "asked");
  clock.advance(61_000);
  assert.equal(manager.find(last)!.status, "idle");
  assert.deepEqual(events(world, last), ["wake-expired"]);
  assert.match(manager.find(last)!.timeline[0]!.detail, /did not come within a minute: asked/);
  assert.ok(device.declined.includes(last), "its packets may ask again");
});

test("a permanent peer that a packet waited for in vain opens all the same", () => {
  const { clock, manager } = setup(0);
  const old = Array.from({ length: 1_500 }, (_, index) => createInfo(index, "0.44.0"));
  manager.apply({ removed: [], changed: [], added: old });
  for (const { key } of old) manager.wake(key, "asked");
  clock.advance(61_000);
  assert.ok((manager.wakes.counters.get("wakes-expired") ?? 0) > 0);
  clock.advance(61_000);
  assert.ok([...manager.peers].every(({ status }) => status === "connecting"));
});

/** Wakes the first peer by a packet and lets the budget of the wake pass without a handshake. */
async function failWake(world: ReturnType<typeof setup>): Promise<void> {
  const { clock, device, keys } = world;
  device.packetTo(keys[0]!);
  await nextTurn();
  clock.advance(31_000);
}

test("a peer whose wake failed twice in a row is kept connected for an hour, then lazy again if it works", async () => {
  const world = setup();
  const { clock, device, manager, keys } = world;
  const key = keys[0]!;
  await failWake(world);
  assert.deepEqual(manager.decisionOf(key).lazy, true);
  clock.advance(THRESHOLD);
  assert.equal(manager.find(key)!.status, "idle");
  await failWake(world);
  const decision = manager.decisionOf(key);
  assert.equal(decision.lazy, false);
  assert.equal(decision.kept, true);
  assert.match(decision.why, /^its last 2 wakes failed, kept connected until \d\d:\d\d$/);
  assert.equal(manager.wakes.kept, 1);
  assert.deepEqual(
    events(world, key).filter((event) => event.startsWith("wake-") || event === "kept"),
    ["wake-failed", "wake-failed", "kept"],
  );
  clock.advance(10 * THRESHOLD);
  assert.equal(manager.find(key)!.status, "connecting", "it does not sleep");
  device.established(key);
  clock.advance(HOUR - 11 * THRESHOLD);
  assert.equal(manager.find(key)!.status, "connected");
  clock.advance(2 * THRESHOLD);
  assert.equal(manager.decisionOf(key).lazy, true);
  assert.equal(manager.wakes.kept, 0);
  clock.advance(THRESHOLD);
  assert.equal(manager.find(key)!.status, "idle");
  assert.equal(clock.pending, 0);
});

test("a kept peer that stays away is called ever more rarely, and kept for longer", async () => {
  const world = setup();
  const { clock, device, sent, manager, keys } = world;
  await failWake(world);
  clock.advance(THRESHOLD);
  await failWake(world);
  clock.advance(10 * 60_000);
  const [offers, initiations] = [sent.length, device.initiations.length];
  clock.advance(HOUR);
  assert.equal(manager.decisionOf(keys[0]!).kept, true);
  // As often as a stock agent's guard: every half a minute.
  assert.ok(sent.length - offers <= 121, `${sent.length - offers} offers in an hour`);
  assert.ok(device.initiations.length - initiations <= 121, `${device.initiations.length - initiations} initiations`);
  manager.receiveSignal(keys[0]!, offerBody());
  const answered = device.initiations.length;
  clock.advance(2_000);
  assert.ok(device.initiations.length - answered >= 3, "it is there: tried at once");
});

for (const [what, delivered] of [
  ["is not connected to the signal server", false],
  ["may be anywhere, for all the server says", undefined],
] as const) {
  test(`the wake of a peer that ${what} does not count as failed`, async () => {
    const world = setup();
    world.signal.delivered = delivered;
    for (let i = 0; i < 4; i++) {
      await failWake(world);
      world.clock.advance(THRESHOLD);
    }
    assert.equal(world.manager.decisionOf(world.keys[0]!).lazy, true);
    assert.ok(!events(world, world.keys[0]!).includes("wake-failed"));
  });
}

test("a wake that worked between two that failed makes them none in a row", async () => {
  const world = setup();
  const { clock, device, manager, keys } = world;
  for (let i = 0; i < 3; i++) {
    await failWake(world);
    clock.advance(THRESHOLD);
    device.packetTo(keys[0]!);
    device.established(keys[0]!);
    clock.advance(THRESHOLD);
  }
  assert.equal(manager.decisionOf(keys[0]!).lazy, true);
});

test("switching lazy off and on moves peers of every kind, and drops none that is connected", () => {
  const world = setup(6);
  const { clock, device, manager, keys } = world;
  const old = createInfo(500, "0.44.0");
  manager.apply({ removed: [], changed: [], added: [old] });
  const [pinned, grouped, mate, target] = keys as [typeof old.key, typeof old.key, typeof old.key, typeof old.key];
  manager.pin(pinned, true);
  manager.setGroups(new Map([["net 10.0.0.0/8", new Set([grouped, mate])]]));
  manager.setForwardTargets(new Set([target]));
  device.packetTo(grouped);
  const permanent = [old.key, pinned, target];
  const connected = [...permanent, grouped, mate];
  clock.advance(100);
  for (const key of connected) device.established(key);
  const generations = connected.map((key) => manager.find(key)!.wokeAt);
  for (const lazy of [false, true, false, true]) {
    manager.setLazy(lazy);
    clock.advance(1_000);
    for (const key of keys) device.established(key);
    assert.deepEqual(
      connected.map((key) => manager.find(key)!.wokeAt),
      generations,
      "none was dropped and woken again",
    );
    assert.ok([...manager.peers].every(({ status }) => status === "connected"));
  }
  clock.advance(THRESHOLD);
  for (const key of [...keys, old.key]) {
    assert.equal(manager.find(key)!.status, permanent.includes(key) ? "connected" : "idle");
    assert.equal(manager.decisionOf(key).lazy, !permanent.includes(key));
  }
  manager.setForwardTargets(new Set());
  manager.pin(pinned, false);
  clock.advance(THRESHOLD);
  assert.equal(manager.find(target)!.status, "idle");
  assert.equal(manager.find(pinned)!.status, "idle");
});

test("peers that wait for their turn to open when lazy is switched off go on waiting, and are let go when it is on again", () => {
  const { clock, device, sent, manager, keys } = setup(MAX_NEGOTIATING + 10);
  manager.setLazy(false);
  clock.advance(500);
  assert.equal(manager.wakes.waiting, 10);
  manager.setLazy(true);
  for (const key of keys.slice(0, MAX_NEGOTIATING)) device.established(key);
  assert.equal(manager.wakes.waiting, 0);
  assert.equal(sent.filter(({ body }) => body.type === Body_Type.OFFER).length, MAX_NEGOTIATING);
});
