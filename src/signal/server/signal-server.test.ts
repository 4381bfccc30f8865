import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { encodeMessage } from "#base/flagged-messages.ts";
import { PrivateKey } from "#base/keys.ts";
import { BodySchema } from "#gen/signal_pb.ts";
import { createGoIdleBody } from "../protocol/offer.ts";
import { sealMessage } from "../protocol/sealed-message.ts";
import {
  DELIVERED_HEADER,
  PEER_ID_HEADER,
  REGISTERED_HEADER,
  SIGNAL_SEND_PATH,
  SIGNAL_STREAM_PATH,
} from "../protocol/signal-service.ts";
import { agent, answerOf, call, host, numbered, raw, send, until } from "../testing.ts";

test("response headers with the registration come before any message", async () => {
  await using signal = await host();
  using session = raw(signal.port.uri);
  const stream = call(session, SIGNAL_STREAM_PATH, { [PEER_ID_HEADER]: "anything" });
  const [headers] = await once(stream, "response");
  assert.equal(headers[":status"], 200);
  assert.equal(headers[REGISTERED_HEADER], "1");
  assert.match(headers["content-type"], /^application\/grpc/);
  assert.ok(signal.server.isRegistered("anything"));
});

test("a stream without the key ends with FAILED_PRECONDITION, an unknown method with UNIMPLEMENTED", async () => {
  await using signal = await host();
  using session = raw(signal.port.uri);
  const stream = await answerOf(call(session, SIGNAL_STREAM_PATH));
  assert.equal(stream.trailers["grpc-status"], "9");
  assert.match(String(stream.trailers["grpc-message"]), /x-wiretrustee-peer-id/);
  assert.equal(stream.headers[REGISTERED_HEADER], undefined);
  const unknown = await answerOf(call(session, "/signalexchange.SignalExchange/Other"));
  assert.equal(unknown.trailers["grpc-status"], "12");
});

test("the newest stream of a key wins, and the end of the old one changes nothing", async () => {
  await using signal = await host();
  using session = raw(signal.port.uri);
  const first = call(session, SIGNAL_STREAM_PATH, { [PEER_ID_HEADER]: "k" });
  const firstAnswer = answerOf(first);
  await once(first, "response");
  const second = call(session, SIGNAL_STREAM_PATH, { [PEER_ID_HEADER]: "k" });
  await once(second, "response");
  const { trailers } = await firstAnswer;
  assert.equal(trailers["grpc-status"], "2");
  assert.equal(decodeURIComponent(String(trailers["grpc-message"])), "peer registered again");
  await sleep(20);
  assert.ok(signal.server.isRegistered("k"));
  second.close();
  await until("the second to be gone", () => !signal.server.isRegistered("k"));
  assert.equal(signal.server.counters().replaced, 1);
});

test("Send passes bytes on unchanged, loops back to the sender, and answers dummy and unknown keys with OK", async () => {
  await using signal = await host();
  using session = raw(signal.port.uri);
  const key = PrivateKey.generate();
  const stream = call(session, SIGNAL_STREAM_PATH, { [PEER_ID_HEADER]: key.publicKey });
  await once(stream, "response");
  const sealed = sealMessage(createGoIdleBody(), key.publicKey, key);
  // A field of a later version travels too.
  const payload = Buffer.concat([sealed, Buffer.from("aa0603616263", "hex")]);
  const [answer, [data]] = await Promise.all([send(session, payload), once(stream, "data")]);
  assert.equal(answer.trailers["grpc-status"], "0");
  assert.equal(answer.headers[DELIVERED_HEADER], "1");
  assert.equal(answer.data.toString("hex"), "0000000000");
  assert.equal(data.toString("hex"), encodeMessage(payload).toString("hex"));

  const unknown = await send(session, sealMessage(createGoIdleBody(), PrivateKey.generate().publicKey, key));
  assert.equal(unknown.trailers["grpc-status"], "0");
  assert.equal(unknown.headers[DELIVERED_HEADER], "0");
  const dummy = await send(session, Buffer.from("1a0564756d6d79", "hex"));
  assert.equal(dummy.trailers["grpc-status"], "0");
  assert.equal(dummy.headers[DELIVERED_HEADER], undefined);
});

test("unreadable, cut and oversized requests get a status, and the server goes on", async () => {
  await using signal = await host();
  using session = raw(signal.port.uri);
  assert.equal((await send(session, Buffer.from("ffffff", "hex"))).trailers["grpc-status"], "13");
  const cut = call(session, SIGNAL_SEND_PATH);
  cut.end(Buffer.from("0000000009aa", "hex"));
  assert.equal((await answerOf(cut)).trailers["grpc-status"], "13");
  const long = call(session, SIGNAL_SEND_PATH);
  long.end(Buffer.from("00ffffffff", "hex"));
  assert.equal((await answerOf(long)).trailers["grpc-status"], "8");
  const packed = call(session, SIGNAL_SEND_PATH);
  packed.end(Buffer.from("0100000001aa", "hex"));
  assert.equal((await answerOf(packed)).trailers["grpc-status"], "12");
  const wrongType = call(session, SIGNAL_SEND_PATH, { "content-type": "text/plain" });
  wrongType.end();
  assert.equal((await answerOf(wrongType)).headers[":status"], 415);
  assert.equal((await send(session, Buffer.from("1a0564756d6d79", "hex"))).trailers["grpc-status"], "0");
});

test("a recipient that does not read loses its stream, and others are not delayed by it", async () => {
  await using signal = await host({ writeTimeoutMs: 1000 });
  using deaf = raw(signal.port.uri, { initialWindowSize: 0 });
  const deafKey = PrivateKey.generate().publicKey;
  const stream = call(deaf, SIGNAL_STREAM_PATH, { [PEER_ID_HEADER]: deafKey });
  await once(stream, "response");
  await using alice = agent(signal.port.uri);
  await using bob = agent(signal.port.uri);
  await until("both registered", () => alice.client.connected && bob.client.connected);
  const closed = new Promise((resolve) => stream.once("close", resolve));
  const stuck = alice.client.send(deafKey, numbered(1));
  assert.deepEqual(await alice.client.send(bob.key.publicKey, numbered(2)), { delivered: true });
  assert.ok(signal.server.isRegistered(deafKey));
  assert.deepEqual(await stuck, { delivered: false });
  await closed;
  assert.equal(stream.rstCode, 2);
  assert.ok(!signal.server.isRegistered(deafKey));
});

test("a recipient's queue is bounded in bytes", async () => {
  await using signal = await host({ writeTimeoutMs: 300, queueMaxBytes: 3000 });
  using session = raw(signal.port.uri, { initialWindowSize: 0 });
  const key = PrivateKey.generate();
  const stream = call(session, SIGNAL_STREAM_PATH, { [PEER_ID_HEADER]: key.publicKey });
  await once(stream, "response");
  using sender = raw(signal.port.uri);
  const body = create(BodySchema, { payload: "x".repeat(1000) });
  const answers = await Promise.all([1, 2, 3, 4].map(() => send(sender, sealMessage(body, key.publicKey, key))));
  assert.ok(answers.every(({ headers }) => headers[DELIVERED_HEADER] === "0"));
  assert.equal(signal.server.counters().lost, 4);
});
