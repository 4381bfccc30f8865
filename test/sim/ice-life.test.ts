import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { sameEndpoint } from "#base/ip.ts";
import { createPairOfPeers, Network, SimHost, SimPeer, type SimPeerOptions, signalBetween } from "./ice-network.ts";
import { createRandom, isDirectPossible, NAT_KINDS, Nat, type NatKind, STUN_SERVERS } from "./internet.ts";

function onSamePath(a: SimPeer, b: SimPeer): boolean {
  const [forth, back] = [a.selected?.endpoint, b.selected?.endpoint];
  return a.agent.state === "selected" && b.agent.state === "selected" && forth !== undefined && back !== undefined;
}

describe("starting", () => {
  test("both sides that start in the same instant select within two round trips of the last candidate", async () => {
    const network = new Network();
    const [a, b] = createPairOfPeers(network, ["port", "port"]);
    signalBetween(a, b, { start: "both" });
    // Candidates of both NATs arrive at 80 ms; a check and its answer take 40 ms more.
    await network.advance(130);
    assert.deepEqual([a.selectedAt, b.selectedAt], [120, 120]);
    a.close();
    b.close();
  });

  test("mapped addresses known from before make the cold wake one signalling round trip faster", async () => {
    const network = new Network();
    const [a, b] = createPairOfPeers(network, ["port", "port"]);
    void a.host.cache.query(STUN_SERVERS[0]!);
    void b.host.cache.query(STUN_SERVERS[0]!);
    await network.advance(100);
    signalBetween(a, b);
    const start = network.clock.now();
    await network.advance(200);
    assert.ok(a.selectedAt && b.selectedAt && Math.max(a.selectedAt, b.selectedAt) - start <= 140);
    a.close();
    b.close();
  });

  test("checks that arrive before the credentials are answered, and used once the credentials are known", async () => {
    const network = new Network();
    const [a, b] = createPairOfPeers(network, ["none", "port"]);
    // b knows all about a; a hears of b's credentials only after b's checks, and never of its candidates.
    a.start((message) => void network.clock.after(40, () => b.hear(message)));
    b.hear({ kind: "credentials", credentials: a.credentials });
    b.start(() => {});
    await network.advance(400);
    assert.equal(a.agent.state, "waiting");
    assert.ok(b.selectedAt !== undefined, "a's answers alone prove the path to b");
    a.hear({ kind: "credentials", credentials: b.credentials });
    await network.advance(45);
    assert.equal(a.agent.state, "selected");
    assert.equal(a.selected?.remote.type, "prflx");
    a.close();
    b.close();
  });

  test("checks that arrive before the agent exists reach it through the dispatcher's buffer", async () => {
    const network = new Network();
    const hostA = new SimHost(network, "203.0.113.1", new Nat("none", "203.0.113.1"));
    const hostB = new SimHost(network, "203.0.113.2", new Nat("none", "203.0.113.2"));
    const a = new SimPeer(hostA, { role: "controlling" });
    const b = new SimPeer(hostB, { role: "controlled" });
    hostB.dispatcher.unregister(b.agent);
    a.start(() => {});
    a.hear({ kind: "credentials", credentials: b.credentials });
    b.start((message) => a.hear(message));
    await network.advance(500);
    assert.equal(a.selectedAt, undefined);
    hostB.dispatcher.register(b.agent);
    await network.advance(25);
    assert.ok(a.selectedAt !== undefined, "the kept request was answered");
    a.close();
    b.close();
  });

  test("a candidate that comes late, even after the search failed, is tried and selected", async () => {
    const network = new Network();
    const [a, b] = createPairOfPeers(network, ["port", "port"]);
    const late: (() => void)[] = [];
    a.start((message) => (message.kind === "candidate" ? late.push(() => b.hear(message)) : b.hear(message)));
    b.start((message) => (message.kind === "candidate" ? late.push(() => a.hear(message)) : a.hear(message)));
    await network.advance(11_000);
    assert.deepEqual([a.agent.state, b.agent.state], ["failed", "failed"]);
    assert.equal(network.clock.pending, 0, "a failed agent has no timer");
    for (const hear of late) hear();
    await network.advance(200);
    assert.ok(onSamePath(a, b));
    a.close();
    b.close();
  });

  test("a router with a static forward of the WireGuard port is reached through the derived candidate", async () => {
    const network = new Network();
    const [a, b] = createPairOfPeers(network, ["symmetric", "port"]);
    // b's router forwards its WireGuard port to b, whatever the NAT says.
    b.host.nat.forward({ address: b.host.endpoint.address, port: 51820 });
    signalBetween(a, b);
    await network.advance(1_000);
    assert.ok(onSamePath(a, b));
    assert.equal(a.selected?.endpoint.port, 51820);
    a.close();
    b.close();
  });
});

describe("choosing", () => {
  test("two hosts behind one NAT end on their private addresses", async () => {
    const network = new Network();
    const nat = new Nat("endpoint-independent", "203.0.113.1");
    const a = new SimPeer(new SimHost(network, "192.168.1.2", nat), { role: "controlling" });
    const b = new SimPeer(new SimHost(network, "192.168.1.3", nat), { role: "controlled" });
    signalBetween(a, b);
    await network.advance(3_000);
    assert.equal(a.selected?.endpoint.address, "192.168.1.3");
    assert.equal(b.selected?.endpoint.address, "192.168.1.2");
    a.close();
    b.close();
  });

  test("a better path that turns up within two seconds takes over on both sides, with a stock remote it does not", async () => {
    for (const stock of [false, true]) {
      const network = new Network();
      const nat = new Nat("endpoint-independent", "203.0.113.1");
      const options = (role: SimPeerOptions["role"]): SimPeerOptions => ({ role, stock });
      const a = new SimPeer(new SimHost(network, "192.168.1.2", nat), options("controlling"));
      const b = new SimPeer(new SimHost(network, "192.168.1.3", nat), options("controlled"));
      // The private addresses are told one second late.
      const connect = (from: SimPeer, to: SimPeer): void =>
        from.start((message) => {
          const slow = message.kind === "candidate" && message.payload.includes("typ host");
          network.clock.after(slow ? 1_000 : 40, () => to.hear(message));
        });
      connect(a, b);
      connect(b, a);
      await network.advance(500);
      assert.equal(a.selected?.endpoint.address, "203.0.113.1");
      await network.advance(2_500);
      const expected = stock ? "203.0.113.1" : "192.168.1.3";
      assert.equal(a.selected?.endpoint.address, expected);
      assert.equal(b.selected?.endpoint.address, stock ? "203.0.113.1" : "192.168.1.2");
      assert.equal(a.log.filter(({ event }) => event === "selected").length, stock ? 1 : 2);
      a.close();
      b.close();
    }
  });

  test("the controlled side waits for the nomination of a stock remote", async () => {
    const network = new Network();
    const [a, b] = createPairOfPeers(network, ["none", "none"], { stock: true });
    signalBetween(a, b);
    await network.advance(1_000);
    assert.deepEqual(
      b.log.map(({ payload }) => (payload as { nominated: boolean }).nominated),
      [true],
    );
    a.close();
    b.close();
  });
});

describe("living", () => {
  test("both sides send a check every two seconds and nothing else", async () => {
    const network = new Network();
    const [a, b] = createPairOfPeers(network, ["port", "port"]);
    signalBetween(a, b);
    await network.advance(10_000);
    const before = network.sent;
    await network.advance(60_000);
    // Two sides, 30 checks each, an answer to each; the interval is counted from the answer, so a few fewer.
    assert.ok(network.sent - before <= 120 && network.sent - before >= 112, `${network.sent - before} packets`);
    assert.equal(network.clock.pending, 2 + 0, "one timer each");
    a.close();
    b.close();
  });

  test("a cut path is lost after six seconds", async () => {
    const network = new Network();
    const [a, b] = createPairOfPeers(network, ["none", "none"]);
    signalBetween(a, b);
    await network.advance(5_000);
    network.loss = 1;
    const cutAt = network.clock.now();
    await network.advance(3_500);
    assert.equal(a.lostAt ?? b.lostAt, undefined);
    await network.advance(3_500);
    for (const peer of [a, b]) {
      assert.ok(peer.lostAt !== undefined && peer.lostAt - cutAt <= 6_000);
      assert.deepEqual(peer.log.at(-1)?.payload, { reason: "consent-expired" });
    }
    assert.equal(network.clock.pending, 0, "a lost agent has no timer");
    a.close();
    b.close();
  });

  test("suspicion decides in 0.6 s when the path is dead and changes nothing when it lives", async () => {
    const network = new Network();
    const [a, b] = createPairOfPeers(network, ["none", "none"]);
    signalBetween(a, b);
    await network.advance(5_000);
    a.agent.suspect();
    await network.advance(3_000);
    assert.equal(a.agent.state, "selected");
    network.loss = 1;
    a.agent.suspect();
    const at = network.clock.now();
    const sentBefore = network.sent;
    await network.advance(595);
    assert.equal(a.agent.state, "selected");
    await network.advance(10);
    assert.equal(a.agent.state, "lost");
    assert.equal(a.lostAt, at + 600);
    assert.deepEqual(a.log.at(-1)?.payload, { reason: "suspicion-confirmed" });
    assert.ok(network.sent - sentBefore <= 5, "three checks and what the other side does by itself");
    a.close();
    b.close();
  });

  for (const side of ["controlling", "controlled"] as const) {
    test(`a rebinding of the ${side} side's NAT moves the path within four seconds without a loss`, async () => {
      const network = new Network();
      const [a, b] = createPairOfPeers(network, ["endpoint-independent", "endpoint-independent"]);
      signalBetween(a, b);
      await network.advance(5_000);
      const [moved, other] = side === "controlling" ? [a, b] : [b, a];
      const before = other.selected?.endpoint;
      moved.host.nat.rebind();
      await network.advance(4_000);
      assert.ok(!sameEndpoint(before, other.selected?.endpoint), "the other side sends to the new mapping");
      await network.advance(10_000);
      assert.equal(a.lostAt ?? b.lostAt, undefined);
      assert.ok(onSamePath(a, b));
      a.close();
      b.close();
    });
  }

  test("evidence that goes on without a broken path costs one check a second", async () => {
    const network = new Network();
    const [a, b] = createPairOfPeers(network, ["none", "none"]);
    signalBetween(a, b);
    await network.advance(5_000);
    const sentBefore = network.sent;
    for (let i = 0; i < 50; i++) {
      a.agent.suspect();
      await network.advance(100);
    }
    assert.equal(a.agent.state, "selected");
    // A check and its answer each: five of suspicion, and the consent of both sides.
    assert.ok(network.sent - sentBefore <= 2 * (5 + 2 * 3), `${network.sent - sentBefore} datagrams`);
    a.close();
    b.close();
  });

  test("a remote that is heard from another mapping is followed there within a second, without a loss", async () => {
    const network = new Network();
    const [a, b] = createPairOfPeers(network, ["address", "address"]);
    signalBetween(a, b);
    await network.advance(5_000);
    b.host.nat.rebind();
    // A packet of b's, from the new mapping, is what a's WireGuard hears; b itself knows nothing yet.
    const heardFrom = b.host.nat.translateOut(b.host.endpoint, b.selected!.endpoint)!;
    a.agent.suspect(heardFrom);
    await network.advance(1_000);
    assert.ok(sameEndpoint(a.selected?.endpoint, heardFrom), "a sends to the new mapping");
    await network.advance(10_000);
    assert.equal(a.lostAt ?? b.lostAt, undefined);
    assert.ok(onSamePath(a, b));
    a.close();
    b.close();
  });

  test("both sides restart at once with new credentials and meet again, old messages notwithstanding", async () => {
    const network = new Network();
    const [a, b] = createPairOfPeers(network, ["port", "address"]);
    signalBetween(a, b);
    await network.advance(5_000);
    const a2 = new SimPeer(a.host, { role: "controlling" });
    const b2 = new SimPeer(b.host, { role: "controlled" });
    a.close();
    b.close();
    // Candidates of the old session arrive in the new one.
    a.start((message) => void (message.kind === "candidate" && b2.hear(message)));
    const at = network.clock.now();
    signalBetween(a2, b2, { start: "both" });
    await network.advance(1_000);
    assert.ok(onSamePath(a2, b2));
    assert.ok(Math.max(a2.selectedAt!, b2.selectedAt!) - at <= 120);
    a2.close();
    b2.close();
  });

  test("a side that follows a restart of the remote keeps its agent and its credentials", async () => {
    const network = new Network();
    const [a, b] = createPairOfPeers(network, ["port", "port"]);
    signalBetween(a, b);
    await network.advance(5_000);
    b.close();
    const b2 = new SimPeer(b.host, { role: "controlled" });
    b2.hear({ kind: "credentials", credentials: a.credentials });
    b2.start((message) => void network.clock.after(40, () => a.hear(message)));
    a.start((message) => void (message.kind === "candidate" && b2.hear(message)));
    await network.advance(500);
    assert.ok(onSamePath(a, b2));
    assert.equal(a.log.filter(({ event }) => event === "selected").length, 2);
    assert.equal(a.lostAt, undefined);
    a.close();
    b2.close();
  });

  test("after close no packet leaves, no timer is left and nothing is said", async () => {
    for (const at of [0, 45, 90, 130, 165, 5_000]) {
      const network = new Network();
      const [a, b] = createPairOfPeers(network, ["port", "port"]);
      signalBetween(a, b);
      await network.advance(at);
      a.close();
      a.close();
      b.close();
      a.host.cache.close();
      b.host.cache.close();
      const events = a.log.length + b.log.length;
      a.agent.suspect();
      a.agent.setRemoteCredentials(b.credentials);
      a.agent.addRemoteCandidate(candidateOf(b));
      // Signalling and packets under way still arrive.
      await network.advance(200);
      const sent = network.sent;
      await network.advance(20_000);
      assert.equal(network.sent, sent);
      assert.equal(network.clock.pending, 0);
      assert.equal(a.log.length + b.log.length, events);
    }
  });
});

function candidateOf(peer: SimPeer): Parameters<SimPeer["agent"]["addRemoteCandidate"]>[0] {
  const endpoint = peer.host.endpoint;
  return { foundation: "1", component: 1, transport: "udp", priority: 1, endpoint, type: "host" };
}

describe("loss", () => {
  test("with 20 % of the packets lost 100 pairs connect, and stay connected for a minute", async (t) => {
    const times: number[] = [];
    let lost = 0;
    for (let seed = 1; seed <= 100; seed++) {
      const network = new Network({ seed, loss: 0.2 });
      const [a, b] = createPairOfPeers(network, ["port", "address"]);
      signalBetween(a, b);
      await network.advance(5_000);
      assert.ok(onSamePath(a, b), `seed ${seed}: ${a.agent.state} ${b.agent.state}`);
      times.push(Math.max(a.selectedAt!, b.selectedAt!));
      await network.advance(60_000, 50);
      if (a.lostAt !== undefined || b.lostAt !== undefined) lost++;
      a.close();
      b.close();
    }
    times.sort((x, y) => x - y);
    t.diagnostic(
      `both selected: median ${times[50]} ms, p95 ${times[95]} ms, worst ${times[99]} ms; lost later: ${lost}`,
    );
    assert.equal(lost, 0);
  });
});

describe("anything", () => {
  const runs = 150;
  test(`${runs} random pairs with random delays, loss, NATs and restarts end on a path that works both ways`, async () => {
    for (let seed = 1; seed <= runs; seed++) {
      const choose = createRandom(seed);
      const pick = <T>(values: readonly T[]): T => values[Math.floor(choose() * values.length)]!;
      const network = new Network({ seed, delay: pick([1, 5, 20, 80, 200]), loss: pick([0, 0, 0.05, 0.15]) });
      let kinds: readonly [NatKind, NatKind];
      do kinds = [pick(NAT_KINDS), pick(NAT_KINDS)];
      while (!isDirectPossible(...kinds));
      const stock = choose() < 0.3;
      let peers = createPairOfPeers(network, kinds, { stock });
      const story = `seed ${seed}: ${kinds.join("/")} delay ${network.delay} loss ${network.loss} stock ${stock}`;
      for (let life = 0; life < 2; life++) {
        const start = pick(["offer", "both"] as const);
        signalBetween(...peers, { signalDelay: pick([1, 40, 300]), start });
        await network.advance(pick([10, 100, 500, 9_000]), 20);
        if (life === 0) {
          // Restart, with packets and signalling of the old life still under way.
          const [a, b] = peers;
          for (const peer of peers) peer.close();
          peers = [
            new SimPeer(a.host, { role: "controlling", stock }),
            new SimPeer(b.host, { role: "controlled", stock }),
          ];
        }
      }
      await network.advance(9_000, 20);
      network.loss = 0;
      for (const peer of peers) {
        assert.equal(peer.agent.state, "selected", `${story}: ${JSON.stringify(peer.agent.pairs())}`);
        peer.agent.suspect();
      }
      await network.advance(1_500);
      for (const peer of peers) {
        assert.equal(peer.agent.state, "selected", `${story}: the path was dead`);
        peer.close();
        peer.host.cache.close();
      }
      await network.advance(3_000, 20);
      assert.equal(network.clock.pending, 0, story);
    }
  });
});
