import assert from "node:assert/strict";
import { test } from "node:test";
import { parseEndpoint } from "#base/ip.ts";
import {
  type AwakeState,
  createPeerState,
  type DirectPath,
  nextDeadline,
  type PeerConnectionState,
  type PeerContext,
  type PeerEffect,
  type PeerEvent,
  step,
} from "./peer-state.ts";
import { choosePath } from "./peer-steps.ts";
import { createContext, createRemote } from "./testing/peer-facts.ts";

/** A machine with its effects, driven by hand. */
class Machine {
  state: PeerConnectionState = createPeerState("asleep");
  now = 1000;
  effects: readonly PeerEffect[] = [];
  context: Partial<PeerContext> = {};

  post(event: PeerEvent): this {
    ({ state: this.state, effects: this.effects } = step(this.state, event, createContext(this.now, this.context)));
    return this;
  }

  /** Moves to the next deadline and ticks. */
  tick(): this {
    this.now = nextDeadline(this.state)!;
    return this.post({ kind: "tick" });
  }

  get awake(): AwakeState {
    assert.equal(this.state.kind, "awake");
    return this.state as AwakeState;
  }

  kinds(): string[] {
    return this.effects.map((effect) => effect.kind).filter((kind) => kind !== "note");
  }
}

const endpoint = parseEndpoint("192.0.2.7:51820");
const direct: DirectPath = { kind: "ice", endpoint, localKind: "host", remoteKind: "srflx", local: undefined, rtt: 40 };
const wake: PeerEvent = { kind: "wake", cause: "icmp", initiate: true };
const overRelay: PeerEvent = { kind: "established", source: { kind: "relay" } };

test("a wake by traffic starts handshake, relay, ICE and offer in the same instant", () => {
  const machine = new Machine().post(wake);
  assert.deepEqual(machine.kinds(), ["device-awake", "initiate", "use-path", "open-ice", "send-offer"]);
  assert.deepEqual(choosePath(machine.state), { kind: "relay" });
});

test("a wake sends the first handshake to the endpoint of the last time as well", () => {
  const machine = new Machine();
  machine.context = { knownDirect: endpoint };
  machine.post(wake);
  const initiate = machine.effects.find((effect) => effect.kind === "initiate");
  assert.deepEqual(initiate?.paths, [{ kind: "udp", endpoint }, { kind: "relay" }]);
});

test("an offer wakes and is answered, without an offer of our own", () => {
  const machine = new Machine().post({ kind: "offer", remote: createRemote() });
  assert.deepEqual(machine.kinds(), [
    "device-awake",
    "use-path",
    "open-ice",
    "use-relay-server",
    "check-ice",
    "send-answer",
  ]);
});

test("what comes late does not wake a sleeping peer", () => {
  for (const event of [
    { kind: "answer", remote: createRemote() },
    { kind: "ice-selected", ice: 1, direct },
    overRelay,
    { kind: "tick" },
  ] satisfies PeerEvent[]) {
    const machine = new Machine().post(event);
    assert.equal(machine.state.kind, "idle");
    assert.deepEqual(machine.effects, []);
  }
});

test("the handshake is repeated long before WireGuard's five seconds until a session is there", () => {
  const machine = new Machine().post(wake);
  const start = machine.now;
  const at: number[] = [];
  while (machine.now < start + 3000) {
    machine.tick();
    if (machine.kinds().includes("initiate")) at.push(machine.now - start);
  }
  assert.ok(at.length >= 4, `${at}`);
  assert.equal(at[0], 250);
  machine.post(overRelay);
  assert.ok(!machine.tick().kinds().includes("initiate"));
});

test("both sides waking at once converge: the crossing offer is answered, the answer to ours changes nothing", () => {
  const machine = new Machine().post(wake);
  const theirs = createRemote();
  machine.post({ kind: "offer", remote: theirs });
  assert.deepEqual(machine.kinds(), ["use-relay-server", "check-ice", "send-answer"]);
  const { ice, local } = machine.awake;
  machine.post({ kind: "answer", remote: theirs });
  assert.deepEqual(machine.kinds(), []);
  assert.equal(machine.awake.ice, ice);
  assert.equal(machine.awake.local, local);
});

test("connected means a handshake, not a chosen path", () => {
  const machine = new Machine().post(wake).post({ kind: "answer", remote: createRemote() });
  machine.post({ kind: "ice-selected", ice: 1, direct });
  assert.equal(machine.awake.proven, undefined);
  machine.post(overRelay);
  assert.equal(machine.awake.proven, machine.now);
});

test("direct takes over from the relay, and the relay takes back when direct is lost", () => {
  const machine = new Machine().post(wake).post(overRelay).post({ kind: "answer", remote: createRemote() });
  machine.post({ kind: "ice-selected", ice: 1, direct });
  assert.deepEqual(choosePath(machine.state), { kind: "udp", endpoint });
  machine.now += 5000;
  machine.post({ kind: "ice-lost", ice: 1, reason: "no answer for 6 s", failed: false });
  assert.deepEqual(choosePath(machine.state), { kind: "relay" });
  assert.deepEqual(machine.kinds(), ["forget-direct", "open-ice", "use-path", "initiate"]);
  assert.notEqual(machine.awake.proven, undefined);
  // The new life is offered at once.
  assert.equal(nextDeadline(machine.state), machine.now);
  assert.ok(machine.tick().kinds().includes("send-offer"));
});

test("what an older life of the ICE agent reports is dropped", () => {
  const machine = new Machine().post(wake).post({ kind: "answer", remote: createRemote() });
  machine.post({ kind: "ice-lost", ice: 1, reason: "x", failed: false });
  machine.post({ kind: "ice-selected", ice: 1, direct });
  assert.deepEqual(choosePath(machine.state), { kind: "relay" });
});

test("a restarted remote gets a new agent for our old half", () => {
  const machine = new Machine().post(wake).post({ kind: "offer", remote: createRemote() }).post(overRelay);
  machine.post({ kind: "ice-selected", ice: 1, direct });
  const { local } = machine.awake;
  machine.now += 5000;
  machine.post({ kind: "offer", remote: createRemote() });
  assert.deepEqual(machine.kinds(), ["open-ice", "check-ice", "use-path", "initiate", "send-answer"]);
  assert.equal(machine.awake.local, local);
  assert.deepEqual(choosePath(machine.state), { kind: "relay" });
});

test("without relay and direct path a peer is Connecting and keeps offering", () => {
  const machine = new Machine().post(wake).post(overRelay);
  machine.context = { relayUp: false };
  machine.post({ kind: "relay", up: false });
  assert.equal(machine.awake.proven, undefined);
  assert.deepEqual(choosePath(machine.state), { kind: "none" });
  assert.ok(machine.tick().kinds().includes("send-offer"));
  machine.context = {};
  machine.post({ kind: "relay", up: true });
  assert.deepEqual(machine.kinds(), ["use-path", "initiate", "send-offer"]);
});

test("a handshake that came directly is used before ICE is done, ICE replaces it", () => {
  const machine = new Machine().post(wake);
  machine.post({ kind: "established", source: { kind: "udp", endpoint } });
  assert.deepEqual(choosePath(machine.state), { kind: "udp", endpoint });
  machine.post({ kind: "answer", remote: createRemote() });
  const better = parseEndpoint("198.51.100.1:1");
  machine.post({ kind: "ice-selected", ice: 1, direct: { ...direct, endpoint: better } });
  assert.deepEqual(choosePath(machine.state), { kind: "udp", endpoint: better });
});

test("sleep closes everything and tells the remote when it was our idea", () => {
  const machine = new Machine().post(wake).post({ kind: "sleep", reason: "no traffic for 15 min" });
  assert.deepEqual(machine.kinds(), ["close-ice", "device-asleep"]);
  assert.equal(nextDeadline(machine.state), undefined);
  assert.deepEqual(machine.post({ kind: "sleep", reason: "again" }).effects, []);
});

test("a relay-only pair does no ICE and never offers again once the relay carries", () => {
  const machine = new Machine();
  machine.context = { iceAllowed: false };
  machine
    .post(wake)
    .post({ kind: "answer", remote: createRemote({ credentials: undefined, sessionId: undefined } as never) });
  machine.post(overRelay);
  assert.equal(nextDeadline(machine.state), undefined);
});

test("an initiation under way is not thrown away for a path that turns up", () => {
  const machine = new Machine().post(wake).post({ kind: "answer", remote: createRemote() });
  machine.now += 80;
  machine.post({ kind: "ice-selected", ice: 1, direct });
  assert.deepEqual(machine.kinds(), ["use-path"]);
  const late = new Machine();
  late.context = { relayUp: false };
  // No way for a handshake until ICE finds one: then it leaves at once.
  late.post(wake).post({ kind: "answer", remote: createRemote() });
  late.now += 80;
  late.post({ kind: "ice-selected", ice: 1, direct });
  assert.deepEqual(late.kinds(), ["use-path", "initiate"]);
});

test("whatever happens while an initiation is under way, the next one waits for its time", () => {
  const machine = new Machine();
  machine.context = { relayRtt: 40 };
  machine.post(wake).post({ kind: "answer", remote: createRemote() });
  const sentAt = machine.now;
  machine.now += 50;
  const events: PeerEvent[] = [
    { kind: "offer", remote: createRemote() },
    { kind: "relay", up: false },
    { kind: "relay", up: true },
    { kind: "ice-selected", ice: 2, direct },
  ];
  for (const event of events) assert.ok(!machine.post(event).kinds().includes("initiate"), event.kind);
  while (!machine.kinds().includes("initiate")) machine.tick();
  assert.equal(machine.now - sentAt, 180);
});

test("repetitions of the handshake leave a known endpoint alone while there is a relay", () => {
  const machine = new Machine();
  machine.context = { knownDirect: endpoint };
  machine.post(wake).tick();
  const paths = () => machine.effects.find((effect) => effect.kind === "initiate")?.paths;
  assert.deepEqual(paths(), [{ kind: "relay" }]);
  machine.context = { knownDirect: endpoint, relayUp: false };
  machine.post({ kind: "relay", up: false });
  while (!paths()) machine.tick();
  assert.deepEqual(paths(), [{ kind: "udp", endpoint }]);
});

test("repetitions come one round trip and 100 ms after the first, two and 300 ms, three and 700 ms", () => {
  const machine = new Machine();
  machine.context = { relayRtt: 40 };
  machine.post(wake);
  const start = machine.now;
  const at: number[] = [];
  while (at.length < 3) if (machine.tick().kinds().includes("initiate")) at.push(machine.now - start);
  assert.deepEqual(at, [180, 460, 940]);
});

test("a packet that came directly does not move the path while a relay carries", () => {
  const machine = new Machine().post(wake).post(overRelay);
  machine.post({ kind: "path-hint", source: { kind: "udp", endpoint } });
  assert.deepEqual(choosePath(machine.state), { kind: "relay" });
  machine.context = { relayUp: false };
  machine.post({ kind: "relay", up: false }).post({ kind: "path-hint", source: { kind: "udp", endpoint } });
  assert.deepEqual(choosePath(machine.state), { kind: "udp", endpoint });
});

test("another network moves data to the relay at once and starts ICE anew", () => {
  const machine = new Machine().post(wake).post(overRelay).post({ kind: "answer", remote: createRemote() });
  machine.now += 5000;
  machine.post({ kind: "ice-selected", ice: 1, direct }).post({ kind: "network-changed" });
  assert.deepEqual(choosePath(machine.state), { kind: "relay" });
  assert.deepEqual(machine.kinds(), ["open-ice", "send-offer", "use-path", "initiate"]);
  // Without a relay the old path may still be better than none.
  const alone = new Machine().post(wake).post(overRelay).post({ kind: "answer", remote: createRemote() });
  alone.post({ kind: "ice-selected", ice: 1, direct });
  alone.context = { relayUp: false };
  alone.post({ kind: "relay", up: false }).post({ kind: "network-changed" });
  assert.deepEqual(choosePath(alone.state), { kind: "udp", endpoint });
});

test("a path lost right after a handshake is not followed by the next at once, but by one a second after the first", () => {
  const machine = new Machine().post(wake).post(overRelay).post({ kind: "answer", remote: createRemote() });
  machine.post({ kind: "ice-selected", ice: 1, direct });
  const provenAt = machine.now;
  machine.now += 20;
  machine.post({ kind: "ice-lost", ice: 1, reason: "consent-expired", failed: false });
  assert.deepEqual(machine.kinds(), ["forget-direct", "open-ice", "use-path"]);
  while (!machine.kinds().includes("initiate")) machine.tick();
  assert.equal(machine.now, provenAt + 1000);
});

test("a remote that went idle while we stay is called back: by an offer, by a handshake, without ICE as well", () => {
  for (const iceAllowed of [true, false]) {
    const machine = new Machine();
    machine.context = { iceAllowed };
    machine.post(wake).post(overRelay).post({ kind: "answer", remote: createRemote() });
    if (iceAllowed) machine.post({ kind: "ice-selected", ice: 1, direct });
    machine.now += 5000;
    machine.post({ kind: "remote-idle" });
    assert.ok(machine.kinds().includes("send-offer") && machine.kinds().includes("initiate"), `${machine.kinds()}`);
    assert.deepEqual(choosePath(machine.state), { kind: "relay" });
  }
});

test("data that nothing answers has the direct path, the relay and signal checked", () => {
  const machine = new Machine().post(wake).post(overRelay).post({ kind: "silent" });
  assert.deepEqual(machine.kinds(), ["probe-servers"]);
  machine.post({ kind: "answer", remote: createRemote() }).post({ kind: "ice-selected", ice: 1, direct });
  machine.post({ kind: "silent" });
  assert.deepEqual(machine.kinds(), ["suspect-ice", "probe-servers"]);
  assert.deepEqual(choosePath(machine.state), { kind: "udp", endpoint });
  assert.deepEqual(new Machine().post({ kind: "silent" }).effects, []);
});

test("data that nothing answers on a learned path, which nobody watches, moves to the relay", () => {
  const overUdp: PeerEvent = { kind: "established", source: { kind: "udp", endpoint } };
  const machine = new Machine().post(wake).post(overUdp);
  assert.equal(machine.awake.direct?.kind, "learned");
  machine.now += 5000;
  machine.post({ kind: "silent" });
  assert.deepEqual(machine.kinds(), ["forget-direct", "use-path", "initiate", "probe-servers"]);
  assert.deepEqual(choosePath(machine.state), { kind: "relay" });

  const alone = new Machine();
  alone.context = { relayUp: false };
  alone.post(wake).post(overUdp).post({ kind: "silent" });
  assert.deepEqual(alone.kinds(), ["probe-servers"]);
});

test("packets that come another way than ours go have the direct path checked, and the place they came from", () => {
  const elsewhere = parseEndpoint("192.0.2.7:40000");
  const machine = new Machine().post(wake).post(overRelay).post({ kind: "answer", remote: createRemote() });
  machine.post({ kind: "ice-selected", ice: 1, direct });
  machine.post({ kind: "path-hint", source: { kind: "udp", endpoint: elsewhere } });
  assert.deepEqual(machine.effects, [{ kind: "suspect-ice", heardFrom: elsewhere }]);
  machine.post({ kind: "path-hint", source: { kind: "relay" } });
  assert.deepEqual(machine.effects, [{ kind: "suspect-ice", heardFrom: undefined }]);
  assert.deepEqual(choosePath(machine.state), { kind: "udp", endpoint });
});

test("a remote that begins anew is asked for a handshake, on the relay as well: it may be a new process", () => {
  const machine = new Machine().post(wake).post(overRelay).post({ kind: "answer", remote: createRemote() });
  machine.now += 5000;
  machine.post({ kind: "offer", remote: createRemote() });
  assert.deepEqual(machine.kinds(), ["open-ice", "check-ice", "initiate", "send-answer"]);
  assert.notEqual(machine.awake.proven, undefined);
});

test("data over the relay that nothing answers asks for a new proof, but only every ten seconds", () => {
  const machine = new Machine().post(wake).post(overRelay);
  machine.now += 1000;
  assert.ok(!machine.post({ kind: "silent" }).kinds().includes("initiate"));
  machine.now += 10_000;
  assert.ok(machine.post({ kind: "silent" }).kinds().includes("initiate"));
  // No answer: the peer is Connecting again.
  while (machine.awake.proven !== undefined) machine.tick();
  assert.ok(machine.now <= 1000 + 11_000 + 12_000);
});

test("when signal is back a relayed peer is proven again, a direct one is checked, and an unanswered offer is repeated", () => {
  const relayed = new Machine().post(wake).post(overRelay).post({ kind: "answer", remote: createRemote() });
  relayed.now += 5000;
  assert.deepEqual(relayed.post({ kind: "signal-back" }).kinds(), ["initiate"]);
  const watched = new Machine().post(wake).post(overRelay).post({ kind: "answer", remote: createRemote() });
  watched.post({ kind: "ice-selected", ice: 1, direct });
  watched.now += 5000;
  assert.deepEqual(watched.post({ kind: "signal-back" }).kinds(), ["suspect-ice"]);
  const waiting = new Machine().post(wake);
  assert.deepEqual(waiting.post({ kind: "signal-back" }).kinds(), []);
  while (!waiting.kinds().includes("send-offer")) waiting.tick();
  assert.deepEqual(waiting.post({ kind: "signal-back" }).kinds(), ["send-offer"]);
});
