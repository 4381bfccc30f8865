import assert from "node:assert/strict";
import { test } from "node:test";
import { parseEndpoint } from "#base/ip.ts";
import { PrivateKey } from "#base/keys.ts";
import { Body_Type } from "#gen/signal_pb.ts";
import { createGoIdleBody } from "#signal/protocol/offer.ts";
import { createInfo, offerBody, setup, THRESHOLD } from "./testing/scripted-manager.ts";
import { MAX_NEGOTIATING } from "./wake-queue.ts";

test("idle peers have no timer, send no message and start no handshake", () => {
  const { clock, device, sent, manager } = setup(50);
  clock.advance(3_600_000);
  assert.equal(clock.pending, 0);
  assert.equal(sent.length, 0);
  assert.deepEqual(device.initiations, []);
  assert.ok([...manager.peers].every((peer) => peer.status === "idle"));
});

test("a packet wakes exactly its peer, and says why", () => {
  const { device, sent, manager, keys } = setup(3);
  device.packetTo(keys[1]!);
  assert.deepEqual(
    [...manager.peers].map((peer) => peer.status),
    ["idle", "connecting", "idle"],
  );
  assert.deepEqual(device.initiations, [keys[1]]);
  assert.deepEqual(
    sent.map(({ to, body }) => [to, body.type]),
    [[keys[1], Body_Type.OFFER]],
  );
  assert.equal(manager.find(keys[1]!)?.reason, "tcp 100.64.0.1:40000 -> 100.64.0.2:22");
  device.established(keys[1]!);
  assert.equal(manager.find(keys[1]!)?.status, "connected");
});

test("a peer sleeps one threshold after its last traffic, tells the other side, and wakes again", () => {
  const { clock, device, sent, manager, keys } = setup();
  const key = keys[0]!;
  device.packetTo(key);
  device.established(key);
  clock.advance(30_000);
  device.activity.set(key, clock.now());
  clock.advance(THRESHOLD - 1);
  assert.equal(manager.find(key)?.status, "connected");
  clock.advance(1);
  assert.equal(manager.find(key)?.status, "idle");
  assert.equal(manager.find(key)?.reason, "no traffic for 1 min");
  assert.equal(device.modes.get(key), "asleep");
  assert.equal(sent.at(-1)?.body.type, Body_Type.GO_IDLE);
  assert.equal(clock.pending, 0);
  device.packetTo(key);
  assert.equal(manager.find(key)?.status, "connecting");
});

test("a peer that packets wait for does not sleep before they are given up", () => {
  const { clock, device, sent, manager, keys } = setup();
  const key = keys[0]!;
  device.packetTo(key);
  device.staged.set(key, 100);
  clock.advance(THRESHOLD + 1_000);
  manager.receiveSignal(key, createGoIdleBody());
  assert.equal(manager.find(key)?.status, "connecting");
  assert.equal(sent.at(-1)?.body.type, Body_Type.OFFER);
  clock.advance(30_000);
  assert.equal(manager.find(key)?.status, "idle");
});

test("GO_IDLE puts a peer to sleep without an answer", () => {
  const { clock, device, sent, manager, keys } = setup();
  device.packetTo(keys[0]!);
  device.established(keys[0]!);
  clock.advance(5_000);
  const before = sent.length;
  manager.receiveSignal(keys[0]!, createGoIdleBody());
  assert.equal(manager.find(keys[0]!)?.status, "idle");
  assert.equal(sent.length, before);
});

test("a GO_IDLE that crossed with a wake or with traffic of ours is answered by an offer, not followed", () => {
  const { clock, device, sent, manager, keys } = setup();
  const key = keys[0]!;
  device.packetTo(key);
  device.established(key);
  clock.advance(100);
  manager.receiveSignal(key, createGoIdleBody());
  assert.equal(manager.find(key)?.status, "connected");
  assert.equal(sent.at(-1)?.body.type, Body_Type.OFFER);
  clock.advance(30_000);
  device.sent.set(key, clock.now());
  clock.advance(100);
  manager.receiveSignal(key, createGoIdleBody());
  assert.equal(sent.at(-1)?.body.type, Body_Type.OFFER);
  clock.advance(30_000);
  manager.receiveSignal(key, createGoIdleBody());
  assert.equal(manager.find(key)?.status, "idle");
});

test("a handshake that crossed with our GO_IDLE is answered by an offer: the other side may sleep by now", () => {
  const { clock, device, sent, manager, keys } = setup();
  const key = keys[0]!;
  const handshake = (): void =>
    device.events.emit("wake", { key, cause: { kind: "handshake", source: { kind: "relay" } } });
  device.packetTo(key);
  device.established(key);
  clock.advance(THRESHOLD + 1);
  assert.equal(manager.find(key)?.status, "idle");
  clock.advance(20);
  handshake();
  assert.equal(sent.at(-1)?.body.type, Body_Type.OFFER);
  device.established(key);
  clock.advance(THRESHOLD + 1);
  assert.equal(manager.find(key)?.status, "idle");
  clock.advance(10_000);
  handshake();
  assert.notEqual(sent.at(-1)?.body.type, Body_Type.OFFER);
});

test("a permanent peer that says GO_IDLE is not closed but called back", () => {
  const { clock, device, sent, manager, keys } = setup(1, false);
  device.established(keys[0]!);
  clock.advance(60_000);
  manager.receiveSignal(keys[0]!, createGoIdleBody());
  assert.equal(manager.find(keys[0]!)?.status, "connected");
  assert.equal(sent.at(-1)?.body.type, Body_Type.OFFER);
});

test("an offer wakes and is answered; an answer, a candidate and strangers do not wake", () => {
  const { sent, manager, keys } = setup(2);
  manager.receiveSignal(PrivateKey.generate().publicKey, offerBody());
  const answer = offerBody();
  answer.type = Body_Type.ANSWER;
  manager.receiveSignal(keys[1]!, answer);
  assert.equal(sent.length, 0);
  manager.receiveSignal(keys[0]!, offerBody());
  assert.deepEqual(
    sent.map(({ to, body }) => [to, body.type]),
    [[keys[0], Body_Type.ANSWER]],
  );
  assert.equal(manager.find(keys[1]!)?.status, "idle");
});

test("switching lazy off opens every peer, switching it on drops none and lets them sleep later", () => {
  const { clock, device, manager, keys } = setup(5);
  manager.setLazy(false);
  assert.ok([...manager.peers].every((peer) => peer.status === "connecting"));
  for (const key of keys) device.established(key);
  clock.advance(10 * THRESHOLD);
  assert.ok([...manager.peers].every((peer) => peer.status === "connected"));
  manager.setLazy(true);
  assert.ok([...manager.peers].every((peer) => peer.status === "connected"));
  clock.advance(THRESHOLD);
  assert.ok([...manager.peers].every((peer) => peer.status === "idle"));
});

test("a peer whose agent is too old for lazy connections is permanent, until its version rises", () => {
  const { device, manager, clock } = setup(0);
  const old = createInfo(7, "0.44.9");
  manager.apply({ removed: [], changed: [], added: [old] });
  assert.equal(manager.find(old.key)?.status, "connecting");
  assert.match(manager.decisionOf(old.key).why, /0\.44\.9 does not support/);
  device.established(old.key);
  manager.apply({ removed: [], changed: [{ ...old, agentVersion: "0.76.0" }], added: [] });
  clock.advance(THRESHOLD);
  assert.equal(manager.find(old.key)?.status, "idle");
});

test("a pinned peer stays awake and cannot be put to sleep", () => {
  const { clock, manager, device, keys } = setup();
  manager.pin(keys[0]!, true);
  device.established(keys[0]!);
  clock.advance(10 * THRESHOLD);
  assert.equal(manager.find(keys[0]!)?.status, "connected");
  assert.throws(() => manager.sleep(keys[0]!, "asked"), /stays connected: pinned/);
  manager.pin(keys[0]!, false);
  clock.advance(THRESHOLD);
  assert.equal(manager.find(keys[0]!)?.status, "idle");
});

test("members of a route group wake together and sleep together", () => {
  const { clock, device, manager, keys } = setup(3);
  manager.setGroups(new Map([["net 10.0.0.0/8", new Set([keys[0]!, keys[1]!])]]));
  device.packetTo(keys[0]!);
  assert.deepEqual(
    [...manager.peers].map((peer) => peer.status),
    ["connecting", "connecting", "idle"],
  );
  for (const key of keys.slice(0, 2)) device.established(key);
  clock.advance(THRESHOLD / 2);
  device.activity.set(keys[1]!, clock.now());
  clock.advance(THRESHOLD / 2 + 1);
  assert.ok([0, 1].every((index) => manager.find(keys[index]!)?.status === "connected"));
  clock.advance(THRESHOLD);
  assert.ok([0, 1].every((index) => manager.find(keys[index]!)?.status === "idle"));
});

test("a peer that comes back right after every GO_IDLE is left alone for longer and longer", () => {
  const { clock, device, manager, keys } = setup();
  const key = keys[0]!;
  const awakeFor = (): number => {
    manager.receiveSignal(key, offerBody());
    device.established(key);
    const start = clock.now();
    while (manager.find(key)?.status !== "idle") clock.advance(1000);
    return clock.now() - start;
  };
  device.packetTo(key);
  device.established(key);
  clock.advance(THRESHOLD + 1);
  assert.equal(manager.find(key)?.status, "idle");
  const first = awakeFor();
  const second = awakeFor();
  assert.ok(first >= 2 * THRESHOLD, `${first}`);
  assert.ok(second > first, `${second} after ${first}`);
  clock.advance(3_600_000);
  assert.ok(awakeFor() <= THRESHOLD + 1000);
});

test("a wake that is called off while it waits for its turn lets the next packet ask again", () => {
  const { clock, device, manager, keys } = setup(MAX_NEGOTIATING + 1);
  for (const key of keys) device.packetTo(key);
  clock.advance(500);
  const waiting = keys.at(-1)!;
  assert.equal(manager.waitingWakes, 1);
  manager.sleep(waiting, "perch peers sleep");
  assert.deepEqual(device.declined, [waiting]);
  for (const key of keys.slice(0, -1)) device.established(key);
  assert.equal(manager.find(waiting)?.status, "idle");
  device.packetTo(waiting);
  assert.equal(manager.find(waiting)?.status, "connecting");
});

test("an agent older than GO_IDLE is not told of a sleep", () => {
  const { clock, device, sent, manager } = setup(0);
  const old = createInfo(3, "0.46.0");
  manager.apply({ removed: [], changed: [], added: [old] });
  device.packetTo(old.key);
  device.established(old.key);
  clock.advance(THRESHOLD);
  assert.equal(manager.find(old.key)?.status, "idle");
  assert.ok(sent.every(({ body }) => body.type !== Body_Type.GO_IDLE));
});

test("a route group that did not change wakes nobody", () => {
  const { device, manager, keys } = setup(2);
  const groups = new Map([["net 10.0.0.0/8", new Set(keys)]]);
  manager.setGroups(groups);
  device.packetTo(keys[0]!);
  for (const key of keys) device.established(key);
  manager.sleep(keys[1]!, "asked");
  manager.setGroups(new Map([["net 10.0.0.0/8", new Set(keys)]]));
  assert.equal(manager.find(keys[1]!)?.status, "idle");
});

test("the direct endpoint is tried first after any time awake, and forgotten some time after it was used", () => {
  const { clock, device, manager, keys } = setup();
  const key = keys[0]!;
  const endpoint = parseEndpoint("192.0.2.9:51820");
  const known = (): boolean => device.paths.at(-1)?.some((path) => path.kind === "udp") ?? false;
  device.packetTo(key);
  device.events.emit("established", { key, role: "initiator", source: { kind: "udp", endpoint } });
  for (let minute = 0; minute < 30; minute++) {
    clock.advance(30_000);
    device.activity.set(key, clock.now());
  }
  manager.sleep(key, "asked");
  clock.advance(5 * 60_000);
  device.packetTo(key);
  assert.equal(known(), true);
  device.established(key);
  manager.sleep(key, "asked");
  clock.advance(11 * 60_000);
  device.packetTo(key);
  assert.equal(known(), false);
});

test("at the end awake peers are told to sleep, the others hear nothing", async () => {
  const { device, sent, manager, keys } = setup(3);
  device.packetTo(keys[1]!);
  device.established(keys[1]!);
  const before = sent.length;
  await manager.farewell();
  assert.deepEqual(
    sent.slice(before).map(({ to, body }) => [to, body.type]),
    [[keys[1], Body_Type.GO_IDLE]],
  );
});

test("a peer that leaves the map is gone from device, timers and queues", () => {
  const { clock, device, manager, keys } = setup(2);
  device.packetTo(keys[0]!);
  manager.apply({ removed: keys, changed: [], added: [] });
  assert.equal(manager.size, 0);
  assert.equal(device.modes.size, 0);
  assert.equal(clock.pending, 0);
});

test("news for all awake peers reaches a few of them in a turn, and none that slept meanwhile", () => {
  const { clock, device, manager, keys } = setup(20);
  for (const key of keys) device.packetTo(key);
  clock.advance(200);
  for (const key of keys) device.established(key);
  const told: unknown[] = [];
  for (const peer of manager.peers) peer.post = (event) => void told.push(event.kind === "network-changed" && peer.key);
  manager.networkChanged();
  assert.equal(told.length, 8);
  const sleeper = keys.find((key) => !told.includes(key))!;
  manager.apply({ added: [], changed: [], removed: [sleeper] });
  clock.advance(0);
  assert.deepEqual(new Set(told), new Set(keys.filter((key) => key !== sleeper)));
  assert.equal(told.length, 19);
});
