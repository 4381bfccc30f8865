/** Maps in parts, as Perch's server sends them to Perch's agents, over a real stream. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { create, fromBinary } from "@bufbuild/protobuf";
import { parsePrefix, prefixContains } from "#base/ip.ts";
import { PrivateKey, PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { systemClock } from "#base/time.ts";
import { FirewallRuleSchema, type PerchHeldMap, PerchHeldMapSchema, type SyncResponse } from "#gen/management_pb.ts";
import { ManagementClient } from "./client/management-client.ts";
import { decodeCompactPrefix } from "./protocol/compact-prefix.ts";
import { TestServer, temporaryDirectory, testMeta } from "./test-server.ts";

/** Reads the parts of one stream at a time and keeps the map that they make. */
class PartAgent implements AsyncDisposable {
  readonly key = PrivateKey.generate();
  readonly client: ManagementClient;
  readonly peers = new Map<string, readonly string[]>();
  readonly updates: SyncResponse[] = [];
  held: PerchHeldMap = create(PerchHeldMapSchema);
  #stop = new AbortController();
  #syncing: Promise<void> = Promise.resolve();
  #arrived: () => void = () => {};

  constructor(url: string) {
    this.client = new ManagementClient({ clock: systemClock, log: silentLogger }, { url, key: this.key });
  }

  async join(server: TestServer, name: string): Promise<void> {
    const { key } = await server.server.createSetupKey({});
    await this.client.login({ setupKey: key, meta: testMeta(name) });
  }

  connect(name: string): void {
    this.#stop = new AbortController();
    this.#syncing = this.client.sync(
      () => testMeta(name),
      (update) => this.#take(update),
      this.#stop.signal,
      () => this.held,
    );
    this.#syncing.catch(() => {});
  }

  async disconnect(): Promise<void> {
    this.#stop.abort();
    await this.#syncing.catch(() => {});
  }

  /** Waits for the end of a map that satisfies `condition`. */
  async until(condition: () => boolean): Promise<void> {
    const deadline = performance.now() + 5000;
    while (!condition()) {
      assert.ok(performance.now() < deadline, `not within 5 s: ${condition}`);
      await new Promise<void>((resolve) => {
        this.#arrived = resolve;
        setTimeout(resolve, 50);
      });
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.disconnect();
    await this.client.close();
  }

  #take(update: SyncResponse): void {
    this.updates.push(update);
    const { perch } = update;
    if (!perch) return;
    if (perch.reset) this.peers.clear();
    for (const { peer } of perch.peers) this.peers.set(peer!.wgPubKey, peer!.allowedIps);
    for (const key of perch.removed) this.peers.delete(PublicKey.fromBytes(key));
    if (!perch.more) this.held = create(PerchHeldMapSchema, { epoch: perch.epoch, revision: perch.revision });
    this.#arrived();
  }
}

test("the first map is whole, later ones bring what changed, and a stream begins where the last one ended", async () => {
  await using server = await TestServer.start();
  await using a = new PartAgent(server.url);
  await using b = new PartAgent(server.url);
  await using c = new PartAgent(server.url);
  await a.join(server, "a");
  await b.join(server, "b");
  a.connect("a");
  await a.until(() => a.peers.size === 1);
  const [first] = a.updates;
  assert.equal(first?.perch?.reset, true);
  assert.ok(first?.netbirdConfig?.relay, "the first message brings the infrastructure");
  assert.equal(first?.NetworkMap?.peerConfig?.fqdn, "a.perch.internal");
  assert.deepEqual(first?.NetworkMap?.remotePeers, []);
  const [entry] = first!.perch!.peers;
  assert.equal(entry?.records.length, 2, "A and AAAA");
  assert.deepEqual(entry?.rules, [], "everybody may talk to everybody: said once, not by every peer");
  const rules = first!.perch!.rules.map((bytes) => fromBinary(FirewallRuleSchema, bytes));
  assert.equal(rules.length, 4, "in and out, IPv4 and IPv6");
  const network = decodeCompactPrefix(rules[0]!.sourcePrefixes[0]!);
  assert.equal(network.bits, 16);
  assert.ok(prefixContains(network, parsePrefix(entry!.peer!.allowedIps[0]!).address));

  await c.join(server, "c");
  await a.until(() => a.peers.size === 2);
  const second = a.updates.at(-1)?.perch;
  assert.equal(second?.reset, false);
  assert.deepEqual(
    second?.peers.map(({ peer }) => peer?.fqdn),
    ["c.perch.internal"],
  );

  await a.disconnect();
  await b.client.logout();
  const seen = a.updates.length;
  a.connect("a");
  await a.until(() => a.updates.length > seen);
  const resumed = a.updates[seen]?.perch;
  assert.equal(resumed?.reset, false);
  assert.deepEqual(resumed?.peers, []);
  assert.equal(resumed?.removed.length, 1);
  assert.deepEqual([...a.peers.keys()], [c.key.publicKey]);
});

test("a restarted server sends the whole map again", async () => {
  using directory = temporaryDirectory();
  const path = `${directory.path}/m.db`;
  let server = await TestServer.start({ path });
  await using a = new PartAgent(server.url);
  await using b = new PartAgent(server.url);
  await a.join(server, "a");
  await b.join(server, "b");
  a.connect("a");
  await a.until(() => a.peers.size === 1);
  const { port } = server;
  await server[Symbol.asyncDispose]();
  const seen = a.updates.length;
  server = await TestServer.start({ path, port });
  await using _ = server;
  await a.until(() => a.updates.length > seen);
  assert.equal(a.updates[seen]?.perch?.reset, true);
  assert.deepEqual([...a.peers.keys()], [b.key.publicKey]);
});

test("a big map comes in parts of bounded size, and what changes while they are read comes afterwards", async () => {
  await using server = await TestServer.start();
  const { key } = await server.server.createSetupKey({ reusable: true });
  const others = Array.from({ length: 1100 }, () => PrivateKey.generate().publicKey);
  for (const [index, other] of others.entries()) {
    await server.server.login(other, {
      setupKey: key,
      meta: testMeta(`n${index}`),
      dnsLabels: [],
      jwtToken: "",
    } as never);
  }
  await using a = new PartAgent(server.url);
  await a.join(server, "a");
  a.connect("a");
  await a.until(() => a.updates.length > 0);
  assert.equal(await server.server.deletePeer(others[0]!), true);
  assert.equal(await server.server.deletePeer(others.at(-1)!), true);
  await a.until(() => a.peers.size === 1098);
  const parts = a.updates.map((update) => update.perch!);
  const last = parts.findIndex((part) => !part.more);
  assert.equal(last, Math.ceil(1100 / 128) - 1);
  assert.deepEqual(
    parts.map(({ reset }) => reset),
    parts.map((_, index) => index === 0),
  );
  assert.ok(parts.every((part) => part.peers.length <= 128));
  assert.deepEqual(new Set(a.peers.keys()), new Set(others.slice(1, -1)));
});
