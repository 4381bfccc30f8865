import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { parseEndpoint, parsePrefix } from "#base/ip.ts";
import { PrivateKey, type PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { ManualClock } from "#base/time.ts";
import type { DeviceEvents, DevicePath, DevicePeerConfig } from "../device.ts";
import { HandshakeManager } from "../handshake-manager.ts";
import { recordDeviceEvents } from "../testing/record-device-events.ts";
import { ExternalDevice } from "./external-device.ts";
import { ExternalDeviceError } from "./external-error.ts";
import {
  ScriptedBackend,
  type ScriptedControl,
  ScriptedEnds,
  ScriptedPort,
  ScriptedRules,
} from "./testing/scripted-parts.ts";

const DIRECT: DevicePath = { kind: "udp", endpoint: parseEndpoint("192.0.2.2:51820") };
const ELSEWHERE: DevicePath = { kind: "udp", endpoint: parseEndpoint("198.51.100.7:4000") };
const HERE = parseEndpoint("192.0.2.1:51820");
const RELAY: DevicePath = { kind: "relay" };
const NONE: DevicePath = { kind: "none" };

/** A datagram of the outer form of a message of WireGuard. */
function message(type: 1 | 2 | 3 | 4, bytes = [0, 148, 92, 64, 128][type]!): Uint8Array {
  const datagram = new Uint8Array(bytes);
  datagram[0] = type;
  datagram[8] = serial++ & 255;
  return datagram;
}
let serial = 1;

function setUp({ checkPort = () => {} }: { checkPort?: (port: number) => void } = {}) {
  const clock = new ManualClock(100_000);
  const backend = new ScriptedBackend();
  const ends = new ScriptedEnds();
  const port = new ScriptedPort();
  const rules = new ScriptedRules();
  const privateKey = PrivateKey.generate();
  const device = new ExternalDevice(
    { clock, log: silentLogger, checkPort },
    { backend, localEnds: ends, sharedPort: port, rules },
    { privateKey, listenPort: 51820, mtu: 1420 },
  );
  const remoteKey = PrivateKey.generate();
  const peer = remoteKey.publicKey;
  const us = { slot: 1, key: device.publicKey, presharedKey: undefined };
  // What the other end says is the protocol; this device only looks at initiations.
  const remote = new HandshakeManager(
    { peers: { get: (key: PublicKey) => (key === us.key ? us : undefined), at: () => us }, wall: () => clock.wall() },
    remoteKey,
  );
  const events = recordDeviceEvents(device);
  const allowedIps = [parsePrefix("100.64.0.2/32")];
  const set = (mode: "asleep" | "awake", more: Partial<DevicePeerConfig> = {}): void =>
    device.setPeer(peer, { mode, allowedIps, persistentKeepalive: mode === "awake" ? 25 : 0, ...more });
  const world = {
    clock,
    backend,
    ends,
    port,
    rules,
    device,
    peer,
    events,
    set,
    get control(): ScriptedControl {
      return backend.control;
    },
    local: () => ends.opened.get(peer)!,
    takeEvents: () => events.splice(0).map(({ name }) => name),
    takeRelayed: () =>
      events
        .splice(0)
        .flatMap(({ name, payload }) =>
          name === "relay-out" ? [(payload as DeviceEvents["relay-out"]).datagram] : [],
        ),
    remoteInitiation: (): Uint8Array => {
      const action = remote.initiate(1, clock.now(), 0)[0]!;
      assert.ok(action.kind === "send-initiation");
      return action.message;
    },
    /** The device sends to the peer's local end. */
    out: (datagram: Uint8Array) => {
      ends.events.emit("datagram", { key: peer, datagram });
      return datagram;
    },
    /** Time passes in small steps, so that what the device answers comes in between. */
    pass: async (ms: number) => {
      const end = clock.now() + ms;
      await turn();
      while (clock.now() < end) {
        clock.advance(Math.min(5, end - clock.now()));
        await turn();
      }
    },
    /** An awake peer with a session over a path. */
    connect: async (path: DevicePath) => {
      set("asleep");
      set("awake");
      device.setPath(peer, path);
      await turn();
      backend.control.note(peer, { lastHandshake: clock.wall(), rxBytes: 92, txBytes: 148 });
      await world.pass(1_100);
      assert.ok(world.takeEvents().includes("established"));
      backend.control.take();
    },
  };
  return world;
}

describe("peers of an external device", () => {
  it("are told in one call, however many come in one turn, and those of the next turns wait for it", async () => {
    const { device, backend, ends } = setUp();
    const { control } = backend;
    const keys = Array.from({ length: 1_000 }, () => PrivateKey.generate().publicKey);
    const { promise, resolve } = Promise.withResolvers<void>();
    control.gate = promise;
    for (const [index, key] of keys.entries())
      device.setPeer(key, { mode: "asleep", allowedIps: [parsePrefix(`100.64.${index >> 8}.${index & 255}/32`)] });
    await turn();
    assert.equal(control.calls.length, 1);
    assert.equal(control.calls[0]!.peers.length, 1_000);
    device.removePeer(keys[0]!);
    await turn();
    device.removePeer(keys[1]!);
    await turn();
    assert.equal(control.calls.length, 1, "one under way");
    resolve();
    await turn();
    assert.deepEqual(
      control.calls.map(({ peers }) => peers.length),
      [1_000, 2],
    );
    assert.equal(control.peers.size, 998);
    assert.equal(ends.opened.size, 998);
    assert.equal(device.allPeerStats().size, 998);
    assert.equal(device.counters().get("peers"), 998);
    await device.close();
    assert.equal(backend.closed, 1);
  });

  it("cost neither timer nor reading while they sleep", async () => {
    const { clock, control, set, pass, device, peer } = setUp();
    // Whether it has its port.
    await pass(11_000);
    assert.equal(control.reads, 2);
    set("asleep");
    device.setPath(peer, DIRECT);
    assert.equal(device.initiate(peer, [DIRECT]), false);
    await pass(100);
    assert.deepEqual(control.take(), ["add to 127.1.0.1:4000 ips 100.64.0.2/32 keepalive 0"]);
    assert.equal(clock.pending, 0);
    assert.equal(control.reads, 2);
  });

  it("are changed only where they changed", async () => {
    const { control, set, pass, device, peer } = setUp();
    const allowedIps = [parsePrefix("100.64.0.2/32")];
    device.setPeer(peer, { mode: "asleep", allowedIps });
    await pass(5);
    control.take();
    device.setPeer(peer, { mode: "asleep", allowedIps });
    await pass(5);
    assert.deepEqual(control.take(), []);
    set("asleep", { allowedIps: [parsePrefix("100.64.0.2/32"), parsePrefix("10.1.0.0/16")] });
    await pass(5);
    assert.deepEqual(control.take(), ["ips 100.64.0.2/32,10.1.0.0/16"]);
  });

  it("that the device refuses are counted, and nobody is hurt", async () => {
    const { device, control, set, pass } = setUp();
    control.failures.push(new Error("no"));
    set("asleep");
    await pass(5);
    set("asleep", { allowedIps: [parsePrefix("100.64.0.3/32")] });
    await pass(5);
    assert.equal(device.counters().get("changes-refused"), 1);
  });
});

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

  it("has its answer to a relayed initiation sent back before it is awake", () => {
    const { set, out, takeRelayed, remoteInitiation, device, peer } = setUp();
    set("asleep");
    device.injectRelayed(peer, remoteInitiation());
    takeRelayed();
    const response = out(message(2));
    assert.deepEqual(takeRelayed(), [response]);
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
    assert.deepEqual(port.sent, [], "a path that nobody chose could take the answer with it");
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

  it("gets another keepalive at once", async () => {
    const { set, control, connect, pass } = setUp();
    await connect(DIRECT);
    set("awake", { persistentKeepalive: 5 });
    await pass(1);
    assert.deepEqual(control.take(), ["keepalive 0", "keepalive 5"]);
  });

  it("has everything that the device sends passed on over its path, and kept while there is none", () => {
    const { set, out, device, peer, takeRelayed, port, events } = setUp();
    set("awake");
    const kept = out(message(4));
    assert.deepEqual(takeRelayed(), []);
    device.setPath(peer, RELAY);
    const next = out(message(4));
    assert.deepEqual(takeRelayed(), [kept, next]);
    device.setPath(peer, DIRECT);
    const late = out(message(4));
    assert.deepEqual(port.sent, [{ datagram: late, to: "192.0.2.2:51820" }], "the device was not told yet");
    port.errors.push("ENETUNREACH", "EAGAIN");
    out(message(4));
    out(message(4));
    assert.deepEqual(
      events.map(({ payload }) => payload),
      [{ key: peer, endpoint: DIRECT.kind === "udp" && DIRECT.endpoint, code: "ENETUNREACH" }],
    );
    device.setPath(peer, NONE);
    for (let i = 0; i < 200; i++) out(message(4, 1_452));
    assert.equal(device.peerStats(peer)!.stagedBytes, 128 * 1_452);
    assert.equal(device.counters().get("drop-staged-bytes"), 72 * 1_452);
  });

  it("has the device sent to its path, and to its local end when that is over", async () => {
    const { set, device, peer, control, pass, local } = setUp();
    set("awake");
    device.setPath(peer, RELAY);
    await pass(1);
    control.take();
    device.setPath(peer, DIRECT);
    device.setPath(peer, DIRECT);
    await pass(1);
    assert.deepEqual(control.take(), ["to 192.0.2.2:51820"]);
    device.setPath(peer, RELAY);
    await pass(1);
    assert.deepEqual(control.peers.get(peer)!.endpoint, local());
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

  it("hints when the device roamed, and returns it to the relay when the caller stays there", async () => {
    const { peer, control, connect, pass, events, local, device } = setUp();
    await connect(RELAY);
    control.note(peer, { rxBytes: 128, endpoint: ELSEWHERE.endpoint });
    await pass(1_100);
    assert.deepEqual(
      events.splice(0).map(({ payload }) => payload),
      [{ key: peer, source: ELSEWHERE }],
    );
    assert.deepEqual(control.peers.get(peer)!.endpoint, local());
    device.events.on("path-hint", ({ source }) => device.setPath(peer, source));
    control.note(peer, { rxBytes: 128, endpoint: ELSEWHERE.endpoint });
    await pass(2_000);
    assert.equal(events.length, 1, "it is its path now");
    assert.deepEqual(control.peers.get(peer)!.endpoint, ELSEWHERE.endpoint);
  });

  it("on a direct path goes back to it when data came by the relay, and says so", async () => {
    const { peer, control, connect, pass, events, local, device } = setUp();
    await connect(DIRECT);
    device.injectRelayed(peer, message(4));
    control.note(peer, { rxBytes: 128, endpoint: local() });
    await pass(1_100);
    assert.deepEqual(
      events.map(({ name, payload }) => [name, payload]),
      [["path-hint", { key: peer, source: RELAY }]],
    );
    assert.deepEqual(control.peers.get(peer)!.endpoint, DIRECT.kind === "udp" && DIRECT.endpoint);
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
    assert.deepEqual(control.peers.get(peer)!.endpoint, DIRECT.kind === "udp" && DIRECT.endpoint);
    assert.ok(clock.pending > 0);
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
});

describe("an external device", () => {
  it("is given everything again when its program was restarted, in one call, and awake peers begin anew", async () => {
    const { backend, device, peer, connect, takeEvents, pass, clock, set } = setUp();
    await connect(DIRECT);
    const sleeper = PrivateKey.generate().publicKey;
    device.setPeer(sleeper, { mode: "asleep", allowedIps: [parsePrefix("100.64.0.3/32")] });
    await pass(5);
    const before = device.peerStats(peer)!;
    backend.restart();
    const { control } = backend;
    await pass(5);
    assert.deepEqual(takeEvents(), ["worker-restarted"]);
    assert.equal(control.calls.length, 1);
    const { change } = control.calls[0]!;
    assert.ok(change.privateKey && change.listenPort === 51820 && change.replacePeers);
    assert.deepEqual(control.take().sort(), [
      "add to 127.1.0.2:4000 ips 100.64.0.3/32 keepalive 0",
      "add to 192.0.2.2:51820 ips 100.64.0.2/32 keepalive 25",
    ]);
    control.note(peer, { lastHandshake: clock.wall(), rxBytes: 92, txBytes: 148 });
    await pass(1_100);
    assert.deepEqual(takeEvents(), ["established"]);
    assert.equal(device.peerStats(peer)!.rxBytes, before.rxBytes + 92);
    assert.equal(device.counters().get("worker-restarts"), 1);
    set("asleep");
    await pass(5);
    assert.ok(control.peers.get(peer)!.endpoint!.address.startsWith("127."));
  });

  it("that is gone says so once, is closed, and takes nothing any more", async () => {
    const { backend, device, set, takeEvents, rules, control, clock } = setUp();
    set("awake");
    backend.events.emit("gone", { reason: "deleted" });
    backend.events.emit("gone", { reason: "deleted" });
    await device.close();
    assert.deepEqual(takeEvents(), ["gone"]);
    assert.equal(backend.closed, 1);
    assert.deepEqual(rules.calls, [["close"]]);
    const { length } = control.calls;
    set("asleep");
    await turn();
    assert.equal(control.calls.length, length);
    assert.equal(clock.pending, 0);
  });

  it("is told everything anew a second after it did not answer, and peers keep their sessions", async () => {
    const { device, peer, connect, pass, control, takeEvents } = setUp();
    await connect(DIRECT);
    const former = PrivateKey.generate().publicKey;
    device.setPeer(former, { mode: "asleep", allowedIps: [] });
    await pass(5);
    control.failures.push(new ExternalDeviceError("control-failed", "no answer for 10 s", { retryable: true }));
    device.removePeer(former);
    await pass(5);
    assert.ok(control.peers.has(former));
    control.take();
    await pass(1_000);
    assert.deepEqual(control.take(), ["add to 192.0.2.2:51820 ips 100.64.0.2/32 keepalive 25"]);
    assert.deepEqual([...control.peers.keys()], [peer]);
    await pass(5_000);
    assert.deepEqual([control.take(), takeEvents()], [[], []]);
  });

  it("is gone when its program was restarted and somebody else has its port meanwhile", async () => {
    const { backend, takeEvents } = setUp({
      checkPort: (port) => {
        throw new Error(`UDP port ${port} is taken`);
      },
    });
    backend.restart();
    await turn();
    assert.deepEqual(takeEvents(), ["gone"]);
    assert.equal(backend.closed, 1);
    assert.deepEqual(backend.control.calls, []);
  });

  it("is gone when another program took its port just before it could", async () => {
    const { backend, takeEvents, pass } = setUp();
    backend.restart();
    await pass(5);
    takeEvents();
    // Somebody brings the interface up, and the device cannot open its port then.
    await pass(1_000);
    backend.control.listenPort = 0;
    await pass(2_000);
    assert.deepEqual(takeEvents(), ["gone"]);
    assert.equal(backend.closed, 1);
  });

  it("is gone when nobody reads its local ends any more", async () => {
    const { backend, ends, takeEvents } = setUp();
    ends.events.emit("failed", { reason: "the port thread died too often" });
    await turn();
    assert.deepEqual(takeEvents(), ["gone"]);
    assert.equal(backend.closed, 1);
  });

  it("is told everything anew when somebody else has changed its peers or its port, and not for its own changes", async () => {
    const { device, peer, connect, pass, control, takeEvents } = setUp();
    await connect(DIRECT);
    await pass(1_100);
    control.take();
    const [known] = control.peers.entries();
    control.peers.delete(peer);
    await pass(2_500);
    assert.deepEqual(control.take(), ["add to 192.0.2.2:51820 ips 100.64.0.2/32 keepalive 25"]);
    control.listenPort = 1234;
    await pass(2_500);
    assert.equal(control.calls.length, 1);
    assert.equal(control.calls[0]!.change.listenPort, 51820);
    // It refuses to have it otherwise: said once.
    control.take();
    await pass(10_000);
    assert.deepEqual(control.take(), []);
    control.listenPort = 51820;
    await pass(2_000);
    for (let i = 0; i < 20; i++) {
      device.setPeer(PrivateKey.generate().publicKey, { mode: "asleep", allowedIps: [] });
      await pass(250);
    }
    assert.deepEqual(new Set(control.calls.map(({ change }) => change.replacePeers)), new Set([undefined]));
    assert.equal(control.peers.size, 21);
    assert.deepEqual([takeEvents(), known![0]], [[], peer]);
  });

  it("closes although its program answers no call any more", async () => {
    const { backend, device, set, control } = setUp();
    control.gate = new Promise(() => {});
    set("awake");
    await turn();
    await device.close();
    assert.equal(backend.closed, 1);
  });

  it("moves a peer's local end when that moved", async () => {
    const { ends, peer, set, pass, control, device } = setUp();
    set("awake");
    await pass(5);
    control.take();
    const endpoint = parseEndpoint("127.9.9.9:4000");
    ends.events.emit("moved", { key: peer, endpoint });
    await pass(1);
    assert.deepEqual(control.take(), ["to 127.9.9.9:4000"]);
    device.setPath(peer, DIRECT);
    await pass(1);
    control.take();
    ends.events.emit("moved", { key: peer, endpoint });
    await pass(1);
    assert.deepEqual(control.take(), []);
  });

  it("has its packets filtered by its rules", async () => {
    const { device, rules } = setUp();
    device.setFilter({ inbound: [], otherwise: "drop" });
    device.setFilterSource(parsePrefix("100.64.0.2/32"), []);
    assert.deepEqual(rules.calls, [
      ["set", { inbound: [], otherwise: "drop" }],
      ["source", "100.64.0.2/32", 0],
    ]);
    await device.close();
  });
});
