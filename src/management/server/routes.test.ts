import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { type Client, Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { PrivateKey } from "#base/keys.ts";
import {
  EmptySchema,
  type EncryptedMessage,
  EncryptedMessageSchema,
  LoginRequestSchema,
  ManagementService,
  SyncRequestSchema,
} from "#gen/management_pb.ts";
import { sealMessage } from "../protocol/envelope.ts";
import { TestServer, testMeta } from "../test-server.ts";
import { MAX_REQUEST_BYTES } from "./routes.ts";

const rawClient = (server: TestServer): Client<typeof ManagementService> =>
  createClient(ManagementService, createGrpcTransport({ baseUrl: server.url }));

async function codeOf(call: Promise<unknown>): Promise<Code | "ok"> {
  try {
    await call;
    return "ok";
  } catch (error) {
    return ConnectError.from(error).code;
  }
}

async function drain(stream: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of stream);
}

test("1.7: a sender that is no key and a body that cannot be opened or read are INVALID_ARGUMENT", async () => {
  await using server = await TestServer.start();
  const client = rawClient(server);
  const key = PrivateKey.generate();
  const good = sealMessage(
    LoginRequestSchema,
    create(LoginRequestSchema, { meta: testMeta("a") }),
    server.server.publicKey,
    key,
  );
  const bad: readonly Partial<EncryptedMessage>[] = [
    { ...good, wgPubKey: "" },
    { ...good, wgPubKey: "AAAA" },
    { ...good, body: new Uint8Array(0) },
    { ...good, body: good.body.subarray(1) },
    { ...good, wgPubKey: PrivateKey.generate().publicKey },
    { ...good, wgPubKey: Buffer.alloc(32).toString("base64") },
    // Sealed well, but no LoginRequest inside.
    sealMessage(
      EncryptedMessageSchema,
      create(EncryptedMessageSchema, { body: new Uint8Array([0x0a, 0x0a]) }),
      server.server.publicKey,
      key,
    ),
  ];
  for (const fields of bad) {
    const { wgPubKey = "", body = new Uint8Array(0) } = fields;
    const envelope = create(EncryptedMessageSchema, { wgPubKey, body });
    assert.equal(await codeOf(client.login(envelope)), Code.InvalidArgument);
    if (fields !== bad.at(-1)) {
      assert.equal(await codeOf(client.logout(envelope)), Code.InvalidArgument);
      assert.equal(await codeOf(client.syncMeta(envelope)), Code.InvalidArgument);
      assert.equal(await codeOf(drain(client.sync(envelope))), Code.InvalidArgument);
    }
  }
  assert.equal(await codeOf(client.login(good)), Code.PermissionDenied);
});

test("1.6: Sync of an unknown peer is PERMISSION_DENIED on the wire", async () => {
  await using server = await TestServer.start();
  const sealed = sealMessage(
    SyncRequestSchema,
    create(SyncRequestSchema),
    server.server.publicKey,
    PrivateKey.generate(),
  );
  assert.equal(await codeOf(drain(rawClient(server).sync(sealed))), Code.PermissionDenied);
});

test("9.1: login flows are NOT_FOUND, Job and the recent calls UNIMPLEMENTED, never PERMISSION_DENIED", async () => {
  await using server = await TestServer.start();
  const client = rawClient(server);
  const sealed = sealMessage(EmptySchema, create(EmptySchema), server.server.publicKey, PrivateKey.generate());
  assert.equal(await codeOf(client.getDeviceAuthorizationFlow(sealed)), Code.NotFound);
  assert.equal(await codeOf(client.getPKCEAuthorizationFlow(sealed)), Code.NotFound);
  for (const call of ["extendAuthSession", "createExpose", "renewExpose", "stopExpose"] as const)
    assert.equal(await codeOf(client[call](sealed)), Code.Unimplemented, call);
  async function* jobs() {
    yield sealed;
  }
  assert.equal(await codeOf(drain(client.job(jobs()))), Code.Unimplemented);
  assert.equal(await codeOf(client.isHealthy({})), "ok");
  assert.equal((await client.getServerKey({})).key, server.server.publicKey);
});

test("a request over four megabytes is refused and the server goes on", async () => {
  await using server = await TestServer.start();
  const client = rawClient(server);
  const envelope = create(EncryptedMessageSchema, { body: new Uint8Array(MAX_REQUEST_BYTES + 1) });
  assert.equal(await codeOf(client.login(envelope)), Code.ResourceExhausted);
  assert.equal(await codeOf(client.isHealthy({})), "ok");
});

test("a peer whose connection breaks is offline, and its stream is gone", async () => {
  await using server = await TestServer.start();
  const { key } = await server.server.createSetupKey({});
  const own = PrivateKey.generate();
  const client = rawClient(server);
  const seal = (setupKey: string): EncryptedMessage =>
    sealMessage(
      LoginRequestSchema,
      create(LoginRequestSchema, { setupKey, meta: testMeta("a") }),
      server.server.publicKey,
      own,
    );
  await client.login(seal(key));
  const stop = new AbortController();
  const stream = client.sync(sealMessage(SyncRequestSchema, create(SyncRequestSchema), server.server.publicKey, own), {
    signal: stop.signal,
  });
  const reading = stream[Symbol.asyncIterator]();
  await reading.next();
  assert.equal(server.server.connectedPeers, 1);
  stop.abort();
  await reading.next().catch(() => {});
  for (let i = 0; i < 200 && server.server.connectedPeers > 0; i++) await new Promise((r) => setTimeout(r, 10));
  assert.equal(server.server.connectedPeers, 0);
});
