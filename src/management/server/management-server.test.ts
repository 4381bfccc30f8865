import assert from "node:assert/strict";
import { test } from "node:test";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { PrivateKey, type PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { encodeRelayToken, relayTokenKey, verifyRelayToken } from "#base/relay-token.ts";
import { ManualClock } from "#base/time.ts";
import {
  HostConfig_Protocol,
  LoginRequestSchema,
  type LoginResponse,
  LoginResponseSchema,
  PeerConfigSchema,
  type PeerSystemMeta,
  PeerSystemMetaSchema,
  RuleAction,
  RuleDirection,
  RuleProtocol,
  type SyncResponse,
  SyncResponseSchema,
} from "#gen/management_pb.ts";
import { type MetaFields, TEST_OPTIONS, testMeta } from "../test-server.ts";
import { EPHEMERAL_LIFETIME, EPHEMERAL_SLACK } from "./ephemeral.ts";
import { createManagementServer, type ManagementServer, type ManagementServerOptions } from "./management-server.ts";
import { ManagementStore } from "./store.ts";
import type { SyncStream } from "./sync-stream.ts";
import { QUIET_PERIOD } from "./update-gate.ts";

const NEVER = new AbortController().signal;

/** A server without a network, a clock that is moved by hand, and a reusable setup key. */
class World {
  readonly clock: ManualClock;
  readonly store: ManagementStore;
  readonly server: ManagementServer;
  readonly setupKey: string;

  private constructor(clock: ManualClock, store: ManagementStore, server: ManagementServer, setupKey: string) {
    this.clock = clock;
    this.store = store;
    this.server = server;
    this.setupKey = setupKey;
  }

  static async make(options: Partial<ManagementServerOptions> = {}): Promise<World> {
    const clock = new ManualClock();
    const store = await ManagementStore.open({ clock }, { path: ":memory:" });
    const server = await createManagementServer({ clock, log: silentLogger, store }, { ...TEST_OPTIONS, ...options });
    const { key } = await server.createSetupKey({ reusable: true });
    return new World(clock, store, server, key);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server.close();
    await this.store.close();
  }

  /** Registers a peer. What is answered goes through the wire form, as an agent reads it. */
  async join(hostname: string, more: MetaFields = {}, setupKey = this.setupKey): Promise<Agent> {
    const key = PrivateKey.generate().publicKey;
    const agent = new Agent(this, key, testMeta(hostname, more));
    await agent.login(setupKey);
    return agent;
  }
}

class Agent {
  readonly world: World;
  readonly key: PublicKey;
  meta: PeerSystemMeta;
  stream: SyncStream | undefined;

  constructor(world: World, key: PublicKey, meta: PeerSystemMeta) {
    this.world = world;
    this.key = key;
    this.meta = meta;
  }

  async login(setupKey = ""): Promise<LoginResponse> {
    const request = create(LoginRequestSchema, { setupKey, meta: this.meta });
    const answer = await this.world.server.login(this.key, request);
    return fromBinary(LoginResponseSchema, toBinary(LoginResponseSchema, answer));
  }

  /** Opens the stream and reads the first message. */
  async connect(): Promise<SyncResponse> {
    this.stream = await this.world.server.openStream(this.key, this.meta);
    return (await this.next())!;
  }

  disconnect(): void {
    this.world.server.closeStream(this.key, this.stream!);
  }

  async next(): Promise<SyncResponse | undefined> {
    const bytes = await this.stream!.next(NEVER);
    return bytes && fromBinary(SyncResponseSchema, bytes);
  }

  /** What is ready now; "nothing" after a round of the event loop without a message. */
  async ready(): Promise<SyncResponse | undefined | "nothing"> {
    const stop = new AbortController();
    const nothing = Symbol();
    const reading = this.stream!.next(stop.signal);
    let answer: Uint8Array | undefined | typeof nothing = nothing;
    void reading.then((bytes) => {
      if (!stop.signal.aborted) answer = bytes;
    });
    for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
    stop.abort();
    await reading;
    return answer === nothing ? "nothing" : answer && fromBinary(SyncResponseSchema, answer);
  }
}

const refusedWith =
  (code: Code) =>
  (error: unknown): boolean =>
    error instanceof ConnectError && error.code === code && !/peer login has expired/.test(error.message);

const names = (update: SyncResponse | undefined | "nothing"): readonly string[] =>
  update === undefined || update === "nothing" ? [] : (update.NetworkMap?.remotePeers ?? []).map((peer) => peer.fqdn);

test("5.1: the login answer has what a stock agent crashes or loops without", async () => {
  await using world = await World.make({ signal: { uri: "signal.example:443", tls: true } });
  const agent = await world.join("web");
  const answer = await agent.login();
  assert.equal(answer.netbirdConfig?.signal?.uri, "signal.example:443");
  assert.equal(answer.netbirdConfig?.signal?.protocol, HostConfig_Protocol.HTTPS);
  assert.deepEqual(answer.netbirdConfig?.relay?.urls, TEST_OPTIONS.relayUrls);
  assert.match(answer.peerConfig!.address, /^\d+\.\d+\.\d+\.\d+\/16$/);
  assert.equal(answer.peerConfig?.fqdn, "web.perch.internal");
  assert.ok(answer.peerConfig?.sshConfig);
  assert.equal(answer.peerConfig?.LazyConnectionEnabled, true);
  assert.equal(answer.netbirdConfig?.flow, undefined, "a flow without an interval voids the message");
  // The deadline is there and empty: 22 00.
  assert.deepEqual({ ...answer.sessionExpiresAt }, { $typeName: "google.protobuf.Timestamp", seconds: 0n, nanos: 0 });
  const wire = Buffer.from(toBinary(LoginResponseSchema, answer)).toString("hex");
  assert.ok(wire.endsWith("2200"));
});

test("5.1: the first message of a stream has everything, with STUN before the first peer", async () => {
  await using world = await World.make();
  const a = await world.join("a");
  const login = await a.login();
  const b = await world.join("b");
  const first = await a.connect();
  assert.deepEqual(
    first.netbirdConfig?.stuns.map((stun) => stun.uri),
    TEST_OPTIONS.stunUris,
  );
  assert.equal(first.netbirdConfig?.signal?.uri, TEST_OPTIONS.signal.uri);
  assert.deepEqual(first.netbirdConfig?.relay?.urls, TEST_OPTIONS.relayUrls);
  const map = first.NetworkMap!;
  const same = (config: typeof login.peerConfig): string =>
    Buffer.from(toBinary(PeerConfigSchema, config!)).toString("hex");
  assert.equal(same(map.peerConfig), same(login.peerConfig), "a differing address restarts a stock agent for ever");
  assert.equal(same(first.peerConfig), same(login.peerConfig));
  assert.equal(map.Serial, 2n);
  assert.equal(map.remotePeersIsEmpty, false);
  assert.equal(map.firewallRulesIsEmpty, false);
  assert.equal(map.routesFirewallRulesIsEmpty, true, "false without rules allows all routed traffic");
  assert.equal(first.sessionExpiresAt?.seconds, 0n);
  assert.deepEqual(
    map.remotePeers.map((peer) => [peer.wgPubKey, peer.fqdn, peer.agentVersion]),
    [[b.key, "b.perch.internal", "0.65.0"]],
  );
  const [peer] = map.remotePeers;
  assert.equal(peer!.allowedIps.length, 2);
  assert.match(peer!.allowedIps[0]!, /^100\.\d+\.\d+\.\d+\/32$/);
  assert.match(peer!.allowedIps[1]!, /^fd[0-9a-f:]+\/128$/);
  assert.equal(first.Version, 0);
});

test("5.5: one rule in and one out for each peer and family, for agents of both kinds", async () => {
  await using world = await World.make();
  const a = await world.join("a");
  const old = await world.join("old", { capabilities: [] });
  const b = await world.join("b");
  const first = await a.connect();
  const [remoteOld, remoteB] = first.NetworkMap!.remotePeers;
  assert.equal(remoteOld!.wgPubKey, old.key);
  const rules = first.NetworkMap!.FirewallRules;
  const ip = (prefix: string): string => prefix.split("/")[0]!;
  assert.deepEqual(
    rules.map((rule) => [rule.PeerIP, rule.Direction]),
    [
      [ip(remoteOld!.allowedIps[0]!), RuleDirection.IN],
      [ip(remoteOld!.allowedIps[0]!), RuleDirection.OUT],
      [ip(remoteB!.allowedIps[0]!), RuleDirection.IN],
      [ip(remoteB!.allowedIps[1]!), RuleDirection.IN],
      [ip(remoteB!.allowedIps[0]!), RuleDirection.OUT],
      [ip(remoteB!.allowedIps[1]!), RuleDirection.OUT],
    ],
  );
  for (const rule of rules) {
    assert.equal(rule.Action, RuleAction.ACCEPT);
    assert.equal(rule.Protocol, RuleProtocol.ALL);
    assert.equal(rule.Port, "");
    assert.equal(rule.PortInfo, undefined);
    assert.equal(rule.sourcePrefixes.length, 1);
    assert.equal(rule.sourcePrefixes[0]!.length, rule.PeerIP.includes(":") ? 17 : 5);
  }
  const toOld = (await old.connect()).NetworkMap!;
  assert.equal(toOld.peerConfig?.addressV6.length, 0);
  assert.deepEqual(
    toOld.FirewallRules.map((rule) => rule.sourcePrefixes.length),
    [0, 0, 0, 0],
  );
  assert.ok(toOld.remotePeers.every((peer) => peer.allowedIps.length === 1));
  assert.ok(b);
});

test("3.7: a peer that is alone is told so by flags, with every rule set closed", async () => {
  await using world = await World.make();
  const first = await (await world.join("a")).connect();
  assert.equal(first.NetworkMap?.remotePeersIsEmpty, true);
  assert.equal(first.NetworkMap?.firewallRulesIsEmpty, true);
  assert.equal(first.NetworkMap?.routesFirewallRulesIsEmpty, true);
});

test("the peers zone holds the receiver and its peers, IPv6 only where both sides use it", async () => {
  await using world = await World.make();
  const a = await world.join("a");
  await world.join("old", { capabilities: [] });
  const dns = (await a.connect()).NetworkMap!.DNSConfig!;
  assert.equal(dns.ServiceEnable, true);
  assert.equal(dns.ForwarderPort, 22054n);
  const [zone] = dns.CustomZones;
  assert.equal(zone!.Domain, "perch.internal.");
  assert.deepEqual(
    zone!.Records.map((record) => [record.Name, record.Type, record.Class, record.TTL]),
    [
      ["a.perch.internal", 1n, "IN", 300n],
      ["a.perch.internal", 28n, "IN", 300n],
      ["old.perch.internal", 1n, "IN", 300n],
    ],
  );
});

test("7.3: the top-level copy of the peers goes to agents before 0.29.3 and to versions that cannot be read", async () => {
  await using world = await World.make();
  await world.join("other");
  for (const [netbirdVersion, copies] of [
    ["0.29.2", 1],
    ["", 1],
    ["0.29.3", 0],
    ["development", 0],
  ] as const) {
    const agent = await world.join("host", { netbirdVersion });
    const first = await agent.connect();
    assert.equal(first.remotePeers.length > 0, copies === 1, netbirdVersion);
    assert.ok(first.NetworkMap!.remotePeers.length > 0);
  }
});

test("7.3: one old agent moves the DNS forwarder port of all, and its departure moves it back", async () => {
  await using world = await World.make();
  const a = await world.join("a");
  assert.equal((await a.connect()).NetworkMap?.DNSConfig?.ForwarderPort, 22054n);
  const old = await world.join("old", { netbirdVersion: "0.58.9" });
  assert.equal((await a.next())?.NetworkMap?.DNSConfig?.ForwarderPort, 5353n);
  world.clock.advance(QUIET_PERIOD);
  await world.server.deletePeer(old.key);
  assert.equal((await a.next())?.NetworkMap?.DNSConfig?.ForwarderPort, 22054n);
});

test("5.1: IPv6 is decided by Login; a Sync that says otherwise changes nothing until the next Login", async () => {
  await using world = await World.make();
  const agent = await world.join("a");
  agent.meta = testMeta("a", { flags: { disableIPv6: true } });
  const first = await agent.connect();
  assert.equal(first.NetworkMap?.peerConfig?.addressV6.length, 17);
  assert.equal((await agent.login()).peerConfig?.addressV6.length, 0);
  assert.equal((await agent.connect()).NetworkMap?.peerConfig?.addressV6.length, 0);
});

test("3.2: an empty meta, or none, on Sync leaves the stored one alone; an empty uiVersion keeps the stored one", async () => {
  await using world = await World.make();
  const agent = await world.join("a", { uiVersion: "ui-1" });
  const stored = (): PeerSystemMeta => world.server.listPeers()[0]!.meta;
  for (const meta of [undefined, create(PeerSystemMetaSchema)]) {
    await world.server.openStream(agent.key, meta);
    assert.equal(stored().hostname, "a");
  }
  agent.meta = testMeta("renamed", { core: "24.04" });
  await agent.connect();
  assert.equal(stored().uiVersion, "ui-1");
  assert.equal(stored().OSVersion, "24.04", "the legacy copy stands in");
  assert.equal(world.server.listPeers()[0]!.dnsLabel, "a", "a new host name renames nobody");
});

test("1.7: the status codes of Login", async () => {
  await using world = await World.make();
  const login = (fields: Parameters<typeof create<typeof LoginRequestSchema>>[1]): Promise<LoginResponse> =>
    world.server.login(PrivateKey.generate().publicKey, create(LoginRequestSchema, fields));
  const meta = testMeta("a");
  await assert.rejects(login({ setupKey: world.setupKey }), refusedWith(Code.FailedPrecondition));
  await assert.rejects(login({ meta }), refusedWith(Code.PermissionDenied));
  await assert.rejects(
    login({ meta, setupKey: "00000000-0000-0000-0000-000000000000" }),
    refusedWith(Code.PermissionDenied),
  );
  await assert.rejects(login({ meta, setupKey: crypto.randomUUID() }), refusedWith(Code.PermissionDenied));
  await assert.rejects(login({ meta, setupKey: world.setupKey, jwtToken: "x.y.z" }), refusedWith(Code.InvalidArgument));
  await assert.rejects(
    login({ meta, setupKey: world.setupKey, dnsLabels: ["www"] }),
    refusedWith(Code.FailedPrecondition),
  );
  await assert.rejects(
    login({ meta, setupKey: world.setupKey, dnsLabels: ["not a label"] }),
    refusedWith(Code.InvalidArgument),
  );
  await assert.rejects(
    login({ meta: testMeta("x".repeat(300_000)), setupKey: world.setupKey }),
    refusedWith(Code.InvalidArgument),
  );
  assert.equal(world.server.listPeers().length, 0);
});

test("1.7: Sync of an unknown peer is PERMISSION_DENIED, SyncMeta and Logout are NOT_FOUND", async () => {
  await using world = await World.make();
  const key = PrivateKey.generate().publicKey;
  await assert.rejects(world.server.openStream(key, testMeta("a")), refusedWith(Code.PermissionDenied));
  await assert.rejects(world.server.syncMeta(key, testMeta("a")), refusedWith(Code.NotFound));
  await assert.rejects(world.server.logout(key), refusedWith(Code.NotFound));
  const agent = await world.join("a");
  await assert.rejects(world.server.syncMeta(agent.key, undefined), refusedWith(Code.FailedPrecondition));
});

test("4.2: thirty logins in a row pass, a storm of one key is held back and hurts no other key", async () => {
  await using world = await World.make();
  const agent = await world.join("a");
  const other = await world.join("b");
  for (let i = 0; i < 30; i++) await agent.login();
  const storm = await Promise.allSettled(Array.from({ length: 100 }, () => agent.login()));
  const held = storm.filter((result) => result.status === "rejected");
  assert.ok(held.length >= 60 && held.every((result) => refusedWith(Code.ResourceExhausted)(result.reason)));
  await other.login();
  world.clock.advance(60_000);
  for (let i = 0; i < 10; i++) await agent.login();
});

test("5.4: going online or offline is told to nobody", async () => {
  await using world = await World.make();
  const a = await world.join("a");
  const b = await world.join("b");
  await a.connect();
  await b.connect();
  b.disconnect();
  await b.connect();
  world.clock.advance(2 * QUIET_PERIOD);
  assert.equal(await a.ready(), "nothing");
  assert.deepEqual(
    world.server.listPeers().map((peer) => peer.connected),
    [true, true],
  );
  b.disconnect();
  assert.deepEqual(names(await a.ready()), []);
  assert.equal(world.server.connectedPeers, 1);
});

test("offline peers stay in the map", async () => {
  await using world = await World.make();
  await world.join("never-online");
  const a = await world.join("a");
  assert.deepEqual(names(await a.connect()), ["never-online.perch.internal"]);
});

test("5.4: a new stream ends the old one in order, and the old one's end does not take the new one with it", async () => {
  await using world = await World.make();
  const agent = await world.join("a");
  await agent.connect();
  const old = agent.stream!;
  await agent.connect();
  assert.equal(await old.next(NEVER), undefined);
  world.server.closeStream(agent.key, old);
  assert.equal(world.server.connectedPeers, 1);
  await world.join("b");
  assert.deepEqual(names(await agent.next()), ["b.perch.internal"]);
});

test("5.4: a burst of changes is one message at once and one after a quiet second, with the newest map", async () => {
  await using world = await World.make();
  const a = await world.join("a");
  await a.connect();
  for (let i = 0; i < 5; i++) await world.join(`p${i}`);
  const first = await a.ready();
  assert.ok(first !== "nothing" && first!.netbirdConfig === undefined);
  assert.equal(await a.ready(), "nothing");
  await world.join("p5");
  assert.equal(await a.ready(), "nothing");
  world.clock.advance(QUIET_PERIOD);
  assert.equal(names(await a.ready()).length, 6);
  assert.equal(await a.ready(), "nothing");
});

test("6.3: relay credentials alone are renewed after three quarters of their life, past any coalescing", async () => {
  await using world = await World.make({ relayTokenTtl: 4_000_000 });
  const a = await world.join("a");
  const first = await a.connect();
  const life = (update: SyncResponse): bigint => {
    const { tokenPayload: payload, tokenSignature: signatureBase64 } = update.netbirdConfig!.relay!;
    const token = encodeRelayToken({ payload, signatureBase64 });
    const verdict = verifyRelayToken(relayTokenKey(world.store.relaySecret), token, world.clock.wall() / 1000);
    assert.equal(verdict.kind, "valid");
    return verdict.kind === "valid" ? verdict.expiresAt : 0n;
  };
  const before = life(first);
  world.clock.advance(2_999_999);
  await world.join("b");
  assert.deepEqual(names(await a.ready()), ["b.perch.internal"]);
  await world.join("c");
  world.clock.advance(1);
  const refresh = await a.ready();
  assert.ok(refresh !== "nothing" && refresh !== undefined);
  assert.equal(refresh.NetworkMap, undefined);
  assert.equal(refresh.sessionExpiresAt, undefined);
  assert.equal(refresh.netbirdConfig?.signal, undefined);
  assert.equal(life(refresh), before + 3000n);
  world.clock.advance(QUIET_PERIOD);
  assert.equal(names(await a.ready()).length, 2, "the held map was not lost");
  a.disconnect();
  const timers = world.clock.pending;
  world.clock.advance(3_000_000);
  assert.ok(world.clock.pending <= timers);
});

test("without relays no config has a relay part and nothing is refreshed", async () => {
  await using world = await World.make({ relayUrls: [], relayTokenTtl: 4_000 });
  const a = await world.join("a");
  assert.equal((await a.connect()).netbirdConfig?.relay, undefined);
  world.clock.advance(10_000);
  assert.equal(await a.ready(), "nothing");
});

test("5.8: a deleted peer gets the notice of vector 8.7 and an end, the others a new map, and it may not come back", async () => {
  await using world = await World.make();
  const a = await world.join("a");
  const b = await world.join("b");
  await a.connect();
  await b.connect();
  assert.equal(await world.server.deletePeer(b.key), true);
  assert.equal(await world.server.deletePeer(b.key), false);
  const notice = Buffer.from((await b.stream!.next(NEVER))!).toString("hex");
  assert.equal(notice, "20012a0c08032001320420a6ac014801");
  assert.equal(await b.next(), undefined);
  const map = (await a.next())!.NetworkMap!;
  assert.equal(map.remotePeersIsEmpty, true);
  assert.equal(map.Serial, 3n);
  await assert.rejects(b.login(), refusedWith(Code.PermissionDenied));
  await assert.rejects(b.connect(), refusedWith(Code.PermissionDenied));
});

test("Logout forgets the peer; its name is free for the next one", async () => {
  await using world = await World.make();
  const a = await world.join("a");
  await world.server.logout(a.key);
  await assert.rejects(a.login(), refusedWith(Code.PermissionDenied));
  const again = await world.join("a");
  assert.equal((await again.login()).peerConfig?.fqdn, "a.perch.internal");
});

test("the lazy switch reaches every connected peer at once and is in the next Login", async () => {
  await using world = await World.make();
  const a = await world.join("a");
  const first = await a.connect();
  assert.equal(first.NetworkMap?.peerConfig?.LazyConnectionEnabled, true);
  await world.server.setLazy(false);
  const next = await a.next();
  assert.equal(next?.NetworkMap?.peerConfig?.LazyConnectionEnabled, false);
  assert.ok(next!.NetworkMap!.Serial > first.NetworkMap!.Serial);
  assert.equal((await a.login()).peerConfig?.LazyConnectionEnabled, false);
});

test("5.4: a new agent version is told to the others with the same serial, SyncMeta always tells", async () => {
  await using world = await World.make();
  const a = await world.join("a");
  const b = await world.join("b");
  const first = await a.connect();
  b.meta = testMeta("b", { netbirdVersion: "0.66.0" });
  await b.connect();
  const next = await a.next();
  assert.equal(next?.NetworkMap?.remotePeers[0]?.agentVersion, "0.66.0");
  assert.equal(next?.NetworkMap?.Serial, first.NetworkMap?.Serial);
  world.clock.advance(QUIET_PERIOD);
  b.meta = testMeta("b", { netbirdVersion: "0.66.0", kernelVersion: "7" });
  b.disconnect();
  await b.connect();
  assert.equal(await a.ready(), "nothing", "a kernel is nobody's business");
  await world.server.syncMeta(b.key, b.meta);
  assert.notEqual(await a.ready(), "nothing");
});

test("5.7: an ephemeral peer is forgotten eleven minutes after it left, with the same serial", async () => {
  await using world = await World.make();
  const { key } = await world.server.createSetupKey({ reusable: true, ephemeral: true });
  const a = await world.join("a");
  const job = await world.join("job", {}, key);
  const first = await a.connect();
  await job.connect();
  world.clock.advance(2 * EPHEMERAL_LIFETIME);
  assert.equal(world.server.listPeers().length, 2, "connected peers stay");
  job.disconnect();
  world.clock.advance(EPHEMERAL_LIFETIME);
  assert.equal(world.server.listPeers().length, 2);
  await job.connect();
  world.clock.advance(EPHEMERAL_LIFETIME);
  job.disconnect();
  world.clock.advance(EPHEMERAL_LIFETIME + EPHEMERAL_SLACK);
  const next = await a.next();
  assert.equal(next?.NetworkMap?.remotePeersIsEmpty, true);
  assert.equal(next?.NetworkMap?.Serial, first.NetworkMap?.Serial);
  assert.equal(world.server.listPeers().length, 1);
});

test("5.7: an ephemeral peer that registers and never comes is forgotten too, others never", async () => {
  await using world = await World.make();
  const { key } = await world.server.createSetupKey({ reusable: true, ephemeral: true });
  await world.join("a");
  await world.join("job", {}, key);
  world.clock.advance(EPHEMERAL_LIFETIME + EPHEMERAL_SLACK);
  while (world.server.listPeers().length > 1) await new Promise((resolve) => setImmediate(resolve));
  assert.equal(world.server.listPeers()[0]!.name, "a");
});

test("registrations at once with a one-off key let one peer in; the same key twice is one peer", async () => {
  await using world = await World.make();
  const { key } = await world.server.createSetupKey({});
  const results = await Promise.allSettled(Array.from({ length: 10 }, (_, i) => world.join(`h${i}`, {}, key)));
  assert.equal(results.filter((result) => result.status === "fulfilled").length, 1);
  const twin = PrivateKey.generate().publicKey;
  const request = create(LoginRequestSchema, { setupKey: world.setupKey, meta: testMeta("twin") });
  const [one, two] = await Promise.all([world.server.login(twin, request), world.server.login(twin, request)]);
  assert.equal(one.peerConfig?.address, two.peerConfig?.address);
  assert.equal(world.server.listPeers().length, 2);
});

test("a known peer that sends a setup key again keeps its place and uses up nothing", async () => {
  await using world = await World.make();
  const { key } = await world.server.createSetupKey({});
  const agent = await world.join("a", {}, key);
  const before = await agent.login();
  const after = await agent.login(key);
  assert.equal(after.peerConfig?.address, before.peerConfig?.address);
  const keys = await world.server.listSetupKeys();
  assert.equal(keys.find((info) => info.prefix === key.slice(0, 8))?.used, 1);
});

test("a slow reader costs nothing: whatever happened, it reads one message, the newest", async () => {
  await using world = await World.make();
  const a = await world.join("a");
  await a.connect();
  for (let i = 0; i < 20; i++) {
    await world.server.setLazy(i % 2 === 0);
    world.clock.advance(2 * QUIET_PERIOD);
  }
  const update = await a.next();
  assert.equal(update?.NetworkMap?.Serial, 21n);
  assert.equal(await a.ready(), "nothing");
});

test("close ends the streams in order and refuses what comes after; no timer stays", async () => {
  const world = await World.make();
  const a = await world.join("a");
  await a.connect();
  await world.server.close();
  assert.equal(await a.next(), undefined);
  await assert.rejects(a.login(), refusedWith(Code.Unavailable));
  await world.server.close();
  assert.equal(world.clock.pending, 0);
  await world.store.close();
});
