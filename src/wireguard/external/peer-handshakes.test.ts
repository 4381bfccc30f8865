import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { parsePrefix } from "#base/ip.ts";
import { PrivateKey } from "#base/keys.ts";
import { DIRECT, ELSEWHERE, HERE, message, RELAY, setUp } from "./testing/scripted-device.ts";

describe("handshakes of a peer that sleeps, on an external device", () => {
  it("has the captured initiation sent at once when it wakes, and again until it is answered", async () => {
    const { set, out, device, peer, takeRelayed, takeEvents, pass, ends, control, clock } = setUp();
    set("asleep");
    const initiation = out(message(1));
    set("awake");
    takeEvents();
    assert.ok(device.initiate(peer, [RELAY]));
    device.setPath(peer, RELAY);
    assert.deepEqual(takeRelayed(), [initiation]);
    await pass(250);
    device.initiate(peer, [RELAY]);
    assert.deepEqual(takeRelayed(), [initiation], "the same bytes");
    device.injectRelayed(peer, message(2));
    assert.equal(ends.delivered.length, 1);
    control.note(peer, { lastHandshake: clock.wall(), rxBytes: 92, txBytes: 148 });
    await pass(10);
    assert.deepEqual(takeEvents(), ["established"]);
    assert.equal(device.peerStats(peer)!.lastDataRx, 0, "a handshake is no traffic");
    assert.equal(device.peerStats(peer)!.stagedBytes, 0);
  });

  it("goes on with its own of two initiations that cross when its key is the greater, and steps back otherwise", async () => {
    const seen = new Set<boolean>();
    while (seen.size < 2) {
      const { set, out, takeRelayed, remoteInitiation, device, peer, ends, pass } = setUp();
      const isSenior = device.publicKey > peer;
      seen.add(isSenior);
      set("asleep");
      const own = out(message(1));
      set("awake");
      device.setPath(peer, RELAY);
      assert.deepEqual(takeRelayed(), [own]);
      const other = remoteInitiation();
      device.injectRelayed(peer, other);
      assert.equal(ends.delivered.length, isSenior ? 0 : 1, "a device that takes one forgets its own");
      await pass(200);
      device.initiate(peer, [RELAY]);
      device.setPath(peer, DIRECT);
      assert.deepEqual(takeRelayed(), isSenior ? [own] : [], "what the device has forgotten is not sent again");
      await pass(1_000);
      device.injectRelayed(peer, isSenior ? other : remoteInitiation());
      assert.equal(ends.delivered.length, isSenior ? 1 : 2, "the answer is missing: the peer's turn");
      device.setPath(peer, RELAY);
      takeRelayed();
      const next = out(message(1));
      assert.deepEqual(takeRelayed(), [next], "one that the device made since is as good as any");
    }
  });

  it("has its answer to a relayed initiation sent back before it is awake", () => {
    const { set, out, takeRelayed, remoteInitiation, device, peer } = setUp();
    set("asleep");
    device.injectRelayed(peer, remoteInitiation());
    takeRelayed();
    const response = out(message(2));
    assert.deepEqual(takeRelayed(), [response]);
  });

  it("have their answer sent directly as well where the peer fell asleep on a direct path, once and for ten minutes", async () => {
    const { set, out, takeRelayed, remoteInitiation, device, peer, port, connect, pass } = setUp();
    const answer = async (): Promise<void> => {
      await pass(50);
      port.sent.length = 0;
      device.injectRelayed(peer, remoteInitiation());
      takeRelayed();
      const response = out(message(2));
      assert.deepEqual(takeRelayed(), [response], "the direct way may be dead");
    };
    await connect(DIRECT);
    set("asleep");
    await pass(200_000);
    await answer();
    assert.deepEqual(
      port.sent.map(({ datagram, to }) => [datagram[0], to]),
      [[2, "192.0.2.2:51820"]],
    );
    await answer();
    assert.deepEqual(port.sent, [], "it was of no use");
    set("awake");
    device.setPath(peer, DIRECT);
    device.setPath(peer, RELAY);
    set("asleep");
    await answer();
    assert.deepEqual(port.sent, [], "it had left the direct path");
    set("awake");
    device.setPath(peer, DIRECT);
    set("asleep");
    await pass(601_000);
    await answer();
    assert.deepEqual(port.sent, [], "too long ago");
  });
});

describe("handshakes of an awake peer, on an external device", () => {
  it("is made to begin a handshake when none was captured, and the copy goes where it was wanted", async () => {
    const { set, out, device, peer, takeRelayed, control, pass, port } = setUp();
    set("asleep");
    set("awake");
    device.initiate(peer, [DIRECT, RELAY]);
    await pass(1);
    assert.deepEqual(control.take(), ["add to 127.1.0.1:4000 ips 100.64.0.2/32 keepalive 0", "keepalive 25"]);
    assert.deepEqual(control.prompted, [peer]);
    const initiation = out(message(1));
    assert.deepEqual(takeRelayed(), [initiation]);
    assert.deepEqual(
      port.sent.splice(0),
      [{ datagram: Uint8Array.of(0xff), to: "192.0.2.2:51820" }],
      "a path that nobody chose could take the answer with it: it is only opened for one",
    );
    device.setPath(peer, RELAY);
    device.setPath(peer, DIRECT);
    assert.deepEqual(
      port.sent.map(({ to }) => to),
      ["192.0.2.2:51820"],
      "it came up while the answer is awaited",
    );
    await pass(1);
    assert.deepEqual(control.take(), ["to 192.0.2.2:51820"]);
  });

  it("is prompted off and on when its keepalive is on already", async () => {
    const { device, peer, control, connect, pass, clock } = setUp();
    await connect(DIRECT);
    await pass(200_000);
    control.take();
    control.prompted.length = 0;
    device.initiate(peer, [DIRECT]);
    await pass(1);
    assert.deepEqual(control.take(), ["keepalive 0", "keepalive 25"]);
    assert.deepEqual(control.prompted, [peer]);
    assert.ok(clock.pending > 0);
  });

  it("is established as it hears of a handshake, also of one that it saw nothing of", async () => {
    const { set, device, peer, control, events, takeEvents, pass, clock } = setUp();
    set("awake");
    device.setPath(peer, DIRECT);
    await pass(100);
    takeEvents();
    control.note(peer, { lastHandshake: clock.wall(), rxBytes: 148, txBytes: 92 });
    await pass(1_000);
    assert.deepEqual(
      events.map(({ name, payload }) => [name, payload]),
      [["established", { key: peer, role: "responder", source: DIRECT }]],
    );
    assert.equal(device.peerStats(peer)!.lastHandshake, clock.wall() - 1_000 - 0);
    assert.equal(control.peers.get(peer)!.keepalive, 25);
  });

  it("with a session is proven by what it hears, and begins anew when it hears nothing", async () => {
    const { device, peer, control, connect, pass, takeEvents, out, takeRelayed } = setUp();
    await connect(RELAY);
    device.initiate(peer, [RELAY]);
    control.note(peer, { rxBytes: 32 });
    await pass(600);
    assert.deepEqual(takeEvents(), ["established"]);
    assert.ok(control.take().every((change) => change.startsWith("keepalive")));
    control.note(peer, { rxBytes: 500, txBytes: 700 });
    await pass(1_100);
    const { rxBytes, txBytes } = device.peerStats(peer)!;
    takeEvents();
    device.initiate(peer, [RELAY]);
    await pass(600);
    assert.deepEqual(control.take(), [
      "keepalive 0",
      "keepalive 25",
      "remove",
      "add to 127.1.0.1:4000 ips 100.64.0.2/32 keepalive 25",
    ]);
    const initiation = out(message(1));
    assert.deepEqual(takeRelayed(), [initiation]);
    control.note(peer, { rxBytes: 92, txBytes: 148 });
    await pass(1_100);
    assert.deepEqual(
      [device.peerStats(peer)!.rxBytes, device.peerStats(peer)!.txBytes],
      [rxBytes + 92, txBytes + 148],
      "counters go on",
    );
    const counted = ["rx-bytes", "tx-bytes"].map((name) => device.counters().get(name));
    assert.deepEqual(counted, [rxBytes + 92, txBytes + 148]);
  });

  it("that wakes with a session is proven at once by what it sends in it, and not by what it sent before", async () => {
    const { set, device, peer, control, connect, pass, takeEvents } = setUp();
    await connect(RELAY);
    set("asleep");
    await pass(6_000);
    control.note(peer, { rxBytes: 32 });
    set("awake");
    device.setPath(peer, RELAY);
    await pass(1_100);
    assert.deepEqual(takeEvents(), []);
    device.injectRelayed(peer, message(4));
    control.note(peer, { rxBytes: 128 });
    await pass(40);
    assert.deepEqual(takeEvents(), ["established"]);
  });

  it("begins anew at once when it is asked again and heard nothing, as the caller knows how long an answer takes", async () => {
    const { device, peer, control, connect, pass } = setUp();
    await connect(RELAY);
    device.initiate(peer, [RELAY]);
    await pass(50);
    device.initiate(peer, [RELAY]);
    await pass(50);
    assert.ok(
      control.take().every((change) => change.startsWith("keepalive")),
      "too soon for an answer",
    );
    device.initiate(peer, [RELAY]);
    await pass(5);
    assert.equal(device.counters().get("sessions-begun-anew"), 1);
    await pass(1_000);
    assert.equal(device.counters().get("sessions-begun-anew"), 1, "once");
  });

  it("keeps its session when it was heard, however late the device is looked at", async () => {
    const { device, peer, control, connect, pass, takeEvents } = setUp();
    await connect(RELAY);
    const { promise, resolve } = Promise.withResolvers<void>();
    device.initiate(peer, [RELAY]);
    await pass(1);
    control.gate = promise;
    await pass(150);
    control.note(peer, { rxBytes: 32 });
    device.initiate(peer, [RELAY]);
    await pass(600);
    resolve();
    await pass(1);
    assert.deepEqual(takeEvents(), ["established"]);
    await pass(5_000);
    assert.equal(device.counters().get("sessions-begun-anew"), undefined);
  });

  it("is not taken back networks that another peer was given since when it begins anew", async () => {
    const { device, peer, control, connect, pass, set } = setUp();
    const shared = parsePrefix("10.0.0.0/8");
    await connect(RELAY);
    set("awake", { allowedIps: [parsePrefix("100.64.0.2/32"), shared] });
    device.setPeer(PrivateKey.generate().publicKey, { mode: "asleep", allowedIps: [shared] });
    device.initiate(peer, [RELAY]);
    await pass(600);
    assert.deepEqual(control.peers.get(peer)!.prefixes, ["100.64.0.2/32"]);
  });

  it("on a direct path is direct again soon when no initiation could be caught", async () => {
    const { peer, control, connect, pass, device, local, clock } = setUp();
    await connect(DIRECT);
    // The session is over: the device is asked for a handshake that both paths are to carry.
    await pass(200_000);
    device.initiate(peer, [DIRECT, RELAY]);
    await pass(1);
    assert.deepEqual(control.peers.get(peer)!.endpoint, local());
    await pass(3_500);
    assert.deepEqual(control.peers.get(peer)!.endpoint, DIRECT.endpoint);
    assert.ok(clock.pending > 0);
  });

  it("whose handshake nobody answers for 90 s loses what waited, and the caller learns how much", async () => {
    const { set, device, peer, out, pass, events } = setUp();
    set("awake");
    device.initiate(peer, [RELAY]);
    out(message(4));
    await pass(92_000);
    assert.deepEqual(
      events.map(({ payload }) => payload),
      [{ key: peer, droppedBytes: 128 }],
    );
    assert.equal(device.peerStats(peer)!.stagedBytes, 0);
  });

  it("that goes to sleep while a handshake goes unanswered begins anew, so that its repetitions wake nobody", async () => {
    const { set, device, peer, out, pass, control, takeEvents } = setUp();
    set("awake");
    device.initiate(peer, [RELAY]);
    out(message(1));
    await pass(100);
    control.take();
    takeEvents();
    set("asleep");
    await pass(20);
    assert.ok(control.take().includes("remove"));
    assert.deepEqual(takeEvents(), []);
  });

  it("that goes to sleep before a reading showed its handshake keeps the session", async () => {
    const { set, device, peer, out, pass, control, takeEvents, clock } = setUp();
    set("awake");
    device.initiate(peer, [RELAY]);
    device.setPath(peer, RELAY);
    out(message(1));
    await pass(1_000);
    device.injectRelayed(peer, message(2));
    control.note(peer, { lastHandshake: clock.wall(), rxBytes: 92, txBytes: 148 });
    set("asleep");
    control.take();
    takeEvents();
    await pass(100);
    assert.deepEqual(control.take(), ["keepalive 0"]);
    assert.deepEqual(takeEvents(), []);
    out(message(4));
    assert.deepEqual(takeEvents(), ["wake"]);
  });

  it("that crossed directly come to nothing: the device of the greater key begins anew after a second, the other waits", async () => {
    const seen = new Set<string>();
    while (seen.size < 4) {
      const { backend, clock, connect, device, peer, port, pass, remoteInitiation } = setUp();
      const isSenior = device.publicKey > peer;
      const isAnswered = seen.has(`${isSenior} false`);
      seen.add(`${isSenior} ${isAnswered}`);
      await connect(DIRECT);
      backend.restart();
      const { control } = backend;
      await pass(50);
      control.take();
      port.events.emit("handshake", { datagram: remoteInitiation(), from: ELSEWHERE.endpoint, to: HERE });
      if (isAnswered) control.note(peer, { lastHandshake: clock.wall(), rxBytes: 180, txBytes: 240 });
      await pass(950);
      assert.deepEqual(control.take(), [], "an answer may be on its way");
      await pass(100);
      const anew = ["remove", "add to 192.0.2.2:51820 ips 100.64.0.2/32 keepalive 25"];
      assert.deepEqual(control.take(), isSenior && !isAnswered ? anew : []);
      await pass(4_000);
      assert.deepEqual(control.take(), [], "once");
    }
  });

  it("that crossed over a slow relay begin anew as well, and go where data goes", async () => {
    for (let isSenior = false; !isSenior; ) {
      const { device, peer, set, out, pass, remoteInitiation, takeRelayed, control, ends } = setUp();
      isSenior = device.publicKey > peer;
      set("awake");
      device.setPath(peer, RELAY);
      out(message(1));
      await pass(1_100);
      device.injectRelayed(peer, remoteInitiation());
      assert.equal(ends.delivered.length, 1, "ours had its time");
      await pass(100);
      control.take();
      takeRelayed();
      await pass(1_000);
      assert.equal(control.take().includes("remove"), isSenior);
      const next = out(message(1));
      assert.deepEqual(takeRelayed(), [next]);
    }
  });
});
