import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http2";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { encodeMessage } from "#base/flagged-messages.ts";
import { PrivateKey } from "#base/keys.ts";
import { ManualClock } from "#base/time.ts";
import { Body_Type } from "#gen/signal_pb.ts";
import { openMessage, parseEncryptedMessage, sealMessage } from "../protocol/sealed-message.ts";
import { listenSignal } from "../server/signal-port.ts";
import { createSignalServer } from "../server/signal-server.ts";
import { agent, deps, fakeServer, host, numbered, raw, send, until } from "../testing.ts";
import { SignalClient } from "./signal-client.ts";
import { SignalError } from "./signal-error.ts";

test("an agent that is evicted by its double waits before it registers again", async () => {
  await using signal = await host();
  const key = PrivateKey.generate();
  await using one = agent(signal.port.uri, { key });
  await until("the first", () => one.client.connected);
  const errors: (SignalError | undefined)[] = [];
  one.client.events.on("state", ({ error }) => errors.push(error));
  await using two = agent(signal.port.uri, { key });
  await until("the eviction", () => errors.length > 0);
  assert.ok(two.client.connected);
  assert.equal(errors[0]?.code, "signal-refused");
  assert.match(errors[0].message, /peer registered again/);
});

test("a repeated message is dropped, as are forged ones", async () => {
  await using signal = await host();
  await using alice = agent(signal.port.uri);
  await until("registered", () => alice.client.connected);
  using session = raw(signal.port.uri);
  const mallory = PrivateKey.generate();
  const once = sealMessage(numbered(1), alice.key.publicKey, mallory);
  await send(session, once);
  await send(session, once);
  const forged = Buffer.from(once);
  forged[forged.length - 1]! ^= 1;
  forged[forged.length - 30]! ^= 1;
  await send(session, forged);
  await send(session, sealMessage(numbered(2), alice.key.publicKey, mallory));
  await until("the second", () => alice.received.length >= 2);
  assert.deepEqual(
    alice.received.map(({ body }) => body.payload),
    ["1", "2"],
  );
  assert.deepEqual([alice.client.counters().repeated, alice.client.counters().malformed], [1, 1]);
});

test("silence for 30 s makes the client ask itself, and no answer for 10 s makes it connect anew", async () => {
  const asked: Uint8Array[] = [];
  await using deaf = await fakeServer((payload) => void asked.push(payload));
  const clock = new ManualClock();
  await using alice = agent(deaf.uri, {}, clock);
  await until("registered", () => alice.client.connected);
  const states: { connected: boolean; error?: SignalError }[] = [];
  alice.client.events.on("state", (state) => states.push(state));
  clock.advance(29_999);
  await sleep(20);
  assert.equal(asked.length, 0);
  clock.advance(1);
  await until("the heartbeat", () => asked.length === 1);
  const message = parseEncryptedMessage(asked[0]!);
  assert.ok(message);
  assert.equal(message.key, alice.key.publicKey);
  assert.equal(openMessage(message, alice.key).body.type, Body_Type.HEARTBEAT);
  await sleep(50);
  clock.advance(10_000);
  assert.equal(states[0]?.connected, false);
  assert.equal(states[0]?.error?.code, "signal-silent");
  clock.advance(2_000);
  await until("registered again", () => alice.client.connected);
  assert.equal(deaf.streams.length, 2);
});

test("any frame is a sign of life, even one that does not open", async () => {
  const asked: Uint8Array[] = [];
  await using server = await fakeServer((payload) => void asked.push(payload));
  const clock = new ManualClock();
  await using alice = agent(server.uri, {}, clock);
  await until("registered", () => alice.client.connected);
  for (let round = 0; round < 3; round++) {
    clock.advance(20_000);
    server.streams[0]!.write(encodeMessage(Buffer.from("1234")));
    await until("the frame", () => alice.client.counters().malformed === round + 1);
  }
  assert.equal(asked.length, 0);
  assert.ok(alice.client.connected);
});

test("a heartbeat that loops back keeps the connection", async () => {
  await using signal = await host();
  const clock = new ManualClock();
  await using alice = agent(signal.port.uri, {}, clock);
  await until("registered", () => alice.client.connected);
  for (let round = 1; round <= 3; round++) {
    // The last frame came 10 s before the end of the last round.
    clock.advance(round === 1 ? 30_000 : 20_000);
    await until("the heartbeat", () => signal.server.counters().delivered === round);
    await sleep(20);
    clock.advance(10_000);
    assert.ok(alice.client.connected);
  }
  assert.equal(alice.received.length, 0);
  assert.equal(alice.client.counters().registrations, 1);
});

test("a server that does not register is left and tried again later", async () => {
  const http = createServer((_, response) => {
    response.writeHead(200, { "content-type": "application/grpc" });
    response.addTrailers({ "grpc-status": "7", "grpc-message": "go%20away" });
    response.end();
  });
  http.listen(0, "127.0.0.1");
  await once(http, "listening");
  const errors: SignalError[] = [];
  await using alice = agent(`127.0.0.1:${(http.address() as AddressInfo).port}`);
  alice.client.events.on("state", ({ error }) => error && errors.push(error));
  await until("the refusal", () => errors.length > 0);
  assert.equal(errors[0]?.code, "signal-refused");
  await alice.client.close();
  http.close();
});

test("a sent message leaves while the sender's event loop does nothing else", async () => {
  const shared = new Int32Array(new SharedArrayBuffer(4));
  const worker = new Worker(
    `const { workerData, parentPort } = require("node:worker_threads");
     const server = require("node:http2").createServer();
     server.on("stream", (stream, headers) => {
       if (headers[":path"].endsWith("ConnectStream")) {
         stream.respond({ ":status": 200, "content-type": "application/grpc", "x-wiretrustee-peer-registered": "1" });
       } else {
         stream.on("data", () => { Atomics.store(workerData, 0, 1); Atomics.notify(workerData, 0); });
       }
     });
     server.listen(0, "127.0.0.1", () => parentPort.postMessage(server.address().port));`,
    { eval: true, workerData: shared },
  );
  try {
    const [port] = await once(worker, "message");
    await using alice = agent(`127.0.0.1:${port}`);
    await until("registered", () => alice.client.connected);
    await sleep(20);
    void alice.client.send(alice.key.publicKey, numbered(1));
    // The rest of this turn is one pass of setImmediate; after it nothing of this thread runs.
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(Atomics.wait(shared, 0, 0, 3000) === "timed-out", false);
  } finally {
    await worker.terminate();
  }
});

test("TLS is checked against the given authority", async (t) => {
  const dir = mkdtempSync(join(tmpdir(), "perch-signal-"));
  try {
    try {
      execFileSync(
        "openssl",
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout key.pem -out cert.pem -subj /CN=localhost -addext subjectAltName=DNS:localhost".split(
          " ",
        ),
        { cwd: dir, stdio: "ignore" },
      );
    } catch {
      t.skip("openssl is not installed");
      return;
    }
    const cert = readFileSync(join(dir, "cert.pem"), "utf8");
    const server = createSignalServer(deps);
    const tls = { cert, key: readFileSync(join(dir, "key.pem"), "utf8") };
    await using port = await listenSignal(server, { tls });
    const uri = `localhost:${port.port}`;
    await using trusting = agent(uri, { tls: true, ca: cert });
    await using doubting = agent(uri, { tls: true });
    const errors: SignalError[] = [];
    doubting.client.events.on("state", ({ error }) => error && errors.push(error));
    await until("the one who trusts", () => trusting.client.connected);
    await until("the refusal of the other", () => errors.length > 0);
    assert.equal(errors[0]?.code, "signal-unreachable");
    assert.deepEqual(await trusting.client.send(trusting.key.publicKey, numbered(1)), { delivered: true });
    server.close();
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test("addresses are read as management writes them", async () => {
  for (const uri of ["", "host:port", "http://x:1", "a:0", "a:70000", "[::1", "::1:5", "a b:1"])
    assert.throws(
      () => new SignalClient(deps, { uri, tls: false, key: PrivateKey.generate() }),
      (error) => error instanceof SignalError && error.code === "signal-uri-malformed",
      uri,
    );
  for (const uri of ["host:1", "[::1]:10000", "192.0.2.1:80", "host"])
    new SignalClient(deps, { uri, tls: false, key: PrivateKey.generate() });
});

test("close is idempotent, fails what waits and ends the registration", async () => {
  await using signal = await host();
  const alice = agent(signal.port.uri);
  await until("registered", () => alice.client.connected);
  await alice.client.close();
  await alice.client.close();
  assert.equal((await alice.client.send(alice.key.publicKey, numbered(1))).failure?.code, "signal-closed");
  await until("the registration to end", () => !signal.server.isRegistered(alice.key.publicKey));
});

test("a probe without an answer ends the connection after 3 s, and many probes at once ask once", async () => {
  const asked: Uint8Array[] = [];
  await using deaf = await fakeServer((payload) => void asked.push(payload));
  const clock = new ManualClock();
  await using alice = agent(deaf.uri, {}, clock);
  alice.client.probe();
  await until("registered", () => alice.client.connected);
  for (let times = 0; times < 5; times++) alice.client.probe();
  await until("the heartbeat", () => asked.length > 0);
  await sleep(20);
  assert.equal(asked.length, 1);
  clock.advance(2_999);
  assert.ok(alice.client.connected);
  clock.advance(1);
  assert.equal(alice.client.connected, false);
});

test("a probe that is answered changes nothing", async () => {
  await using signal = await host();
  const clock = new ManualClock();
  await using alice = agent(signal.port.uri, {}, clock);
  await until("registered", () => alice.client.connected);
  alice.client.probe();
  await sleep(50);
  clock.advance(10_000);
  await sleep(20);
  assert.ok(alice.client.connected);
  assert.equal(alice.client.counters().registrations, 1);
});

test("while the server is away a message is worth an attempt, at most one a second, and so is a word of its return", async () => {
  const first = await host();
  const { port, uri } = first.port;
  const clock = new ManualClock();
  await using alice = agent(uri, {}, clock);
  await until("registered", () => alice.client.connected);
  const attempts: boolean[] = [];
  alice.client.events.on("state", ({ connected }) => attempts.push(connected));
  await first[Symbol.asyncDispose]();
  await until("the loss", () => attempts.length === 1);
  alice.client.retryNow();
  await until("a failed attempt", () => attempts.length === 2);
  void alice.client.send(alice.key.publicKey, numbered(1));
  await sleep(30);
  assert.equal(attempts.length, 2, "too soon");
  await using _second = await host({}, port);
  alice.client.retryNow();
  await until("back", () => alice.client.connected);
  await until("what waited", () => alice.received.length === 1);
});
