import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect,
  createServer,
  type Http2Server,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from "node:http2";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { create } from "@bufbuild/protobuf";
import { PrivateKey, type PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { type Clock, ManualClock, systemClock } from "#base/time.ts";
import { type Body, Body_Type, BodySchema } from "#gen/signal_pb.ts";
import { SignalClient, type SignalClientOptions } from "./client/signal-client.ts";
import { SignalError } from "./client/signal-error.ts";
import { encodeGrpcFrame, GrpcFrameReader } from "./protocol/grpc-wire.ts";
import { createCandidateBody, createGoIdleBody } from "./protocol/offer.ts";
import { openMessage, parseEncryptedMessage, sealMessage } from "./protocol/sealed-message.ts";
import {
  DELIVERED_HEADER,
  PEER_ID_HEADER,
  REGISTERED_HEADER,
  SIGNAL_SEND_PATH,
  SIGNAL_STREAM_PATH,
} from "./protocol/signal-service.ts";
import { listenSignal, type SignalPort } from "./server/signal-port.ts";
import { createSignalServer, type SignalServer, type SignalServerOptions } from "./server/signal-server.ts";

const deps = { clock: systemClock, log: silentLogger };

interface Host extends AsyncDisposable {
  readonly server: SignalServer;
  readonly port: SignalPort;
}

async function host(options: SignalServerOptions = {}, port = 0, clock: Clock = systemClock): Promise<Host> {
  const server = createSignalServer({ clock, log: silentLogger }, options);
  const listening = await listenSignal(server, { port });
  return {
    server,
    port: listening,
    async [Symbol.asyncDispose]() {
      server.close();
      await listening.close();
    },
  };
}

function agent(uri: string, options: Partial<SignalClientOptions> = {}, clock: Clock = systemClock) {
  const key = options.key ?? PrivateKey.generate();
  const client = new SignalClient({ clock, log: silentLogger }, { uri, tls: false, key, ...options });
  const received: { from: PublicKey; body: Body }[] = [];
  client.events.on("message", (message) => received.push(message));
  client.start();
  return { client, key, received, [Symbol.asyncDispose]: () => client.close() };
}

async function until(what: string, check: () => boolean, limitMs = 5000): Promise<void> {
  const end = performance.now() + limitMs;
  while (!check()) {
    if (performance.now() > end) throw new Error(`waited ${limitMs} ms for: ${what}`);
    await sleep(2);
  }
}

/** A gRPC client that knows nothing of ours but the path. */
function raw(uri: string, settings = {}): ClientHttp2Session & Disposable {
  const session = connect(`http://${uri}`, { settings });
  session.on("error", () => {});
  return Object.assign(session, { [Symbol.dispose]: () => session.destroy() });
}

function call(session: ClientHttp2Session, path: string, metadata: Record<string, string> = {}): ClientHttp2Stream {
  const stream = session.request({
    ":method": "POST",
    ":path": path,
    "content-type": "application/grpc",
    te: "trailers",
    ...metadata,
  });
  stream.on("error", () => {});
  return stream;
}

interface Answer {
  readonly headers: Record<string, unknown>;
  readonly trailers: Record<string, unknown>;
  readonly data: Buffer;
}

async function answerOf(stream: ClientHttp2Stream): Promise<Answer> {
  let headers = {};
  let trailers = {};
  const chunks: Buffer[] = [];
  stream.on("response", (value) => {
    headers = value;
  });
  stream.on("trailers", (value) => {
    trailers = value;
  });
  stream.on("data", (chunk: Buffer) => chunks.push(chunk));
  if (!stream.closed) await once(stream, "close");
  return { headers, trailers, data: Buffer.concat(chunks) };
}

function send(session: ClientHttp2Session, payload: Uint8Array): Promise<Answer> {
  const stream = call(session, SIGNAL_SEND_PATH);
  stream.end(encodeGrpcFrame(payload));
  return answerOf(stream);
}

const numbered = (number: number, type: Body_Type = Body_Type.OFFER): Body =>
  create(BodySchema, { type, payload: String(number) });

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
  assert.equal(data.toString("hex"), encodeGrpcFrame(payload).toString("hex"));

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
  assert.equal(bob.received[0]?.body.payload, "1");
});

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

/** A server that registers everyone and then does as it is told. */
async function fakeServer(onSend: (payload: Uint8Array) => void) {
  const streams: ServerHttp2Stream[] = [];
  const http: Http2Server = createServer();
  const sessions = new Set<ServerHttp2Session>();
  http.on("session", (session) => void sessions.add(session));
  http.on("stream", (stream, headers) => {
    stream.on("error", () => {});
    if (headers[":path"] === SIGNAL_STREAM_PATH) {
      streams.push(stream);
      stream.respond({ ":status": 200, "content-type": "application/grpc", [REGISTERED_HEADER]: "1" });
      return;
    }
    const reader = new GrpcFrameReader(1 << 20);
    stream.on("data", (chunk: Buffer) => {
      for (const payload of reader.push(chunk)) onSend(payload);
    });
    stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
    stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
    stream.end(Buffer.alloc(5));
  });
  http.listen(0, "127.0.0.1");
  await once(http, "listening");
  return {
    uri: `127.0.0.1:${(http.address() as AddressInfo).port}`,
    streams,
    async [Symbol.asyncDispose]() {
      for (const session of sessions) session.destroy();
      await new Promise<void>((resolve) => http.close(() => resolve()));
    },
  };
}

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
    server.streams[0]!.write(encodeGrpcFrame(Buffer.from("1234")));
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
