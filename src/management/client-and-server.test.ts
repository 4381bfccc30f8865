import assert from "node:assert/strict";
import { test } from "node:test";
import { PrivateKey } from "#base/keys.ts";
import { ManagementError } from "./errors.ts";
import { remoteKeys, TestAgent, TestServer, temporaryDirectory, testMeta } from "./test-server.ts";

const hasCode = (code: string) => (error: unknown) => error instanceof ManagementError && error.code === code;

test("4.2: an unknown peer is refused, registers with a setup key, and is then known without it", async () => {
  await using server = await TestServer.start();
  const { key } = await server.server.createSetupKey({ name: "lab" });
  await using agent = new TestAgent(server.url);
  const meta = testMeta("web");
  await assert.rejects(agent.client.login({ meta }), hasCode("permission-denied"));
  await assert.rejects(agent.client.login({ meta }), hasCode("permission-denied"));
  const registered = await agent.client.login({ setupKey: key, meta });
  const known = await agent.client.login({ meta });
  assert.equal(known.peerConfig?.address, registered.peerConfig?.address);
  assert.deepEqual(known.peerConfig?.addressV6, registered.peerConfig?.addressV6);
  assert.match(known.peerConfig!.address, /^100\.(6[4-9]|[7-9]\d|1[01]\d|12[0-7])\.\d+\.\d+\/16$/);
  assert.equal(known.peerConfig?.fqdn, "web.perch.internal");
  assert.equal(known.peerConfig?.addressV6.length, 17);
  assert.equal(known.peerConfig?.LazyConnectionEnabled, true);
});

test("two agents learn of each other as soon as the second one registers", async () => {
  await using server = await TestServer.start();
  const { key } = await server.server.createSetupKey({ reusable: true });
  await using a = new TestAgent(server.url);
  await using b = new TestAgent(server.url);
  await a.client.login({ setupKey: key, meta: testMeta("a") });
  a.sync(testMeta("a"));
  const alone = await a.until((update) => update.NetworkMap !== undefined);
  assert.equal(alone.NetworkMap?.remotePeersIsEmpty, true);
  await b.client.login({ setupKey: key, meta: testMeta("b") });
  const together = await a.until((update) => remoteKeys(update).includes(b.key.publicKey));
  assert.ok(together.NetworkMap!.Serial > alone.NetworkMap!.Serial);
  b.sync(testMeta("b"));
  await b.until((update) => remoteKeys(update).includes(a.key.publicKey));
});

test("a restart keeps peers, addresses, server key, relay secret and serial, and the agent comes back by itself", async () => {
  using directory = temporaryDirectory();
  const path = `${directory.path}/management.db`;
  const first = await TestServer.start({ path });
  const { key } = await first.server.createSetupKey({ reusable: true });
  await using a = new TestAgent(first.url);
  await using b = new TestAgent(first.url);
  const login = await a.client.login({ setupKey: key, meta: testMeta("a") });
  a.sync(testMeta("a"));
  const before = await a.until((update) => update.NetworkMap !== undefined);
  const { publicKey } = first.server;
  const { relaySecret } = first.store;
  await first[Symbol.asyncDispose]();
  await using second = await TestServer.start({ path, port: first.port });
  assert.equal(second.server.publicKey, publicKey);
  assert.equal(second.store.relaySecret, relaySecret);
  // A change that the agent could not see is in its first map after the restart.
  await b.client.login({ setupKey: key, meta: testMeta("b") });
  const after = await a.until((update) => remoteKeys(update).includes(b.key.publicKey));
  assert.ok(after.NetworkMap!.Serial > before.NetworkMap!.Serial);
  assert.equal(after.NetworkMap?.peerConfig?.address, login.peerConfig?.address);
});

test("a bad setup key is refused by name, and a text that is no UUID never leaves the agent", async () => {
  await using server = await TestServer.start();
  await using agent = new TestAgent(server.url);
  const meta = testMeta("a");
  await assert.rejects(
    agent.client.login({ setupKey: "00000000-1111-2222-3333-444444444444", meta }),
    (error) => hasCode("setup-key-invalid")(error) && /unknown/.test((error as Error).message),
  );
  await assert.rejects(agent.client.login({ setupKey: "hunter2", meta }), /UUID/);
});

test("an unreachable server is named with its URL and the cause", async () => {
  await using agent = new TestAgent("http://127.0.0.1:9", PrivateKey.generate());
  await assert.rejects(
    agent.client.login({ meta: testMeta("a") }),
    (error) =>
      hasCode("unreachable")(error) && /http:\/\/127\.0\.0\.1:9: .*ECONNREFUSED/.test((error as Error).message),
  );
  assert.equal(await agent.client.isHealthy(), false);
});
