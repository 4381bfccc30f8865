import assert from "node:assert/strict";
import { test } from "node:test";
import { create } from "@bufbuild/protobuf";
import { PrivateKey } from "#base/keys.ts";
import { Body_Type, BodySchema } from "#gen/signal_pb.ts";
import { createCandidateBody, createGoIdleBody } from "./protocol/offer.ts";
import { agent, host, numbered, until } from "./testing.ts";

test("two agents talk: bodies arrive, in order, and senders learn whether they were delivered", async () => {
  await using signal = await host();
  await using alice = agent(signal.port.uri);
  await using bob = agent(signal.port.uri);
  await until("both registered", () => alice.client.connected && bob.client.connected);
  const outcomes = Array.from({ length: 300 }, (_, i) =>
    alice.client.send(
      bob.key.publicKey,
      i % 3 ? createCandidateBody(String(i)) : create(BodySchema, { payload: `${i}:${"x".repeat(i * 60)}` }),
    ),
  );
  for (const outcome of await Promise.all(outcomes.slice(0, 64))) assert.ok(outcome.delivered !== false);
  await until("the messages", () => bob.received.length > 0);
  await Promise.all(outcomes);
  const order = bob.received.map(({ body }) => Number.parseInt(body.payload, 10));
  assert.deepEqual(
    order,
    [...order].sort((a, b) => a - b),
  );
  assert.ok(bob.received.every(({ from }) => from === alice.key.publicKey));
  assert.deepEqual(await bob.client.send(alice.key.publicKey, createGoIdleBody()), { delivered: true });
  await until("its arrival", () => alice.received.length > 0);
  assert.equal(alice.received[0]?.body.type, Body_Type.GO_IDLE);
  assert.deepEqual(await alice.client.send(PrivateKey.generate().publicKey, createGoIdleBody()), { delivered: false });
});

test("a message of half a megabyte passes", async () => {
  await using signal = await host();
  await using alice = agent(signal.port.uri);
  await until("registered", () => alice.client.connected);
  const rosenpassConfig = { rosenpassPubKey: new Uint8Array(600_000).fill(7), rosenpassServerAddr: ":1" };
  const body = create(BodySchema, { payload: "a:b", rosenpassConfig });
  assert.deepEqual(await alice.client.send(alice.key.publicKey, body), { delivered: true });
  await until("it to loop back", () => alice.received.length === 1);
  assert.deepEqual(alice.received[0]?.body.rosenpassConfig?.rosenpassPubKey, rosenpassConfig.rosenpassPubKey);
  const huge = create(BodySchema, { payload: "x".repeat(4 * 1024 * 1024) });
  const { failure } = await alice.client.send(alice.key.publicKey, huge);
  assert.equal(failure?.code, "signal-message-too-large");
});

test("a restart of the server is survived; what was sent meanwhile arrives", async () => {
  const first = await host();
  const { port, uri } = first.port;
  await using alice = agent(uri);
  await using bob = agent(uri);
  await until("both registered", () => alice.client.connected && bob.client.connected);
  await first[Symbol.asyncDispose]();
  await until("the loss to be noticed", () => !alice.client.connected && !bob.client.connected);
  await using _second = await host({}, port);
  bob.client.noteNetworkChange();
  await until("bob back", () => bob.client.connected);
  const outcome = alice.client.send(bob.key.publicKey, numbered(1));
  alice.client.noteNetworkChange();
  assert.deepEqual(await outcome, { delivered: true });
  await until("its arrival", () => bob.received.length > 0);
  assert.equal(bob.received[0]?.body.payload, "1");
});
