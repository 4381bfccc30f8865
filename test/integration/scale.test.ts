/** Large networks: what many idle peers cost an agent's main thread, and two thousand of them at once. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { SIGNAL_BURST, SIGNAL_RATE } from "#agent/connections/message-budget.ts";
import { MAX_NEGOTIATING } from "#agent/connections/wake-queue.ts";
import { PublicKey } from "#base/keys.ts";
import { ManualClock } from "#base/time.ts";
import {
  type NetworkMapSchema,
  type PerchMapPartSchema,
  type RemotePeerConfig,
  RemotePeerConfigSchema,
  type SyncResponse,
  SyncResponseSchema,
} from "#gen/management_pb.ts";
import { Body_Type } from "#gen/signal_pb.ts";
import { createOfferBody } from "#signal/protocol/offer.ts";
import { createPeers } from "../../bench/big-network.ts";
import { createLoneAgent, LONE_NETWORK, type LoneAgent } from "../../bench/lone-agent.ts";

const HOUR = 3_600_000;

function remotes(count: number): RemotePeerConfig[] {
  return createPeers(LONE_NETWORK, count).map((peer) =>
    create(RemotePeerConfigSchema, {
      wgPubKey: peer.key,
      allowedIps: [`${peer.address}/32`, `${peer.address6}/128`],
      fqdn: `${peer.dnsLabel}.perch.test`,
      agentVersion: "0.76.0",
    }),
  );
}

const whole = (peers: readonly RemotePeerConfig[]): SyncResponse =>
  create(SyncResponseSchema, {
    NetworkMap: { Serial: 1n },
    perch: { epoch: "e", revision: 1, reset: true, peers: peers.map((peer) => ({ peer })) },
  });

const changed = (peers: readonly RemotePeerConfig[], removed: readonly PublicKey[] = []): SyncResponse =>
  create(SyncResponseSchema, {
    NetworkMap: { Serial: 2n },
    perch: {
      epoch: "e",
      revision: 2,
      peers: peers.map((peer) => ({ peer })),
      removed: removed.map((key) => PublicKey.toBytes(key)),
    },
  });

/** Commands to the data worker that `act` caused. */
function commandsOf(agent: LoneAgent, act: () => void): Record<string, number> {
  const before = new Map(agent.commands);
  act();
  return Object.fromEntries(
    [...agent.commands]
      .map(([name, count]) => [name, count - (before.get(name) ?? 0)] as const)
      .filter(([name, count]) => count > 0 && !name.startsWith("setFilter")),
  );
}

test("10,000 idle peers have no timer, and nothing is sent to them in an hour", () => {
  const clock = new ManualClock();
  const agent = createLoneAgent(clock);
  const timers = clock.pending;
  agent.engine.update(whole(remotes(10_000)));
  assert.equal(agent.engine.connections.size, 10_000);
  assert.equal(clock.pending, timers);
  const commands = commandsOf(agent, () => clock.advance(HOUR));
  assert.deepEqual(commands, {});
  assert.deepEqual(agent.sent, []);
  assert.equal(clock.pending, timers);
  agent.close();
});

test("in a map of 10,000 peers one that changed is all that an update touches", () => {
  const agent = createLoneAgent(new ManualClock());
  const peers = remotes(10_000);
  agent.engine.update(whole(peers));
  const [first, second] = peers as [RemotePeerConfig, RemotePeerConfig];
  const others = [...agent.engine.connections.peers].slice(2).map(({ info }) => info);

  const renamed = create(RemotePeerConfigSchema, { ...first, fqdn: "new.perch.test" });
  assert.deepEqual(
    commandsOf(agent, () => agent.engine.update(changed([renamed]))),
    {},
  );
  const moved = create(RemotePeerConfigSchema, { ...first, allowedIps: ["100.70.0.9/32"] });
  assert.deepEqual(
    commandsOf(agent, () => agent.engine.update(changed([moved]))),
    { addPrefix: 1, removePrefix: 2 },
  );
  assert.deepEqual(
    commandsOf(agent, () => agent.engine.update(changed([], [second.wgPubKey as PublicKey]))),
    { removePeer: 1 },
  );
  // A whole map that says the same, as after a restart of the server, is no change either.
  assert.deepEqual(
    commandsOf(agent, () => agent.engine.update(whole([moved, ...peers.slice(2)]))),
    {},
  );
  assert.equal(agent.engine.connections.size, 9_999);
  const now = [...agent.engine.connections.peers].slice(1).map(({ info }) => info);
  assert.ok(others.every((info, index) => info === now[index]));
  agent.close();
});

test("what a map says beside the peers is applied when it changes, and routes when their router comes or goes", () => {
  const agent = createLoneAgent(new ManualClock());
  const [router, other, third] = remotes(3) as [RemotePeerConfig, RemotePeerConfig, RemotePeerConfig];
  let revision = 0;
  const update = (
    head: MessageInitShape<typeof NetworkMapSchema>,
    part: MessageInitShape<typeof PerchMapPartSchema>,
  ) => {
    const before = agent.routes.length;
    revision++;
    agent.engine.update(
      create(SyncResponseSchema, {
        NetworkMap: { ...head, Serial: BigInt(revision) },
        perch: { epoch: "e", revision, ...part },
      }),
    );
    assert.equal(agent.engine.model.serial, revision);
    return agent.routes.slice(before);
  };
  const put = (...peers: RemotePeerConfig[]) => ({ peers: peers.map((peer) => ({ peer })) });
  const gone = (peer: RemotePeerConfig) => ({ removed: [PublicKey.toBytes(peer.wgPubKey as PublicKey)] });
  const network = "192.168.7.0/24";
  const head = { Routes: [{ ID: "r", NetID: "office", Network: network, Peer: router.wgPubKey, Metric: 1n }] };

  assert.deepEqual(update(head, { reset: true, ...put(other) }), [[]]);
  assert.deepEqual(update(head, put(third)), []);
  assert.deepEqual(update(head, gone(third)), []);
  assert.deepEqual(update(head, put(router)), [[network]], "its router came");
  assert.deepEqual(update(head, put(third)), []);
  assert.deepEqual(update(head, gone(router)), [[]], "and went");
  assert.deepEqual(update(head, put(router)), [[network]]);
  assert.deepEqual(update({}, put(third)), [[]], "the route is gone");
  assert.deepEqual(agent.engine.connections.find(router.wgPubKey as PublicKey)?.info.routes, []);
  agent.close();
});

test("an update with one changed peer takes under 5 ms with 50,000 peers", (t) => {
  const agent = createLoneAgent(new ManualClock());
  const peers = remotes(50_000);
  for (let at = 0; at < peers.length; at += 1000) {
    const update = whole(peers.slice(at, at + 1000));
    update.perch!.reset = at === 0;
    update.perch!.more = at + 1000 < peers.length;
    agent.engine.update(update);
  }
  assert.equal(agent.engine.connections.size, 50_000);
  const times = peers.slice(0, 21).map((peer) => {
    const update = changed([create(RemotePeerConfigSchema, { ...peer, agentVersion: "0.77.0" })]);
    const startedAt = performance.now();
    agent.engine.update(update);
    return performance.now() - startedAt;
  });
  const median = times.sort((a, b) => a - b)[10]!;
  t.diagnostic(`${median.toFixed(3)} ms`);
  assert.ok(median < 5, `median ${median} ms`);
  agent.close();
});

test("2,000 sleeping peers touched within a second all wake, few at a time, and the loop is never held up", (t) => {
  const count = 2_000;
  const answerAfter = 200;
  const clock = new ManualClock();
  const agent = createLoneAgent(clock);
  agent.engine.update(whole(remotes(10_000)));
  const { connections } = agent.engine;
  let longest = 0;
  // Processor time of this thread, so that other programs on the machine do not count.
  const timed = (act: () => void): void => {
    const before = process.threadCpuUsage();
    act();
    const { user, system } = process.threadCpuUsage(before);
    longest = Math.max(longest, (user + system) / 1000);
  };
  let mostAtOnce = 0;
  let sentBefore = 0;
  /** Signal messages of each step of 10 ms. */
  const rates: number[] = [];
  const answer = createOfferBody("answer", {
    listenPort: 51820,
    version: "0.76.0",
    relay: { instanceUrl: "rel://relay:1" },
    perch: { candidates: [] },
  });
  /** Peers that were called, by when they answer. */
  const called = new Map<PublicKey, number>();
  // As a busy host connects: a socket for each, whose SYN is repeated after 1, 3 and 7 s until it is answered.
  const repeats: (readonly [at: number, slot: number])[] = [];
  const connect = (slot: number): void => {
    const destination = `100.70.${slot >> 8}.${slot & 255}`;
    const packet = {
      source: "100.70.0.1",
      destination,
      protocol: 6,
      sourcePort: 32_768 + slot,
      destinationPort: 22,
      bytes: 60,
    };
    agent.events.emit("wake", { slot, cause: { kind: "packet", packet } });
  };
  let next = 0;
  for (let ms = 0; ms < 60_000; ms += 10) {
    timed(() => {
      for (let i = 0; ms < 1000 && i < count / 100; i++) {
        const slot = (ms / 10) * (count / 100) + i;
        connect(slot);
        for (const after of [1_000, 3_000, 7_000]) repeats.push([ms + after, slot]);
      }
      if (ms === 1_000) repeats.sort(([a], [b]) => a - b);
      for (; ms >= 1_000 && next < repeats.length && repeats[next]![0] <= ms; next++) connect(repeats[next]![1]);
    });
    for (const { to, body } of agent.sent.slice(sentBefore)) {
      if (body.type === Body_Type.OFFER && !called.has(to)) called.set(to, ms + answerAfter);
    }
    rates.push(agent.sent.length - sentBefore);
    sentBefore = agent.sent.length;
    mostAtOnce = Math.max(mostAtOnce, connections.wakes.negotiating);
    for (const [key, at] of called) {
      if (at > ms) continue;
      called.delete(key);
      timed(() => {
        connections.receiveSignal(key, answer);
        agent.device.events.emit("established", { key, role: "initiator", source: { kind: "relay" } });
      });
    }
    timed(() => clock.advance(10));
    if (next === repeats.length && connections.waitingWakes + called.size === 0) break;
  }
  const connected = [...connections.peers].filter(({ status }) => status === "connected").length;
  const fastest = Math.max(...rates.map((_, at) => rates.slice(at, at + 100).reduce((sum, each) => sum + each, 0)));
  t.diagnostic(
    `${(clock.now() / 1000).toFixed(1)} s, ${mostAtOnce} at once, ${fastest} signal messages in the busiest second, ` +
      `longest hold-up ${longest.toFixed(1)} ms`,
  );
  assert.equal(connected, count);
  assert.ok(mostAtOnce <= MAX_NEGOTIATING, `${mostAtOnce} at once`);
  assert.ok(fastest <= SIGNAL_RATE + SIGNAL_BURST, `${fastest} signal messages in a second`);
  assert.ok(longest < 50, `the loop was held up for ${longest} ms`);
  agent.close();
});
