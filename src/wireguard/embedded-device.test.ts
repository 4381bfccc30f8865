import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Emitter } from "#base/emitter.ts";
import { type Endpoint, formatEndpoint, formatPrefix, parseEndpoint, parsePrefix } from "#base/ip.ts";
import { PresharedKey, PrivateKey, type PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { ManualClock } from "#base/time.ts";
import type { DeviceEvents, DevicePath, DevicePeerConfig } from "./device.ts";
import { EmbeddedDevice } from "./embedded-device.ts";
import { HandshakeManager } from "./handshake-manager.ts";
import type { Plane } from "./plane.ts";
import { recordDeviceEvents } from "./testing/record-device-events.ts";
import type { SessionKeys } from "./worker/commands.ts";
import type { CaptureTarget } from "./worker/data-plane.ts";
import type { DataPlaneEvents, PlaneSource } from "./worker/plane-events.ts";
import { NO_PEER_COUNTERS, type PeerCounters } from "./worker/stats.ts";

const DIRECT: DevicePath = { kind: "udp", endpoint: parseEndpoint("192.0.2.2:51820") };
const ELSEWHERE: DevicePath = { kind: "udp", endpoint: parseEndpoint("198.51.100.7:4000") };
const RELAY: DevicePath = { kind: "relay" };
const NONE: DevicePath = { kind: "none" };

const show = (path: DevicePath): string => (path.kind === "udp" ? formatEndpoint(path.endpoint) : path.kind);

/** Stands where the data worker would be: writes down what it is told, and says what a test makes it say. */
class RecordingPlane implements Plane {
  readonly events = new Emitter<DataPlaneEvents>();
  readonly features = ["test"];
  readonly interfaceName = "wg-test";
  readonly listenPort = 51820;
  handshakeLoad = 0;
  setCookieSecret(): void {}
  readonly calls: string[] = [];
  capture: CaptureTarget | undefined;
  readonly sent: { readonly datagram: Uint8Array; readonly to: Endpoint; readonly from: Endpoint | undefined }[] = [];
  readonly sessions: { readonly slot: number; readonly keys: SessionKeys; readonly sendKey: string }[] = [];
  readonly staged = new Map<number, number>();
  readonly sendErrors: (string | undefined)[] = [];

  addPeer(slot: number, options: { readonly asleep: boolean; readonly keepalive?: number }): void {
    this.calls.push(`add ${slot} ${options.asleep ? "asleep" : "awake"} ${options.keepalive}`);
  }
  restorePeer(slot: number, options: { readonly asleep: boolean; readonly keepalive?: number }): void {
    this.calls.push(`restore ${slot} ${options.asleep ? "asleep" : "awake"} ${options.keepalive}`);
  }
  startCapture(capture: CaptureTarget): void {
    this.calls.push(`capture ${capture.slot ?? "all"} ${capture.snapLength}`);
    this.capture = capture;
  }
  stopCapture(): void {
    this.calls.push("capture ends");
    this.capture = undefined;
  }
  removePeer(slot: number): void {
    this.calls.push(`remove ${slot}`);
  }
  setAsleep(slot: number, asleep: boolean): void {
    this.calls.push(`${asleep ? "asleep" : "awake"} ${slot}`);
  }
  rearmWake(slot: number): void {
    this.calls.push(`rearm ${slot}`);
  }
  setKeepalive(slot: number, seconds: number): void {
    this.calls.push(`keepalive ${slot} ${seconds}`);
  }
  addPrefix(slot: number, prefix: ReturnType<typeof parsePrefix>): void {
    this.calls.push(`prefix+ ${slot} ${formatPrefix(prefix)}`);
  }
  removePrefix(slot: number, prefix: ReturnType<typeof parsePrefix>): void {
    this.calls.push(`prefix- ${slot} ${formatPrefix(prefix)}`);
  }
  setPath(slot: number, path: DevicePath): void {
    this.calls.push(`path ${slot} ${show(path)}`);
  }
  installSession(slot: number, keys: SessionKeys): void {
    this.calls.push(`session ${slot} ${keys.role}`);
    this.sessions.push({ slot, keys, sendKey: Buffer.from(keys.sendKey).toString("hex") });
  }
  dropStaged(slot: number): void {
    this.calls.push(`drop-staged ${slot}`);
    this.staged.delete(slot);
  }
  setFilter(rules: Parameters<Plane["setFilter"]>[0]): void {
    this.calls.push(`filter ${rules ? `${rules.inbound.length} otherwise ${rules.otherwise}` : "off"}`);
  }
  setFilterSource(source: Parameters<Plane["setFilterSource"]>[0], rules: readonly unknown[]): void {
    this.calls.push(`filter ${formatPrefix(source)} ${rules.length}`);
  }
  noteAuthenticated(slot: number, direction: "sent" | "received", bytes = 0): void {
    this.calls.push(`note ${slot} ${direction} ${bytes}`);
  }
  injectRelayed(slot: number, datagram: Uint8Array): void {
    this.calls.push(`inject ${slot} ${datagram.length}`);
  }
  sendDatagram(datagram: Uint8Array, to: Endpoint, from?: Endpoint): string | undefined {
    this.calls.push(`send ${formatEndpoint(to)}${from ? ` from ${from.address}` : ""}`);
    const error = this.sendErrors.shift();
    if (error === undefined) this.sent.push({ datagram, to, from });
    return error;
  }
  peerCounters(slot: number): PeerCounters {
    return { ...NO_PEER_COUNTERS, stagedBytes: this.staged.get(slot) ?? 0 };
  }
  counters(): ReturnType<Plane["counters"]> {
    return new Map([["rx-packets", 3]]);
  }
  isWorking(): boolean {
    return true;
  }
  close(): Promise<void> {
    this.calls.push("close");
    return Promise.resolve();
  }
  /** The calls since the last time. */
  take(): string[] {
    return this.calls.splice(0);
  }
}

function setUp(config: Partial<DevicePeerConfig> = {}) {
  const clock = new ManualClock(1000);
  const plane = new RecordingPlane();
  const device = new EmbeddedDevice(
    { clock, log: silentLogger, plane },
    { privateKey: PrivateKey.generate(), mtu: 1420 },
  );
  const remoteKey = PrivateKey.generate();
  const peer = remoteKey.publicKey;
  // The other end is a bare handshake manager: what it sends and accepts is the protocol.
  const us = { slot: 1, key: device.publicKey, presharedKey: config.presharedKey };
  const peers = { get: (key: PublicKey) => (key === us.key ? us : undefined), at: () => us };
  const remote = new HandshakeManager({ peers, wall: () => clock.wall() }, remoteKey);
  const events = recordDeviceEvents(device);
  const allowedIps = [parsePrefix("100.64.0.2/32")];
  const set = (mode: "asleep" | "awake", more: Partial<DevicePeerConfig> = {}): void =>
    device.setPeer(peer, { mode, allowedIps, ...config, ...more });
  const arrive = (datagram: Uint8Array, source: PlaneSource, local = parseEndpoint("192.0.2.1:51820").address): void =>
    plane.events.emit("handshake", { datagram, source, local, receivedAt: clock.now() });
  const remoteInitiation = (): Uint8Array => {
    const action = remote.initiate(1, clock.now(), 0)[0]!;
    assert.ok(action.kind === "send-initiation");
    return action.message;
  };
  /** What the remote answers to an initiation. */
  const remoteAnswer = (message: Uint8Array): Uint8Array => {
    const actions = remote.receive(message, { kind: "relay", slot: 1 }, clock.now(), false);
    const reply = actions.find((action) => action.kind === "send-reply");
    assert.ok(reply, "the remote accepts it");
    return reply.message;
  };
  const takeEvents = (): string[] => events.splice(0).map(({ name }) => name);
  return { clock, plane, device, peer, remote, events, set, arrive, remoteInitiation, remoteAnswer, takeEvents };
}

const relayed = (events: { name: string; payload: unknown }[]): Uint8Array[] =>
  events
    .filter(({ name }) => name === "relay-out")
    .map(({ payload }) => (payload as DeviceEvents["relay-out"]).datagram);

describe("an asleep peer", () => {
  it("is one row: no timer, no path, nothing sent, whatever is asked of it", () => {
    const { clock, plane, device, peer, set } = setUp();
    set("asleep");
    assert.deepEqual(plane.take(), ["add 0 asleep 0", "prefix+ 0 100.64.0.2/32"]);
    device.setPath(peer, DIRECT);
    assert.equal(device.initiate(peer, [DIRECT]), false);
    plane.events.emit("needHandshake", { slot: 0, reason: "staged" });
    assert.deepEqual(plane.take(), []);
    assert.equal(clock.pending, 0);
  });

  it("is reported once when a packet waits for it, and again when the wake was declined", () => {
    const { plane, set, device, peer, events, takeEvents } = setUp();
    const packet = {
      source: "100.64.0.1",
      destination: "100.64.0.2",
      protocol: 1,
      sourcePort: 0,
      destinationPort: 0,
      bytes: 84,
    };
    set("asleep");
    const wake = (): void => plane.events.emit("wake", { slot: 0, cause: { kind: "packet", packet } });
    wake();
    assert.deepEqual((events[0]!.payload as DeviceEvents["wake"]).cause, { kind: "packet", packet });
    wake();
    assert.deepEqual(takeEvents(), ["wake"]);
    plane.take();
    set("asleep");
    assert.deepEqual(plane.take(), [], "nothing changed: what waits is not touched");
    device.declineWake(peer);
    assert.deepEqual(plane.take(), ["asleep 0"], "the worker may report again");
    wake();
    assert.deepEqual(takeEvents(), ["wake"]);
    device.postponeWake(peer, "keep");
    assert.deepEqual(plane.take(), ["rearm 0"], "what waits stays");
    wake();
    device.postponeWake(peer, "drop");
    assert.deepEqual(plane.take(), ["drop-staged 0", "rearm 0"]);
    wake();
    assert.deepEqual(takeEvents(), ["wake", "wake"]);
    set("awake");
    plane.take();
    device.postponeWake(peer, "drop");
    assert.deepEqual(plane.take(), [], "nothing to postpone");
    wake();
    assert.deepEqual(takeEvents(), [], "awake: old news");
  });

  for (const source of [
    { kind: "udp", endpoint: ELSEWHERE.endpoint },
    { kind: "relay", slot: 0 },
  ] as PlaneSource[]) {
    it(`has its initiation over ${source.kind} answered at once, the way it came`, () => {
      const { plane, set, arrive, remoteInitiation, events, remote, clock } = setUp();
      set("asleep");
      plane.take();
      arrive(remoteInitiation(), source);
      const reply = source.kind === "udp" ? plane.sent[0]!.datagram : relayed(events)[0]!;
      assert.equal(reply.length, 92);
      const calls = plane.take();
      assert.equal(calls[0], "note 0 received 148");
      assert.equal(calls[1], "session 0 responder");
      assert.deepEqual(
        calls.slice(2),
        source.kind === "udp" ? ["send 198.51.100.7:4000 from 192.0.2.1", "note 0 sent 92"] : ["note 0 sent 92"],
      );
      const wake = events.find(({ name }) => name === "wake")!.payload as DeviceEvents["wake"];
      assert.deepEqual(wake.cause, {
        kind: "handshake",
        source: source.kind === "udp" ? source : { kind: "relay" },
      });
      const end = remote.receive(reply, { kind: "relay", slot: 1 }, clock.now(), false);
      const session = end.find((action) => action.kind === "session");
      assert.equal(Buffer.from(session!.keys.receiveKey).toString("hex"), plane.sessions[0]!.sendKey);
      assert.ok(
        plane.sessions[0]!.keys.sendKey.every((byte) => byte === 0),
        "wiped after it was handed over",
      );
    });
  }

  it("has its answers sent where it was heard, from the moment it is awake", () => {
    const { plane, device, peer, set, arrive, remoteInitiation, takeEvents } = setUp();
    set("asleep");
    arrive(remoteInitiation(), { kind: "relay", slot: 0 });
    plane.events.emit("confirmed", { slot: 0, localIndex: plane.sessions[0]!.keys.localIndex, source: ELSEWHERE });
    assert.deepEqual(takeEvents(), ["wake", "relay-out", "established"]);
    plane.take();
    set("awake");
    assert.deepEqual(plane.take(), ["awake 0", "path 0 198.51.100.7:4000"]);
    assert.deepEqual(takeEvents(), ["path-hint"]);
    device.setPath(peer, ELSEWHERE);
    assert.deepEqual(plane.take(), []);
    set("asleep");
    set("awake");
    assert.deepEqual(plane.take(), ["asleep 0", "awake 0"], "that was the last sleep");
  });

  it("is woken by data on an old session", () => {
    const { plane, set, events } = setUp();
    set("asleep");
    plane.events.emit("wake", { slot: 0, cause: { kind: "data", source: { kind: "relay", slot: 0 } } });
    assert.deepEqual((events[0]!.payload as DeviceEvents["wake"]).cause, { kind: "data", source: { kind: "relay" } });
  });
});

describe("a woken peer", () => {
  it("gets a handshake the moment it has a path, because packets wait", () => {
    const { plane, device, peer, set } = setUp();
    set("asleep");
    plane.staged.set(0, 100);
    set("awake");
    plane.events.emit("needHandshake", { slot: 0, reason: "staged" });
    assert.equal(plane.sent.length, 0, "no path yet");
    plane.take();
    device.setPath(peer, DIRECT);
    assert.deepEqual(plane.take(), ["path 0 192.0.2.2:51820", "send 192.0.2.2:51820", "note 0 sent 148"]);
  });

  it("gets the same initiation over a path that comes up while the answer is awaited, once", () => {
    const { clock, plane, device, peer, set, events } = setUp();
    set("awake");
    assert.equal(device.initiate(peer, [RELAY]), true);
    clock.advance(80);
    device.setPath(peer, RELAY);
    assert.equal(relayed(events).length, 1, "went over it already");
    device.setPath(peer, DIRECT);
    assert.deepEqual(plane.sent[0]!.datagram, relayed(events)[0]);
    device.setPath(peer, RELAY);
    device.setPath(peer, DIRECT);
    assert.equal(plane.sent.length, 1);
  });

  it("gets a fresh initiation over a new path when the one in flight is old", () => {
    const { clock, plane, device, peer, set, events } = setUp();
    set("awake");
    device.initiate(peer, [RELAY]);
    clock.advance(1500);
    device.setPath(peer, DIRECT);
    assert.notDeepEqual(plane.sent[0]!.datagram, relayed(events)[0]);
  });

  it("has one fresh message sent over all paths, past the 5 s rule", () => {
    const { clock, plane, device, peer, set, events } = setUp();
    set("awake");
    device.initiate(peer, [DIRECT, RELAY, ELSEWHERE, NONE]);
    const first = plane.sent[0]!.datagram;
    assert.deepEqual(
      plane.sent.map(({ to }) => formatEndpoint(to)),
      ["192.0.2.2:51820", "198.51.100.7:4000"],
    );
    assert.deepEqual(relayed(events)[0], first);
    assert.deepEqual(plane.sent[1]!.datagram, first);
    assert.equal(plane.take().at(-1), `note 0 sent ${3 * 148}`);
    clock.advance(60);
    assert.equal(device.initiate(peer, [DIRECT]), true);
    assert.notDeepEqual(plane.sent[2]!.datagram, first);
    assert.equal(device.initiate(PrivateKey.generate().publicKey, [DIRECT]), false);
  });

  it("has an initiation that comes too soon after the last one sent as soon as the peer will take it", () => {
    const { clock, plane, device, peer, set, arrive, remoteAnswer, events } = setUp();
    set("awake");
    device.initiate(peer, [RELAY]);
    clock.advance(4);
    arrive(remoteAnswer(relayed(events)[0]!), { kind: "relay", slot: 0 });
    assert.equal(device.initiate(peer, [DIRECT]), true);
    assert.equal(plane.sent.length, 0);
    clock.advance(21);
    assert.equal(plane.sent.length, 1, "over the paths that were asked for");
    assert.equal(relayed(events).length, 1);
    assert.equal(remoteAnswer(plane.sent[0]!.datagram).length, 92);
    clock.advance(60_000);
    assert.ok(plane.sent.length === 1 && relayed(events).length > 2, "repetitions take the path in use");
  });

  it("sends data where its handshake worked until a path is chosen, and says so", () => {
    const { clock, plane, device, peer, set, arrive, remoteAnswer, events, takeEvents } = setUp();
    set("awake");
    device.initiate(peer, [RELAY, DIRECT]);
    clock.advance(33);
    const answer = remoteAnswer(plane.sent[0]!.datagram);
    plane.take();
    events.length = 0;
    arrive(answer, { kind: "relay", slot: 0 });
    assert.deepEqual(plane.take(), ["path 0 relay", "note 0 received 92", "session 0 initiator"]);
    const established = events.find(({ name }) => name === "established")!.payload;
    assert.deepEqual(established, { key: peer, role: "initiator", source: { kind: "relay" }, rtt: 33 });
    assert.deepEqual(takeEvents(), ["path-hint", "established"]);
    assert.equal(device.peerStats(peer)!.lastHandshake, clock.wall());
    device.setPath(peer, RELAY);
    assert.deepEqual(plane.take(), [], "that is where it is already");
    device.setPath(peer, DIRECT);
    assert.deepEqual(plane.take(), ["path 0 192.0.2.2:51820"]);
    device.setPath(peer, NONE);
    assert.deepEqual(plane.take(), ["path 0 none"]);
  });

  it("sends what waited over the path that is chosen upon its handshake", () => {
    const { plane, device, peer, set, arrive, remoteAnswer } = setUp();
    set("awake");
    device.setPath(peer, RELAY);
    device.initiate(peer, [RELAY, DIRECT]);
    plane.take();
    device.events.on("established", () => device.setPath(peer, DIRECT));
    arrive(remoteAnswer(plane.sent[0]!.datagram), DIRECT);
    assert.deepEqual(plane.take(), ["note 0 received 92", "path 0 192.0.2.2:51820", "session 0 initiator"]);
  });

  it("keeps its path when an answer comes from elsewhere", () => {
    const { plane, device, peer, set, arrive, remoteAnswer, events, takeEvents } = setUp();
    set("awake");
    device.setPath(peer, DIRECT);
    device.initiate(peer, [DIRECT]);
    plane.take();
    arrive(remoteAnswer(plane.sent[0]!.datagram), { kind: "udp", endpoint: ELSEWHERE.endpoint });
    assert.deepEqual(plane.take(), ["note 0 received 92", "session 0 initiator"]);
    const hint = events.find(({ name }) => name === "path-hint")!.payload;
    assert.deepEqual(hint, { key: peer, source: ELSEWHERE });
    assert.deepEqual(takeEvents(), ["path-hint", "established"]);
  });

  it("has its initiation answered the way it came even when its path is another, without a hint from the same place", () => {
    const { clock, plane, device, peer, set, arrive, remoteInitiation, takeEvents } = setUp();
    set("awake");
    device.setPath(peer, RELAY);
    arrive(remoteInitiation(), { kind: "udp", endpoint: ELSEWHERE.endpoint });
    assert.equal(formatEndpoint(plane.sent[0]!.to), "198.51.100.7:4000");
    assert.deepEqual(takeEvents(), ["path-hint"]);
    clock.advance(30);
    arrive(remoteInitiation(), { kind: "relay", slot: 0 });
    assert.deepEqual(takeEvents(), ["relay-out"]);
  });

  it("is established as responder when the first packet confirms the session", () => {
    const { plane, device, peer, set, arrive, remoteInitiation, events, takeEvents } = setUp();
    set("awake");
    arrive(remoteInitiation(), { kind: "udp", endpoint: ELSEWHERE.endpoint });
    assert.deepEqual(takeEvents(), [], "not proven to hear us");
    const { localIndex } = plane.sessions[0]!.keys;
    plane.events.emit("pathHint", { slot: 0, source: ELSEWHERE, adopted: true });
    plane.events.emit("confirmed", { slot: 0, localIndex, source: ELSEWHERE });
    assert.deepEqual(events.at(-1), {
      name: "established",
      payload: { key: peer, role: "responder", source: ELSEWHERE },
    });
    assert.deepEqual(takeEvents(), ["path-hint", "established"], "one hint");
    plane.take();
    device.setPath(peer, ELSEWHERE);
    assert.deepEqual(plane.take(), [], "the worker adopted it already");
  });

  it("has its handshake repeated after 5 s over its path, or over the paths of the last try when it has none", () => {
    const { clock, plane, device, peer, set, events } = setUp();
    set("awake");
    device.initiate(peer, [RELAY]);
    clock.advance(5400);
    assert.equal(relayed(events).length, 2);
    device.setPath(peer, DIRECT);
    const before = plane.sent.length;
    clock.advance(5400);
    assert.equal(plane.sent.length, before + 1);
    assert.equal(relayed(events).length, 2);
  });

  it("loses its packets when the handshake is given up after 90 s, and the caller learns how many", () => {
    const { clock, plane, device, peer, set, events } = setUp();
    set("awake");
    plane.staged.set(0, 1234);
    device.setPath(peer, DIRECT);
    clock.advance(90_001);
    assert.deepEqual(events.at(-1), { name: "handshake-failed", payload: { key: peer, droppedBytes: 1234 } });
    assert.ok(plane.take().includes("drop-staged 0"));
    clock.advance(700_000);
    assert.equal(clock.pending, 0);
  });

  it("leaves no timer and no wait behind when it goes to sleep", () => {
    const { clock, plane, device, peer, set, arrive, remoteAnswer, takeEvents } = setUp();
    set("awake");
    device.setPath(peer, DIRECT);
    device.initiate(peer, [DIRECT]);
    const answer = remoteAnswer(plane.sent[0]!.datagram);
    set("asleep");
    takeEvents();
    arrive(answer, { kind: "udp", endpoint: DIRECT.endpoint });
    clock.advance(30_000);
    assert.equal(plane.sent.length, 1);
    assert.deepEqual(takeEvents(), []);
    clock.advance(700_000);
    assert.equal(clock.pending, 0);
  });
});

describe("the device", () => {
  it("changes only what changed", () => {
    const { plane, device, peer, set } = setUp();
    set("awake", { persistentKeepalive: 25 });
    assert.deepEqual(plane.take(), ["add 0 awake 25", "prefix+ 0 100.64.0.2/32"]);
    set("awake", { persistentKeepalive: 25 });
    device.setPeer(peer, { mode: "awake", allowedIps: [parsePrefix("100.64.0.2")], persistentKeepalive: 25 });
    assert.deepEqual(plane.take(), []);
    set("awake", { persistentKeepalive: 10, allowedIps: [parsePrefix("100.64.0.2/32"), parsePrefix("10.9.8.7/8")] });
    assert.deepEqual(plane.take(), ["prefix+ 0 10.0.0.0/8", "keepalive 0 10"]);
    set("awake", { persistentKeepalive: 10, allowedIps: [parsePrefix("10.0.0.0/8"), parsePrefix("fd00::/64")] });
    assert.deepEqual(plane.take(), ["prefix- 0 100.64.0.2/32", "prefix+ 0 fd00::/64"]);
  });

  it("moves a prefix from one peer to another, and the first owner's removal does not take it away", () => {
    const { plane, device, peer, set } = setUp();
    set("asleep");
    const other = PrivateKey.generate().publicKey;
    device.setPeer(other, { mode: "asleep", allowedIps: [parsePrefix("100.64.0.2/32")] });
    plane.take();
    set("asleep", { allowedIps: [] });
    assert.deepEqual(plane.take(), []);
    set("asleep");
    assert.deepEqual(plane.take(), ["prefix+ 0 100.64.0.2/32"], "and back");
    device.removePeer(peer);
    assert.deepEqual(plane.take(), ["remove 0"]);
    device.setPeer(other, { mode: "asleep", allowedIps: [parsePrefix("100.64.0.2/32")] });
    assert.deepEqual(plane.take(), ["prefix+ 1 100.64.0.2/32"]);
  });

  it("does not give a slot away while late reports about its last owner may come", () => {
    const { clock, plane, device, peer, set, takeEvents } = setUp();
    set("asleep");
    device.removePeer(peer);
    plane.take();
    set("asleep");
    assert.match(plane.take()[0]!, /^add 1 /);
    plane.events.emit("wake", { slot: 0, cause: { kind: "data", source: { kind: "relay", slot: 0 } } });
    assert.deepEqual(takeEvents(), []);
    clock.advance(5000);
    device.setPeer(PrivateKey.generate().publicKey, { mode: "asleep", allowedIps: [] });
    assert.match(plane.take()[0]!, /^add 0 /);
  });

  it("uses preshared keys, and a changed one from the next handshake on", () => {
    const psk = PresharedKey.parse(Buffer.alloc(32, 5).toString("base64"));
    const { plane, device, peer, set, arrive, remoteAnswer, takeEvents } = setUp({ presharedKey: psk });
    set("awake");
    device.initiate(peer, [DIRECT]);
    arrive(remoteAnswer(plane.sent[0]!.datagram), { kind: "udp", endpoint: DIRECT.endpoint });
    assert.deepEqual(takeEvents(), ["path-hint", "established"]);
  });

  it("does not believe a relay that names another peer", () => {
    const { plane, device, set, arrive, remoteInitiation, takeEvents } = setUp();
    set("asleep");
    device.setPeer(PrivateKey.generate().publicKey, { mode: "asleep", allowedIps: [] });
    arrive(remoteInitiation(), { kind: "relay", slot: 1 });
    assert.deepEqual(takeEvents(), []);
    assert.equal(plane.sessions.length, 0);
    assert.equal(device.counters().get("drop-handshake-relay-mismatch"), 1);
  });

  it("asks for cookies while the worker's queue of handshakes is filling", () => {
    const { clock, plane, set, arrive, remoteInitiation, takeEvents } = setUp();
    set("asleep");
    plane.handshakeLoad = 0.2;
    arrive(remoteInitiation(), { kind: "udp", endpoint: ELSEWHERE.endpoint });
    assert.equal(plane.sent[0]!.datagram.length, 64);
    clock.advance(30);
    arrive(remoteInitiation(), { kind: "relay", slot: 0 });
    assert.deepEqual(takeEvents(), ["relay-out"], "over the relay too, to whom it named");
  });

  it("answers from another address when the one that was asked is gone, and reports a dead path", () => {
    const { plane, device, peer, set, arrive, remoteInitiation, events } = setUp();
    set("awake");
    plane.sendErrors.push("EADDRNOTAVAIL");
    plane.take();
    arrive(remoteInitiation(), { kind: "udp", endpoint: ELSEWHERE.endpoint });
    assert.equal(plane.sent.length, 1);
    assert.equal(plane.sent[0]!.from, undefined);
    plane.sendErrors.push("ENETUNREACH");
    device.initiate(peer, [DIRECT]);
    assert.deepEqual(events.at(-1), {
      name: "path-error",
      payload: { key: peer, endpoint: DIRECT.endpoint, code: "ENETUNREACH" },
    });
  });

  it("ignores itself as a peer and refuses keepalives out of range", () => {
    const { plane, device, set } = setUp();
    device.setPeer(device.publicKey, { mode: "awake", allowedIps: [] });
    assert.deepEqual(plane.take(), []);
    assert.throws(() => set("awake", { persistentKeepalive: 65_536 }), { code: "keepalive-out-of-range" });
    assert.throws(() => set("awake", { persistentKeepalive: 1.5 }), { code: "keepalive-out-of-range" });
  });

  it("says how many peers it can take", () => {
    const clock = new ManualClock();
    const plane = new RecordingPlane();
    const options = { privateKey: PrivateKey.generate(), mtu: 1420, peerCapacity: 2 };
    const device = new EmbeddedDevice({ clock, log: silentLogger, plane }, options);
    const keys = [0, 1, 2].map(() => PrivateKey.generate().publicKey);
    const add = (key: PublicKey): void => device.setPeer(key, { mode: "asleep", allowedIps: [] });
    add(keys[0]!);
    add(keys[1]!);
    assert.throws(() => add(keys[2]!), { code: "too-many-peers" });
    device.removePeer(keys[0]!);
    add(keys[2]!);
    assert.deepEqual([...device.allPeerStats().keys()], [keys[1], keys[2]]);
  });

  it("holds 50,000 asleep peers without a timer and adds them quickly enough for a network map", () => {
    const { clock, device } = setUp();
    const bytes = Buffer.alloc(32);
    for (let i = 0; i < 50_000; i++) {
      bytes.writeUInt32LE(i + 1);
      const allowedIps = [parsePrefix(`100.${64 + (i >> 16)}.${(i >> 8) & 255}.${i & 255}/32`)];
      device.setPeer(bytes.toString("base64") as PublicKey, { mode: "asleep", allowedIps });
    }
    assert.equal(device.counters().get("peers"), 50_000);
    assert.equal(device.counters().get("peers-in-contact"), 0);
    assert.equal(clock.pending, 0);
    assert.equal(device.allPeerStats().size, 50_000);
  });

  it("passes on what is not its own", () => {
    const { plane, device, peer, set, takeEvents } = setUp();
    set("asleep");
    plane.take();
    plane.events.emit("stun", { datagram: new Uint8Array(20), from: DIRECT.endpoint, to: undefined, receivedAt: 0 });
    plane.events.emit("relayOut", { slot: 0, datagram: new Uint8Array(32) });
    plane.events.emit("pathError", { slot: 0, endpoint: DIRECT.endpoint, code: "EPERM" });
    plane.events.emit("silent", { slot: 0 });
    assert.deepEqual(takeEvents(), ["stun", "relay-out", "path-error"]);
    set("awake");
    plane.take();
    plane.events.emit("silent", { slot: 0 });
    assert.deepEqual(takeEvents(), ["silent"]);
    device.injectRelayed(peer, new Uint8Array(40));
    device.injectRelayed(PrivateKey.generate().publicKey, new Uint8Array(40));
    assert.deepEqual(plane.take(), ["inject 0 40"]);
    assert.equal(device.counters().get("rx-packets"), 3);
  });

  it("answers relayed handshakes on the spot, a few at a time; the rest go through the worker", () => {
    const { clock, plane, device, peer, set, remoteInitiation, events } = setUp();
    set("asleep");
    plane.take();
    const message = remoteInitiation();
    device.injectRelayed(peer, message.slice());
    assert.equal(relayed(events)[0]!.length, 92);
    assert.ok(plane.take().every((call) => !call.startsWith("inject")));
    for (let i = 0; i < 10; i++) device.injectRelayed(peer, message.slice());
    assert.equal(plane.take().filter((call) => call === "inject 0 148").length, 3, "eight in 10 ms");
    clock.advance(10);
    device.injectRelayed(peer, message.slice());
    assert.ok(!plane.take().includes("inject 0 148"));
    plane.handshakeLoad = 0.5;
    device.injectRelayed(peer, message.slice());
    assert.deepEqual(plane.take(), ["inject 0 148"], "under load they queue with all others");
  });

  it("closes once, and does nothing more", async () => {
    const { clock, plane, device, peer, set } = setUp();
    set("awake");
    device.initiate(peer, [DIRECT]);
    plane.take();
    await Promise.all([device.close(), device.close()]);
    set("asleep");
    device.setPath(peer, DIRECT);
    device.removePeer(peer);
    assert.equal(device.initiate(peer, [DIRECT]), false);
    assert.deepEqual(plane.take(), ["close"]);
    assert.equal(clock.pending, 0);
  });

  it("says when the worker died, and closes", () => {
    const { plane, events, device } = setUp();
    plane.events.emit("gone", { reason: "interface deleted" });
    assert.deepEqual(events, [{ name: "gone", payload: { reason: "interface deleted" } }]);
    assert.deepEqual(plane.take(), ["close"]);
    assert.ok(device.close() instanceof Promise);
  });
});

describe("when the data worker died", () => {
  const other = PrivateKey.generate().publicKey;
  const sleeper = PrivateKey.generate().publicKey;

  it("gives the next one every peer as it is now, and handshakes at once with those that had a session", () => {
    const { plane, device, peer, set, arrive, remoteInitiation, clock, takeEvents } = setUp();
    set("awake", { persistentKeepalive: 25 });
    device.setPath(peer, DIRECT);
    arrive(remoteInitiation(), { kind: "udp", endpoint: DIRECT.kind === "udp" ? DIRECT.endpoint : ELSEWHERE.endpoint });
    // Awake, with a path, and never in contact: nobody asked for a handshake with it.
    device.setPeer(other, { mode: "awake", allowedIps: [parsePrefix("100.64.0.3/32"), parsePrefix("10.0.0.0/8")] });
    device.setPath(other, ELSEWHERE);
    device.setPeer(sleeper, { mode: "asleep", allowedIps: [parsePrefix("100.64.0.4/32"), parsePrefix("10.0.0.0/8")] });
    clock.advance(1_000);
    plane.take();
    takeEvents();
    plane.events.emit("restarted", { reason: "boom" });
    assert.deepEqual(plane.take(), [
      "restore 0 awake 25",
      "prefix+ 0 100.64.0.2/32",
      "path 0 192.0.2.2:51820",
      "restore 1 awake 0",
      "prefix+ 1 100.64.0.3/32",
      "path 1 198.51.100.7:4000",
      "restore 2 asleep 0",
      "prefix+ 2 100.64.0.4/32",
      "prefix+ 2 10.0.0.0/8",
      "send 192.0.2.2:51820",
      "note 0 sent 148",
    ]);
    assert.deepEqual(takeEvents(), ["worker-restarted"]);
  });

  it("restores the path that was adopted, and asks again for a peer whose packets were lost with it", () => {
    const { plane, device, peer, set, takeEvents } = setUp();
    set("awake");
    plane.events.emit("pathHint", { slot: 0, source: { kind: "relay", slot: 0 }, adopted: true });
    plane.staged.set(0, 1400);
    plane.take();
    takeEvents();
    plane.events.emit("restarted", { reason: "boom" });
    assert.deepEqual(plane.take(), ["restore 0 awake 0", "prefix+ 0 100.64.0.2/32", "path 0 relay", "note 0 sent 148"]);
    assert.deepEqual(takeEvents(), ["relay-out", "worker-restarted"]);
    assert.equal(device.peerStats(peer)?.lastHandshake, 0);
  });

  it("frees the indices of the lost sessions, and still takes the answer that is under way", () => {
    const { plane, device, peer, set, arrive, remoteAnswer, clock, takeEvents } = setUp();
    set("awake");
    device.setPath(peer, DIRECT);
    device.initiate(peer, [DIRECT]);
    clock.advance(100);
    const answer = remoteAnswer(plane.sent[0]!.datagram);
    plane.take();
    plane.events.emit("restarted", { reason: "boom" });
    arrive(answer, { kind: "udp", endpoint: ELSEWHERE.endpoint });
    assert.deepEqual(
      plane.sessions.map(({ slot }) => slot),
      [0],
    );
    assert.ok(takeEvents().includes("established"));
  });

  it("spreads many handshakes over turns", () => {
    const { plane, device, clock } = setUp();
    const keys = Array.from({ length: 100 }, () => PrivateKey.generate().publicKey);
    for (const key of keys) {
      device.setPeer(key, { mode: "awake", allowedIps: [] });
      device.setPath(key, DIRECT);
      device.initiate(key, [DIRECT]);
    }
    clock.advance(2_000);
    const sent = (): number => plane.take().filter((call) => call.startsWith("send")).length;
    sent();
    plane.events.emit("restarted", { reason: "boom" });
    assert.equal(sent(), 32);
    device.removePeer(keys[99]!);
    clock.advance(0);
    assert.equal(sent(), 67);
  });
});
