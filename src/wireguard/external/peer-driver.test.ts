import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { parseEndpoint } from "#base/ip.ts";
import { PrivateKey } from "#base/keys.ts";
import { DIRECT, ELSEWHERE, HERE, message, RELAY, setUp } from "./testing/scripted-device.ts";

describe("an asleep peer of an external device", () => {
  it("is reported once for what the device sends, and again when the wake was declined or postponed", async () => {
    const { set, out, device, peer, events, takeEvents, control, pass } = setUp();
    set("asleep");
    out(message(1));
    out(message(1));
    assert.deepEqual(
      events.map(({ payload }) => payload),
      [{ key: peer, cause: { kind: "activity" } }],
    );
    assert.ok(device.peerStats(peer)!.stagedBytes > 0);
    takeEvents();
    await pass(5);
    control.take();
    device.postponeWake(peer, "keep");
    out(message(1));
    assert.deepEqual(takeEvents(), ["wake"]);
    device.declineWake(peer);
    await pass(5);
    assert.deepEqual(control.take(), ["remove", "add to 127.1.0.1:4000 ips 100.64.0.2/32 keepalive 0"]);
    assert.equal(device.peerStats(peer)!.stagedBytes, 0);
    out(message(1));
    assert.deepEqual(takeEvents(), ["wake"]);
  });

  it("has data of a session that is still good kept and sent when it wakes", async () => {
    const { set, out, device, peer, takeRelayed, takeEvents, connect, pass } = setUp();
    await connect(RELAY);
    set("asleep");
    await pass(10);
    assert.deepEqual(takeEvents(), []);
    out(message(4, 32));
    assert.deepEqual(takeEvents(), [], "a keepalive wants nobody");
    out(message(1));
    assert.deepEqual(takeEvents(), [], "a handshake without data: nobody answered before the sleep");
    const packets = [out(message(4)), out(message(4))];
    assert.deepEqual(takeEvents(), ["wake"]);
    assert.equal(device.peerStats(peer)!.stagedBytes, 256);
    set("awake");
    device.setPath(peer, RELAY);
    assert.deepEqual(takeRelayed(), packets);
  });

  it("is woken by itself when the device answers its data before a reading shows them", async () => {
    const { set, out, device, peer, events, takeEvents, connect, pass } = setUp();
    await connect(RELAY);
    set("asleep");
    await pass(500);
    takeEvents();
    device.injectRelayed(peer, message(4));
    out(message(4));
    assert.deepEqual(
      events.map(({ payload }) => payload),
      [{ key: peer, cause: { kind: "data", source: RELAY } }],
    );
  });

  it("is woken by an initiation although it has a session, when the device has nothing else to wonder about", async () => {
    const { set, out, takeEvents, connect, pass } = setUp();
    await connect(RELAY);
    set("asleep");
    await pass(15_000);
    out(message(1));
    await pass(5_200);
    out(message(1));
    assert.deepEqual(takeEvents(), [], "what went before the sleep was not answered");
    await pass(20_000);
    out(message(1));
    assert.deepEqual(takeEvents(), ["wake"]);
  });

  it("is woken by its own initiation over the relay, not by one of somebody else or one seen before", () => {
    const { clock, set, device, peer, events, takeEvents, remoteInitiation, ends } = setUp();
    set("asleep");
    const other = PrivateKey.generate().publicKey;
    device.setPeer(other, { mode: "asleep", allowedIps: [] });
    const initiation = remoteInitiation();
    device.injectRelayed(other, initiation);
    device.injectRelayed(peer, message(1));
    assert.deepEqual(takeEvents(), []);
    assert.equal(ends.delivered.length, 0);
    clock.advance(100);
    const second = remoteInitiation();
    device.injectRelayed(peer, second);
    assert.deepEqual(
      events.map(({ payload }) => payload),
      [{ key: peer, cause: { kind: "handshake", source: { kind: "relay" } } }],
    );
    assert.equal(ends.delivered.length, 1);
    set("asleep");
    device.postponeWake(peer, "drop");
    takeEvents();
    device.injectRelayed(peer, second);
    assert.deepEqual(takeEvents(), []);
    assert.equal(device.counters().get("drop-handshake-refused"), 2);
    assert.equal(device.counters().get("drop-handshake-relay-mismatch"), 1);
  });

  it("is woken by its own initiation that comes to the device itself", () => {
    const { set, peer, events, port, remoteInitiation } = setUp();
    set("asleep");
    const from = parseEndpoint("203.0.113.5:777");
    port.events.emit("handshake", { datagram: message(1), from, to: HERE });
    assert.deepEqual(events, []);
    port.events.emit("handshake", { datagram: remoteInitiation(), from, to: HERE });
    assert.deepEqual(
      events.map(({ payload }) => payload),
      [{ key: peer, cause: { kind: "handshake", source: { kind: "udp", endpoint: from } } }],
    );
  });

  it("is proven by a handshake that it had in its sleep as soon as it is awake", async () => {
    const { clock, set, device, peer, control, takeEvents, remoteInitiation, pass, local, events } = setUp();
    set("asleep");
    await pass(5);
    device.injectRelayed(peer, remoteInitiation());
    control.note(peer, { lastHandshake: clock.wall(), rxBytes: 148, txBytes: 92, endpoint: local() });
    await pass(500);
    assert.deepEqual(takeEvents(), ["wake"]);
    set("awake");
    device.setPath(peer, RELAY);
    takeEvents();
    await pass(20);
    assert.deepEqual(
      events.map(({ name, payload }) => [name, payload]),
      [["established", { key: peer, role: "responder", source: RELAY }]],
    );
  });

  it("is not looked at for what strangers send to the device's port", async () => {
    const { set, port, control, pass, takeEvents, clock } = setUp();
    await pass(11_000);
    control.reads = 0;
    set("asleep");
    for (const type of [1, 2, 3] as const)
      for (let i = 0; i < 50; i++) port.events.emit("handshake", { datagram: message(type), from: HERE, to: HERE });
    await pass(1_000);
    assert.deepEqual([control.reads, clock.pending, takeEvents()], [0, 0, []]);
  });

  it("is woken by a handshake of its own that was not looked at among many forged ones", async () => {
    const { set, device, port, control, peer, pass, takeEvents, remoteInitiation, clock } = setUp();
    set("asleep");
    device.setPeer(PrivateKey.generate().publicKey, { mode: "asleep", allowedIps: [] });
    const handshake = (datagram: Uint8Array) => port.events.emit("handshake", { datagram, from: HERE, to: HERE });
    const seen = remoteInitiation();
    device.injectRelayed(peer, seen);
    await pass(10);
    assert.deepEqual(takeEvents(), ["wake"]);
    device.declineWake(peer);
    await pass(20_000);
    const { reads } = control;
    for (let i = 0; i < 100; i++) handshake(seen);
    handshake(remoteInitiation());
    control.note(peer, { endpoint: ELSEWHERE.endpoint, lastHandshake: clock.wall(), rxBytes: 148, txBytes: 92 });
    await pass(1_100);
    assert.deepEqual(takeEvents(), ["wake"]);
    assert.ok(control.reads - reads < 10);
  });

  it("is woken by data that crossed with its sleep once the device took it, and the device is sent back to us", async () => {
    const { set, device, peer, control, connect, takeEvents, events, pass, local } = setUp();
    await connect(DIRECT);
    control.note(peer, { rxBytes: 128 });
    set("asleep");
    await pass(100);
    assert.deepEqual(takeEvents(), [], "that came before");
    assert.deepEqual(control.peers.get(peer)!.endpoint, local());
    assert.equal(control.peers.get(peer)!.keepalive, 0);
    control.note(peer, { rxBytes: 128, endpoint: ELSEWHERE.endpoint });
    await pass(5_000);
    assert.deepEqual(
      events.map(({ payload }) => payload),
      [{ key: peer, cause: { kind: "data", source: ELSEWHERE } }],
    );
    device.postponeWake(peer, "drop");
    await pass(5_100);
    assert.deepEqual(control.peers.get(peer)!.endpoint, local());
  });

  it("takes data from the relay only while it has a session, and wakes when the device could read it", async () => {
    const { set, device, peer, control, connect, takeEvents, events, pass, ends, clock } = setUp();
    set("asleep");
    device.injectRelayed(peer, message(4));
    assert.equal(ends.delivered.length, 0);
    await connect(RELAY);
    set("asleep");
    await pass(10);
    device.injectRelayed(peer, message(4));
    await pass(50);
    assert.equal(ends.delivered.length, 1);
    assert.deepEqual(takeEvents(), [], "the device could not read it");
    device.injectRelayed(peer, message(4));
    control.note(peer, { rxBytes: 128 });
    await pass(50);
    assert.deepEqual(
      events.map(({ payload }) => payload),
      [{ key: peer, cause: { kind: "data", source: RELAY } }],
    );
    device.postponeWake(peer, "drop");
    await pass(200_000);
    assert.equal(clock.pending, 0, "nobody is looked at when the session is over");
  });
});

describe("an awake peer of an external device", () => {
  it("gets another keepalive at once", async () => {
    const { set, control, connect, pass } = setUp();
    await connect(DIRECT);
    set("awake", { persistentKeepalive: 5 });
    await pass(1);
    assert.deepEqual(control.take(), ["keepalive 0", "keepalive 5"]);
  });

  it("is silent when data goes out and nothing comes, and not for handshakes and keepalives", async () => {
    const { peer, control, connect, pass, takeEvents } = setUp();
    await connect(DIRECT);
    control.note(peer, { txBytes: 148 + 32 });
    await pass(3_000);
    assert.deepEqual(takeEvents(), []);
    control.note(peer, { txBytes: 128 });
    await pass(3_000);
    assert.deepEqual(takeEvents(), ["silent"]);
    control.note(peer, { txBytes: 128 });
    await pass(300);
    control.note(peer, { rxBytes: 32 });
    await pass(3_000);
    assert.deepEqual(takeEvents(), []);
  });

  it("tells when user traffic last went and came, and leaves out keepalives", async () => {
    const { peer, control, connect, pass, device, clock } = setUp();
    await connect(DIRECT);
    const before = clock.now();
    for (let i = 0; i < 5; i++) {
      control.note(peer, { rxBytes: 32, txBytes: 32 });
      await pass(10_000);
    }
    assert.deepEqual([device.peerStats(peer)!.lastDataRx, device.peerStats(peer)!.lastDataTx], [0, 0]);
    assert.ok(device.peerStats(peer)!.lastRx > before);
    control.note(peer, { rxBytes: 128, txBytes: 64 });
    const at = clock.now();
    await pass(1_100);
    const { lastDataRx, lastDataTx } = device.peerStats(peer)!;
    for (const last of [lastDataRx, lastDataTx]) assert.ok(last >= at && last <= at + 1_100);
  });
});
