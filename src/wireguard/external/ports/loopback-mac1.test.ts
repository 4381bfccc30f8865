import assert from "node:assert/strict";
import { test } from "node:test";
import { PublicKey } from "#base/keys.ts";
import { ManualClock } from "#base/time.ts";
import { hash, mac } from "../../blake2s.ts";
import { LABEL_MAC1, REJECT_AFTER_TIME } from "../../constants.ts";
import { MessageType, RESPONSE, RESPONSE_BYTES } from "../../messages.ts";
import { fakeInitiation } from "../testing/fake-initiation.ts";
import { FakeDevice, someKey, Watched } from "../testing/local-ends-suite.ts";
import { InitiationScan } from "./initiation-scan.ts";
import {
  LoopbackMac1,
  MOVE_GRACE,
  REST_CHECK_INTERVAL,
  SOCKET_REST,
  TRIES_AT_ONCE,
  TRIES_PER_SECOND,
  WAITING_MAX,
} from "./loopback-mac1.ts";

const DATA = Uint8Array.of(4, 0, 0, 0, ...new Array<number>(60).fill(7));
const timeout = 15_000;

function fakeResponse(initiator: PublicKey): Uint8Array {
  const bytes = crypto.getRandomValues(new Uint8Array(RESPONSE_BYTES));
  bytes.set([MessageType.response, 0, 0, 0]);
  const key = hash(Buffer.from(LABEL_MAC1), PublicKey.toBytes(initiator));
  bytes.set(mac(key, bytes.subarray(0, RESPONSE.mac1)), RESPONSE.mac1);
  return bytes;
}

test("a scan finds whom initiations and responses are for, also after others were removed", () => {
  const scan = new InitiationScan();
  const keys = Array.from({ length: 200 }, someKey);
  for (const key of keys) scan.add(key);
  for (const key of keys.filter((_, index) => index % 3 === 0)) scan.remove(key);
  scan.remove(someKey());
  for (const [index, key] of keys.entries()) {
    const want = index % 3 === 0 ? undefined : key;
    assert.equal(scan.find(fakeInitiation(key)).key, want);
    assert.equal(scan.findRecent(fakeResponse(key)), want);
  }
  assert.equal(scan.size, keys.length - 67);
  // What was found longest ago is not among the recent any more.
  assert.equal(scan.findRecent(fakeInitiation(keys[1]!)), undefined);
  assert.equal(scan.find(fakeInitiation(someKey())).tries, scan.size);
});

test("sleeping peers share one endpoint, and data there, which names nobody, is counted and dropped", {
  timeout,
}, async () => {
  await using device = await FakeDevice.open();
  await using ends = new LoopbackMac1({ clock: new ManualClock() }, { devicePort: device.port });
  const watched = new Watched(ends);
  const [a, b] = [someKey(), someKey()];
  assert.deepEqual(watched.open(a), watched.open(b));
  await device.send(DATA, watched.at(a));
  await device.send(fakeInitiation(b).subarray(0, 147), watched.at(a));
  await device.send(fakeInitiation(someKey()), watched.at(a));
  await device.send(fakeInitiation(b), watched.at(a));
  assert.equal((await watched.told(1))[0]!.key, b);
  const counters = ends.counters();
  assert.deepEqual([counters.get("drop-unnamed"), counters.get("drop-unknown-end")], [2, 1]);
});

test("the move to an own endpoint is told before the initiation that was its cause, and once", {
  timeout,
}, async () => {
  await using device = await FakeDevice.open();
  await using ends = new LoopbackMac1({ clock: new ManualClock() }, { devicePort: device.port });
  const order: string[] = [];
  ends.events.on("moved", () => order.push("moved"));
  ends.events.on("datagram", () => order.push("datagram"));
  const watched = new Watched(ends);
  const key = someKey();
  const shared = watched.open(key);
  // The device has not been told yet when it sends the second.
  await device.send(fakeInitiation(key), shared);
  await device.send(fakeInitiation(key), shared);
  await watched.told(2);
  assert.deepEqual(order, ["moved", "datagram", "datagram"]);
});

test("a peer that is opened again, or delivered for, may have a session: its data is told", { timeout }, async () => {
  await using device = await FakeDevice.open();
  await using ends = new LoopbackMac1({ clock: new ManualClock() }, { devicePort: device.port });
  const watched = new Watched(ends);
  const [again, delivered] = [someKey(), someKey()];
  const shared = watched.open(again);
  watched.open(delivered);
  assert.notDeepEqual(watched.open(again), shared);
  assert.equal(watched.moves, 0);
  ends.deliver(delivered, DATA);
  assert.equal(watched.moves, 1);
  assert.deepEqual((await device.received(1))[0]!.from, watched.at(delivered));
  for (const key of [again, delivered]) await device.send(DATA, watched.at(key));
  assert.deepEqual(new Set((await watched.told(2)).map(({ key }) => key)), new Set([again, delivered]));
});

test("a socket on which nothing passes for longer than a session lasts is given up", { timeout }, async () => {
  assert.ok(SOCKET_REST > REJECT_AFTER_TIME);
  const clock = new ManualClock();
  await using device = await FakeDevice.open();
  await using ends = new LoopbackMac1({ clock }, { devicePort: device.port });
  const watched = new Watched(ends);
  const [busy, quiet] = [someKey(), someKey()];
  const shared = watched.open(busy);
  watched.open(quiet);
  for (const key of [busy, quiet]) watched.open(key);
  const own = watched.at(quiet);
  while (watched.moves === 0 && clock.now() <= SOCKET_REST + REST_CHECK_INTERVAL) {
    assert.ok(ends.deliver(busy, DATA));
    clock.advance(REST_CHECK_INTERVAL / 2);
  }
  assert.ok(clock.now() > SOCKET_REST);
  assert.deepEqual(watched.at(quiet), shared);
  assert.notDeepEqual(watched.at(busy), shared);
  // The device is being told.
  await device.send(DATA, own);
  assert.equal((await watched.told(1))[0]!.key, quiet);
  clock.advance(MOVE_GRACE);
  await device.send(fakeInitiation(quiet), watched.at(quiet));
  assert.equal((await watched.told(2))[1]!.key, quiet);
  assert.notDeepEqual(watched.at(quiet), shared);
});

test("who comes back while its socket is given up keeps it", { timeout }, async () => {
  const clock = new ManualClock();
  await using device = await FakeDevice.open();
  await using ends = new LoopbackMac1({ clock }, { devicePort: device.port });
  const watched = new Watched(ends);
  const key = someKey();
  const shared = watched.open(key);
  const own = watched.open(key);
  while (watched.moves === 0 && clock.now() <= SOCKET_REST + REST_CHECK_INTERVAL) clock.advance(REST_CHECK_INTERVAL);
  assert.deepEqual(watched.at(key), shared);
  ends.deliver(key, DATA);
  assert.deepEqual(watched.at(key), own);
  clock.advance(MOVE_GRACE);
  await device.send(DATA, own);
  assert.equal((await watched.told(1))[0]!.key, key);
});

test("a flood of handshakes for nobody costs a bounded number of tries, and those found lately do not wait", {
  timeout,
}, async () => {
  const clock = new ManualClock();
  await using device = await FakeDevice.open();
  await using ends = new LoopbackMac1({ clock }, { devicePort: device.port });
  const watched = new Watched(ends);
  const keys = Array.from({ length: 2000 }, someKey);
  for (const key of keys) watched.open(key);
  const [recent, other] = [keys[0]!, keys[1]!];
  await device.send(fakeInitiation(recent), watched.at(recent));
  await watched.told(1);
  const shared = watched.at(other);
  const scans = Math.floor((TRIES_AT_ONCE - 1) / keys.length);
  const flood = scans + WAITING_MAX + 40;
  for (let sent = 1; sent <= flood; sent++) {
    await device.send(fakeInitiation(someKey()), shared);
    // The socket's buffer is not what is tested: this one comes through whatever waits.
    if (sent % 50 !== 0 && sent !== flood) continue;
    const told = watched.datagrams.length;
    await device.send(fakeInitiation(recent), shared);
    await watched.told(told + 1);
  }
  const counters = ends.counters();
  assert.equal(counters.get("drop-unknown-end"), scans);
  assert.equal(counters.get("drop-scan-overload"), 40);
  // With time those that wait have their turn.
  clock.advance(1000 * Math.ceil((WAITING_MAX * keys.length) / TRIES_PER_SECOND + 1));
  clock.advance(1000);
  assert.equal(ends.counters().get("drop-unknown-end"), scans + WAITING_MAX);
  const told = watched.datagrams.length;
  await device.send(fakeInitiation(other), shared);
  assert.equal((await watched.told(told + 1)).at(-1)!.key, other);
});
