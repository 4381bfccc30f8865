import assert from "node:assert/strict";
import { test } from "node:test";
import { ManualClock } from "#base/time.ts";
import { wakeKind } from "../connections/wake-cause.ts";
import type { AgentSettings, TimelineEntry } from "../control.ts";
import { FakeAgent, keyOf, makePeers } from "./testing/fake-agent.ts";
import { ActivityLog, QUIET_INTERVAL, SAMPLE_INTERVAL, SAMPLES_MAX, WAKES_MAX } from "./ui-activity.ts";

const SETTINGS: Partial<AgentSettings> = {
  managementUrl: "http://m.test",
  setupKey: "11111111-2222-3333-4444-555555555555",
  hostname: "here",
  interfaceName: "perch0",
  wireguardPort: 51820,
  mtu: 1280,
  device: "auto",
  inactivityThreshold: 900_000,
  forceRelay: false,
};

async function agentWith(peers: number): Promise<FakeAgent> {
  const agent = new FakeAgent(makePeers(peers));
  await agent.up(SETTINGS as AgentSettings, new AbortController().signal);
  return agent;
}

const entry = (event: string, detail: string, sinceWake?: number): TimelineEntry => ({
  at: 5000,
  event,
  detail,
  ...(sinceWake === undefined ? {} : { sinceWake }),
});

test("the wakes that timelines remember come first, then each new one, and again when it is proven", async () => {
  const agent = await agentWith(4);
  const log = new ActivityLog(agent, new ManualClock());
  log.start();
  const start = log.since(0);
  assert.deepEqual(
    start.wakes.map(({ id, fqdn, kind, took }) => ({ id, fqdn, kind, took })),
    [
      { id: 1, fqdn: "peer-2.perch.test", kind: "tcp", took: undefined },
      { id: 2, fqdn: "peer-3.perch.test", kind: "tcp", took: undefined },
    ],
  );

  const woken = [entry("wake", "udp 100.64.0.1:5 -> 100.64.0.2:53", 0)];
  agent.changePeer(keyOf(1), { state: "connecting", timeline: woken });
  const second = log.since(start.position);
  assert.deepEqual(
    second.wakes.map(({ id, kind, took }) => ({ id, kind, took })),
    [{ id: 3, kind: "udp", took: undefined }],
  );

  const proven = [...woken, entry("connected", "handshake by relay", 61.5)];
  agent.changePeer(keyOf(1), { state: "connected", timeline: proven });
  agent.changePeer(keyOf(1), { timeline: [...proven, entry("connected", "handshake by 192.0.2.1:1", 900)] });
  const third = log.since(second.position);
  assert.deepEqual(
    third.wakes.map(({ id, took }) => ({ id, took })),
    [{ id: 3, took: 61.5 }],
    "only the first handshake ends a wake",
  );
});

test("a wake that ended in sleep was never proven, whatever connects later", async () => {
  const agent = await agentWith(1);
  const log = new ActivityLog(agent, new ManualClock());
  log.start();
  const story = [entry("wake", "its offer", 0), entry("sleep", "gave up", 9000), entry("connected", "late", 9001)];
  agent.changePeer(keyOf(1), { timeline: story });
  assert.deepEqual(
    log.since(0).wakes.map(({ kind, took }) => ({ kind, took })),
    [{ kind: "offer", took: undefined }],
  );
});

test("states are counted when they change, once a minute when they do not, and not at all after the stop", async () => {
  const clock = new ManualClock();
  const agent = await agentWith(4);
  const log = new ActivityLog(agent, clock);
  log.start();
  log.start();
  assert.equal(clock.pending, 1);
  clock.advance(3 * SAMPLE_INTERVAL);
  assert.equal(log.since(0).samples.length, 1);
  agent.changePeer(keyOf(1), { state: "connected" });
  clock.advance(SAMPLE_INTERVAL);
  assert.deepEqual(
    log.since(0).samples.map(({ idle, connecting, connected }) => [idle, connecting, connected]),
    [
      [1, 1, 2],
      [0, 1, 3],
    ],
  );
  clock.advance(QUIET_INTERVAL + SAMPLE_INTERVAL);
  assert.equal(log.since(0).samples.length, 3);
  log.stop();
  assert.equal(clock.pending, 0);
  assert.equal(agent.listeners, 0);
});

test("what is kept is bounded, newest last", async () => {
  const clock = new ManualClock();
  const agent = await agentWith(1);
  const log = new ActivityLog(agent, clock);
  log.start();
  for (let at = 0; at < SAMPLES_MAX + 10; at++) clock.advance(QUIET_INTERVAL);
  assert.ok(log.since(0).samples.length <= SAMPLES_MAX);
  assert.equal(log.since(0).samples.at(-1)!.at, clock.wall());
  for (let at = 0; at < WAKES_MAX + 10; at++)
    agent.changePeer(keyOf(1), { timeline: [{ at, event: "wake", detail: "icmp a -> b" }] });
  const { wakes } = log.since(0);
  assert.equal(wakes.length, WAKES_MAX);
  assert.equal(wakes.at(-1)!.id, WAKES_MAX + 10);
});

test("a watcher is told of what is new and let go when it leaves", async () => {
  const agent = await agentWith(1);
  const log = new ActivityLog(agent, new ManualClock());
  log.start();
  const leave = new AbortController();
  const { position } = log.since(0);
  const told = log.changed(position, leave.signal);
  agent.changePeer(keyOf(1), { timeline: [entry("wake", "perch peers wake", 0)] });
  assert.equal(await told, true);
  const left = log.changed(log.since(0).position, leave.signal);
  leave.abort();
  assert.equal(await left, false);
});

test("causes are told apart by their words", () => {
  for (const [detail, kind] of [
    ["tcp 100.64.0.1:40000 -> 100.64.0.2:22", "tcp"],
    ["udp [fd00::1]:1 -> [fd00::2]:53", "udp"],
    ["icmp6 fd00::1 -> fd00::2", "icmp"],
    ["protocol 47 100.64.0.1 -> 100.64.0.2", "other-traffic"],
    ["its offer", "offer"],
    ["its handshake over the relay", "handshake"],
    ["its packet", "handshake"],
    ["perch peers wake", "hand"],
    ["pinned", "other"],
    ["", "other"],
  ] as const)
    assert.equal(wakeKind(detail), kind, detail);
});
