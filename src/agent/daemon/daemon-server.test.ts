import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { silentLogger } from "#base/log.ts";
import { systemClock } from "#base/time.ts";
import { PeerState, type StatusPart, type UpRequest } from "#gen/daemon_pb.ts";
import { createDaemonClient, type DaemonClient } from "./daemon-client.ts";
import type { DaemonLog } from "./daemon-log.ts";
import { startDaemon } from "./run-daemon.ts";
import { FakeAgent, keyOf, makePeers } from "./testing/fake-agent.ts";

const KEY = "11111111-2222-3333-4444-555555555555";
const UP = { flags: { managementUrl: "http://m.test" }, setupKey: KEY } as UpRequest;

interface Daemon extends AsyncDisposable {
  readonly agent: FakeAgent;
  readonly client: DaemonClient;
  readonly dir: string;
  readonly socketPath: string;
}

async function daemonWith(peers: number, environment: NodeJS.ProcessEnv = {}): Promise<Daemon> {
  const dir = mkdtempSync(join(tmpdir(), "perch-daemon-"));
  const socketPath = join(dir, "d.sock");
  const agent = new FakeAgent(makePeers(peers));
  const log: DaemonLog = { level: "info", logger: silentLogger, reopen: () => {}, [Symbol.dispose]: () => {} };
  const daemon = await startDaemon(
    { createAgent: () => agent, clock: systemClock, log, environment },
    { socketPath, stateDir: join(dir, "state"), version: "1.2.3" },
  );
  return {
    agent,
    dir,
    socketPath,
    client: createDaemonClient(socketPath),
    async [Symbol.asyncDispose]() {
      await daemon.close();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

async function up(client: DaemonClient, request: UpRequest = UP): Promise<string[]> {
  const events: string[] = [];
  for await (const { event } of client.up(request)) {
    if (event.case === "progress") events.push(event.value);
    if (event.case === "result") events.push(`result already=${event.value.already} ${event.value.head?.address}`);
  }
  return events;
}

async function codeOf(call: Promise<unknown>): Promise<string> {
  const error = await call.then(
    () => assert.fail("the call worked"),
    (reason: unknown) => reason as Error,
  );
  return `${(error as { code?: string }).code}: ${error.message}`;
}

test("up streams its progress and ends in one result; failures carry their code", async () => {
  await using at = await daemonWith(3);
  const events = await up(at.client);
  assert.equal(events[0], "connecting to http://m.test");
  assert.equal(events.at(-1), "result already=false 100.64.0.1/16");
  assert.equal((await up(at.client)).at(-1), "result already=true 100.64.0.1/16");
  await at.client.down({});
  const bad = { flags: { managementUrl: "nonsense" } } as UpRequest;
  assert.match(await codeOf(up(at.client, bad)), /^value-invalid: --management-url must be http/);
  const refused = { ...UP, setupKey: "00000000-0000-0000-0000-000000000000" };
  at.agent.registered = false;
  assert.match(
    await codeOf(up(at.client, refused)),
    /^setup-key-invalid: http:\/\/m.test: the setup key 0000… is unknown/,
  );
});

test("a caller that leaves during up takes the agent down", async () => {
  await using at = await daemonWith(1);
  at.agent.gate = new Promise(() => {});
  const stop = new AbortController();
  await assert.rejects(async () => {
    for await (const _ of at.client.up(UP, { signal: stop.signal })) stop.abort();
  });
  const deadline = Date.now() + 3000;
  while (at.agent.status().state !== "down" && Date.now() < deadline)
    await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(at.agent.status().state, "down");
});

test("status comes in parts with the head once, filtered in the daemon", async () => {
  await using at = await daemonWith(500);
  await up(at.client);
  const collect = async (filter: object): Promise<StatusPart[]> => {
    const parts: StatusPart[] = [];
    for await (const part of at.client.getStatus(filter)) parts.push(part);
    return parts;
  };
  const all = await collect({ withPeers: true });
  assert.equal(all.length, 4);
  assert.deepEqual(
    all.map((part) => part.head !== undefined),
    [true, false, false, false],
  );
  assert.deepEqual(
    all.map((part) => part.more),
    [true, true, true, false],
  );
  assert.equal(all.flatMap((part) => part.peers).length, 500);
  const { head } = all[0]!;
  assert.deepEqual({ ...head!.peers }, { ...head!.peers, total: 500, idle: 125, connecting: 125, connected: 250 });
  assert.equal(head!.daemonVersion, "1.2.3");
  assert.deepEqual([head!.lazy?.enabled, head!.lazy?.source], [true, "network"]);
  const settings = new Map(head!.settings.map(({ name, value, source }) => [name, `${value} ${source}`]));
  assert.equal(settings.get("management-url"), "http://m.test flag");
  assert.equal(settings.get("mtu"), "1280 default");

  const short = await collect({});
  assert.deepEqual([short.length, short[0]!.peers.length], [1, 0]);
  const idle = await collect({ withPeers: true, states: [PeerState.IDLE], names: ["PEER-1"] });
  assert.equal(
    idle.flatMap((part) => part.peers).every((peer) => peer.fqdn.startsWith("peer-1")),
    true,
  );
  const one = await collect({ withPeers: true, addresses: ["100.64.0.2", "100.64.0.9"], states: [PeerState.IDLE] });
  assert.deepEqual(
    one[0]!.peers.map(({ fqdn }) => fqdn),
    ["peer-1.perch.test"],
  );
  assert.match(await codeOf(collect({ withPeers: true, addresses: ["x"] })), /^value-invalid: not an IP address: "x"/);
  assert.match(await codeOf(collect({ withPeers: true, states: [9] })), /^value-invalid: unknown peer state 9/);
});

test("a watcher gets a snapshot, then each change, and can go on where it stopped", async () => {
  await using at = await daemonWith(150);
  await up(at.client);
  const stop = new AbortController();
  const parts = at.client.watchStatus({ filter: { withPeers: true } }, { signal: stop.signal })[Symbol.asyncIterator]();
  const next = async (): Promise<StatusPart> => (await parts.next()).value as StatusPart;
  const first = await next();
  const second = await next();
  assert.deepEqual([first.reset, first.peers.length, second.reset, second.peers.length], [true, 128, false, 22]);
  at.agent.wakePeer(keyOf(1));
  const change = await next();
  assert.deepEqual(
    change.peers.map(({ fqdn, state, reason }) => [fqdn, state, reason]),
    [["peer-1.perch.test", PeerState.CONNECTING, "woken by you"]],
  );
  at.agent.removePeer(keyOf(3));
  const gone = await next();
  assert.deepEqual(
    gone.removed.map((key) => Buffer.from(key).toString("base64")),
    [keyOf(3)],
  );
  assert.equal(gone.head?.peers?.total, 149);
  stop.abort();
  await assert.rejects(next());

  at.agent.sleepPeer(keyOf(2));
  const again = new AbortController();
  for await (const part of at.client.watchStatus(
    { filter: { withPeers: true }, epoch: gone.epoch, revision: gone.revision },
    { signal: again.signal },
  )) {
    assert.deepEqual([part.reset, part.peers.map(({ fqdn }) => fqdn)], [false, ["peer-2.perch.test"]]);
    break;
  }
  again.abort();
});

test("a filtered watcher is told when a peer leaves its filter", async () => {
  await using at = await daemonWith(8);
  await up(at.client);
  const parts = at.client
    .watchStatus({ filter: { withPeers: true, states: [PeerState.IDLE] } })
    [Symbol.asyncIterator]();
  assert.equal(((await parts.next()).value as StatusPart).peers.length, 2);
  at.agent.wakePeer(keyOf(1));
  const { value } = await parts.next();
  assert.deepEqual([value.peers.length, value.removed.length], [0, 1]);
  await parts.return?.();
});

test("watchers that left are not kept, and the end of the daemon ends the others", async () => {
  const at = await daemonWith(2);
  await up(at.client);
  const { listeners } = at.agent;
  const parts = at.client.watchStatus({})[Symbol.asyncIterator]();
  await parts.next();
  assert.equal(at.agent.listeners, listeners + 1);
  const staying = parts.next();
  await at[Symbol.asyncDispose]();
  await staying.catch(() => {});
  assert.equal(at.agent.listeners, 0);
});

test("peers are woken, put to sleep, pinned and explained by any of their names", async () => {
  await using at = await daemonWith(4);
  assert.match(await codeOf(at.client.wakePeer({ peer: "peer-1" })), /^agent-down: .*perch up/);
  await up(at.client);
  assert.equal((await at.client.wakePeer({ peer: "peer-1" })).state, PeerState.CONNECTING);
  assert.equal((await at.client.sleepPeer({ peer: "100.64.0.2" })).state, PeerState.IDLE);
  assert.equal((await at.client.pinPeer({ peer: keyOf(1), pinned: true })).pinned, true);
  assert.equal((await at.client.pinPeer({ peer: "peer-1.perch.test", pinned: false })).pinned, false);
  assert.match(await codeOf(at.client.sleepPeer({ peer: "carol" })), /^peer-unknown: no peer "carol"/);
  const { timeline } = await at.client.explainPeer({ peer: "peer-3" });
  assert.deepEqual(
    timeline.map(({ event, sinceWakeMs }) => [event, sinceWakeMs]),
    [
      ["wake", 0],
      ["relay", 41.5],
      ["direct", 180],
    ],
  );
});

test("lazy connections and the log level are switched while the daemon runs", async () => {
  await using at = await daemonWith(1, { PERCH_MTU: "1400" });
  await up(at.client);
  assert.equal(at.agent.settings?.mtu, 1400);
  assert.deepEqual({ ...(await at.client.setLazy({ enabled: false })).lazy }.source, "setting");
  assert.equal((await at.client.setLazy({})).lazy?.source, "network");
  assert.equal((await at.client.setLogLevel({ level: "debug" })).before, "info");
  assert.match(await codeOf(at.client.setLogLevel({ level: "loud" })), /^value-invalid: .*got "loud"/);
});

test("two daemons share neither a socket nor a state directory, and a refused one leaves nothing", async () => {
  await using at = await daemonWith(1);
  const log: DaemonLog = { level: "info", logger: silentLogger, reopen: () => {}, [Symbol.dispose]: () => {} };
  const start = (socketPath: string, stateDir: string) =>
    startDaemon(
      { createAgent: () => new FakeAgent(), clock: systemClock, log, environment: {} },
      { socketPath, stateDir, version: "1" },
    );
  await assert.rejects(start(at.socketPath, join(at.dir, "other")), {
    code: "daemon-running",
    message: new RegExp(`a daemon already runs on ${at.socketPath}`),
  });
  await assert.rejects(start(join(at.dir, "b.sock"), join(at.dir, "state")), {
    code: "daemon-running",
    message: new RegExp(`pid ${process.pid}\\) already uses the state directory ${join(at.dir, "state")}`),
  });
  assert.deepEqual(readdirSync(at.dir).sort(), ["d.sock", "d.sock.lock", "state"]);
});

test("a capture begins with a file's header, and ends when its reader leaves, its time is up or a bound is wrong", async () => {
  await using daemon = await daemonWith(2);
  const { agent, client } = daemon;
  const request = { peer: "", snapLength: 0, packets: 0, bytes: 0, durationMs: 0 };
  const drain = async (more: Partial<typeof request>): Promise<string[]> => {
    const parts: string[] = [];
    for await (const { part } of client.capture({ ...request, ...more }))
      parts.push(part.case === "summary" ? `${part.value.packets} ${part.value.end}` : (part.case ?? ""));
    return parts;
  };
  assert.match(await codeOf(drain({})), /^agent-down: /);
  await up(client);
  assert.match(await codeOf(drain({ snapLength: 70_000 })), /^value-invalid: snap length 70000/);
  assert.match(await codeOf(drain({ peer: "nobody" })), /^peer-unknown: /);
  assert.deepEqual(await drain({ durationMs: 30 }), ["file", "file", "0 duration"]);
  const before = agent.calls.length;
  const leave = new AbortController();
  const left = (async () => {
    for await (const { part } of client.capture({ ...request, packets: 5 }, { signal: leave.signal })) {
      assert.equal(part.case, "file");
      leave.abort();
    }
  })();
  await assert.rejects(left);
  while (agent.calls.length < before + 2) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual(agent.calls.slice(before), ["capture all 5", "capture ends"]);
});
