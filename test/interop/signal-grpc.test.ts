import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { PrivateKey, type PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { systemClock } from "#base/time.ts";
import { type Body, Body_Type } from "#gen/signal_pb.ts";
import { SignalClient } from "#signal/client/signal-client.ts";
import { createCredentials, createOfferBody, SessionId } from "#signal/protocol/offer.ts";
import { listenSignal } from "#signal/server/signal-port.ts";
import { createSignalServer } from "#signal/server/signal-server.ts";
import { missingPython, startJudge } from "./python.ts";

const missing = missingPython({ grpc: "python3-grpcio", nacl: "python3-nacl", "google.protobuf": "python3-protobuf" }, [
  "protoc",
]);
const skip = missing ?? false;
const deps = { clock: systemClock, log: silentLogger };
let generated = "";

before(() => {
  if (missing !== undefined) return;
  generated = mkdtempSync(join(tmpdir(), "perch-judge-"));
  const proto = fileURLToPath(new URL("../../proto", import.meta.url));
  execFileSync("protoc", [`--proto_path=${proto}`, `--python_out=${generated}`, "signal.proto"]);
});

after(() => {
  if (generated) rmSync(generated, { recursive: true });
});

interface Received {
  readonly from: PublicKey;
  readonly body: Body;
}

function agent(uri: string) {
  const key = PrivateKey.generate();
  const client = new SignalClient(deps, { uri, tls: false, key });
  const waiting: ((message: Received) => void)[] = [];
  client.events.on("message", (message) => waiting.shift()?.(message));
  const connected = new Promise<void>((resolve) => {
    client.events.on("state", (state) => state.connected && resolve());
  });
  client.start();
  return {
    key,
    client,
    connected,
    next: () => new Promise<Received>((resolve) => waiting.push(resolve)),
    [Symbol.asyncDispose]: () => client.close(),
  };
}

test("agents built on grpcio and PyNaCl work with the Perch server and a Perch agent", { skip }, async () => {
  const server = createSignalServer(deps);
  await using port = await listenSignal(server);
  await using perch = agent(port.uri);
  await perch.connected;
  const first = perch.next();
  await using judge = startJudge("signal_judge.py", "client", generated, port.uri);
  const names = (await judge.next()) as { one: PublicKey; two: PublicKey; registered: string };
  assert.equal(names.registered, "1");
  assert.deepEqual(await judge.next(), { delivered: "1" });
  assert.deepEqual(await judge.next(), { from: names.one, payload: "ufrag:password", port: 51820 });
  assert.deepEqual(await judge.next(), { unknown: "0" });
  assert.deepEqual(await judge.next(), { self: "1" });
  assert.deepEqual(await judge.next(), { heartbeat: true });
  assert.deepEqual(await judge.next(), { withoutKey: "FAILED_PRECONDITION" });
  assert.deepEqual(await judge.next(), { replaced: "UNKNOWN", details: "peer registered again" });

  judge.say(perch.key.publicKey);
  assert.deepEqual(await judge.next(), { toPerch: "1" });
  const { from, body } = await first;
  assert.equal(from, names.one);
  assert.deepEqual([body.type, body.payload, body.wgListenPort], [Body_Type.OFFER, "ufrag:password", 51820]);
  const sessionId = SessionId.create();
  const answer = createOfferBody("answer", {
    credentials: createCredentials(),
    sessionId,
    listenPort: 1,
    version: "0.76.0",
  });
  assert.deepEqual(await perch.client.send(names.one, answer), { delivered: true });
  assert.deepEqual(await judge.next(), {
    from: perch.key.publicKey,
    type: Body_Type.ANSWER,
    payload: answer.payload,
    session: sessionId,
  });
  server.close();
});

test("Perch agents talk through a server built on grpcio, which does not tell what was delivered", {
  skip,
}, async () => {
  await using judge = startJudge("signal_judge.py", "server", generated);
  const { port } = (await judge.next()) as { port: number };
  await using alice = agent(`127.0.0.1:${port}`);
  await using bob = agent(`127.0.0.1:${port}`);
  await Promise.all([alice.connected, bob.connected]);
  const registered = [await judge.next(), await judge.next()];
  assert.ok(registered.some((line) => (line as { registered: string }).registered === alice.key.publicKey));
  const offer = createOfferBody("offer", { credentials: createCredentials(), listenPort: 5, version: "0.76.0" });
  const received = bob.next();
  assert.deepEqual(await alice.client.send(bob.key.publicKey, offer), { delivered: undefined });
  const { from, body } = await received;
  assert.equal(from, alice.key.publicKey);
  assert.equal(body.payload, offer.payload);
  assert.deepEqual(await alice.client.send(PrivateKey.generate().publicKey, offer), { delivered: undefined });
});
