import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { createRelayToken, encodeRelayToken } from "#base/relay-token.ts";
import { ManualClock } from "#base/time.ts";
import vectors from "../../../test/vectors/relay.json" with { type: "json" };
import {
  encodeAuth,
  encodeAuthResponse,
  encodePeerList,
  encodeTransport,
  HEALTH_CHECK_MESSAGE,
  RelayType,
} from "../protocol/messages.ts";
import { PeerId } from "../protocol/peer-id.ts";
import { RawAgent, relayHost, SECRET, settle, until, validToken } from "../testing.ts";

const hex = (message: Uint8Array): string => Buffer.from(message).toString("hex");
const online = (...ids: PeerId[]): string => hex(encodePeerList(RelayType.peersOnline, ids)[0]!);
const offline = (...ids: PeerId[]): string => hex(encodePeerList(RelayType.peersWentOffline, ids)[0]!);

test("a payload travels from one agent to the other with the sender's ID, byte for byte", async () => {
  await using relay = await relayHost({ instanceUrl: vectors.instanceUrl });
  using a = await RawAgent.join(relay.url, vectors.keys.a.public);
  using b = await RawAgent.join(relay.url, vectors.keys.b.public);
  assert.deepEqual(a.take(), [vectors.authResponse]);
  assert.deepEqual(b.take(), [vectors.authResponse]);
  a.send(Buffer.from(vectors.transportUp, "hex"));
  await until("the payload", () => b.messages.length > 0);
  assert.deepEqual(b.take(), [vectors.transportDown]);
  const { messagesReceived, bytesReceived, messagesForwarded, peers, peersActive } = relay.server.counters();
  assert.deepEqual([messagesReceived, messagesForwarded, peers, peersActive], [1, 1, 2, 1]);
  assert.equal(bytesReceived, vectors.transportUp.length / 2);
});

test("an unknown destination is dropped silently, the own ID echoes, an empty payload is forwarded", async () => {
  await using relay = await relayHost();
  using a = await RawAgent.join(relay.url, "a");
  a.take();
  a.transport(PeerId.ofText("nobody"), Buffer.from("x"));
  a.transport(a.id, Buffer.alloc(0));
  a.transport(a.id, Buffer.from("echo"));
  await until("the echoes", () => a.messages.length >= 2);
  assert.deepEqual(a.take(), [
    hex(encodeTransport(a.id, Buffer.alloc(0))),
    hex(encodeTransport(a.id, Buffer.from("echo"))),
  ]);
  assert.equal(relay.server.counters().unknownDestination, 1);
});

test("Auth, Subscribe and Transport written back to back are handled in order", async () => {
  await using relay = await relayHost();
  using b = await RawAgent.join(relay.url, "b");
  b.take();
  const a = new RawAgent(relay.url, "a");
  using _ = a;
  await once(a.ws, "open");
  a.send(encodeAuth(a.id, encodeRelayToken(validToken())));
  a.list(RelayType.subscribe, b.id);
  a.transport(b.id, Buffer.from("early"));
  await until("all of it", () => a.messages.length === 2 && b.messages.length === 1);
  assert.deepEqual(a.take(), [hex(encodeAuthResponse(relay.url)), online(b.id)]);
  assert.deepEqual(b.take(), [hex(encodeTransport(a.id, Buffer.from("early")))]);
});

test("whoever does not authenticate properly is dropped without a word", async () => {
  await using relay = await relayHost({ authTimeoutMs: 300 });
  const good = encodeRelayToken(validToken());
  const id = PeerId.ofText("x");
  const badMagic = encodeAuth(id, good);
  badMagic[2]! ^= 1;
  const attempts: (Uint8Array | string | undefined)[] = [
    undefined,
    Buffer.alloc(0),
    Buffer.from("0105", "hex"),
    encodeTransport(id, Buffer.from("x")),
    badMagic,
    encodeAuth(id, good.subarray(0, 20)),
    encodeAuth(id, encodeRelayToken(createRelayToken("another secret", Date.now() / 1000 + 60))),
    encodeAuth(id, encodeRelayToken(createRelayToken(SECRET, Date.now() / 1000 - 60))),
    Buffer.concat([encodeAuth(id, good), Buffer.alloc(200)]),
    Buffer.from(vectors.healthProbeAuth, "hex"),
    "a text message",
  ];
  await Promise.all(
    attempts.map(async (first, index) => {
      using agent = new RawAgent(relay.url, "x");
      await once(agent.ws, "open");
      if (first !== undefined) agent.ws.send(first, { binary: typeof first !== "string" });
      await until(`attempt ${index} to be dropped`, () => agent.closed, 3000);
      assert.deepEqual(agent.take(), []);
    }),
  );
  const { refused, peers, pending } = relay.server.counters();
  assert.deepEqual([refused, peers, pending], [attempts.length, 0, 0]);
});

test("the newest connection of an ID wins at once, without Close and without an offline event", async () => {
  await using relay = await relayHost({ offlineGraceMs: 50 });
  using watcher = await RawAgent.join(relay.url, "w");
  using first = await RawAgent.join(relay.url, "a");
  watcher.list(RelayType.subscribe, first.id);
  await until("online", () => watcher.messages.length >= 2);
  watcher.take();
  first.take();
  using second = await RawAgent.join(relay.url, "a");
  await until("the first to be dropped", () => first.closed);
  assert.deepEqual(first.take(), []);
  assert.deepEqual(second.take(), [hex(encodeAuthResponse(relay.url))]);
  await sleep(120);
  assert.deepEqual(watcher.take(), [online(first.id)]);
  watcher.transport(first.id, Buffer.from("hello"));
  await until("the payload at the second", () => second.messages.length > 0);
  assert.equal(relay.server.counters().reconnections, 1);
});

test("online is told once per subscription, offline every time, and Unsubscribe ends both", async () => {
  await using relay = await relayHost({ offlineGraceMs: 10 });
  using w = await RawAgent.join(relay.url, "w");
  w.take();
  const id = PeerId.ofText("p");
  w.list(RelayType.subscribe, id);
  await settle();
  assert.deepEqual(w.take(), [], "nobody is online: no answer");

  let p = await RawAgent.join(relay.url, "p");
  await until("online", () => w.messages.length > 0);
  assert.deepEqual(w.take(), [online(id)]);
  p.ws.terminate();
  await until("offline", () => w.messages.length > 0);
  assert.deepEqual(w.take(), [offline(id)]);

  p = await RawAgent.join(relay.url, "p");
  await settle();
  assert.deepEqual(w.take(), [], "online was told already");
  w.list(RelayType.subscribe, id);
  await until("the answer", () => w.messages.length > 0);
  assert.deepEqual(w.take(), [online(id)]);
  w.list(RelayType.unsubscribe, id);
  await settle();
  p.ws.terminate();
  await sleep(60);
  assert.deepEqual(w.take(), []);
});

test("Close is told at once, an abrupt loss after the grace, a quick return not at all", async () => {
  const clock = new ManualClock();
  await using relay = await relayHost({}, 0, clock);
  const token = encodeRelayToken(createRelayToken(SECRET, clock.wall() / 1000 + 3600));
  using w = await RawAgent.join(relay.url, "w", token);
  using p = await RawAgent.join(relay.url, "p", token);
  const gone = (): Promise<void> => until("p to be gone", () => !relay.server.isConnected(p.id));
  w.list(RelayType.subscribe, p.id);
  await until("online", () => w.messages.length === 2);
  w.take();

  p.ws.terminate();
  await gone();
  clock.advance(2_499);
  using back = await RawAgent.join(relay.url, "p", token);
  clock.advance(10_000);
  await settle();
  assert.deepEqual(
    w.take(),
    [online(p.id)],
    "the subscription had its online left: repeats are possible, offline is not",
  );

  back.send(Buffer.from(vectors.close, "hex"));
  await until("offline", () => w.messages.length > 0);
  assert.deepEqual(w.take(), [offline(p.id)]);
  await until("the end of the connection", () => back.closed);

  using again = await RawAgent.join(relay.url, "p", token);
  again.ws.terminate();
  await gone();
  await settle();
  assert.deepEqual(w.take(), []);
  clock.advance(2_500);
  await until("offline", () => w.messages.length > 0);
  assert.deepEqual(w.take(), [offline(p.id)]);
});

test("presence keeps the true order and tells the final state only", async () => {
  const { PresenceOutbox } = await import("./presence.ts");
  const [a, b, c] = ["a", "b", "c"].map((text) => PeerId.ofText(text)) as [PeerId, PeerId, PeerId];
  const outbox = new PresenceOutbox();
  outbox.note(a, false);
  outbox.note(b, true);
  outbox.note(c, true);
  outbox.note(a, true);
  assert.deepEqual(outbox.drain().map(hex), [online(b, c, a)]);
  outbox.note(a, true);
  outbox.note(b, false);
  outbox.note(c, true);
  outbox.note(a, false);
  assert.deepEqual(outbox.drain().map(hex), [offline(b), online(c), offline(a)]);
  assert.deepEqual(outbox.drain(), []);
});

test("245 online peers come as two messages", async () => {
  await using relay = await relayHost();
  const ids = Array.from({ length: 245 }, (_, i) => `p${i}`);
  const agents = await Promise.all(ids.map((id) => RawAgent.join(relay.url, id)));
  using w = await RawAgent.join(relay.url, "w");
  w.take();
  w.list(RelayType.subscribe, ...agents.map(({ id }) => id));
  await until("the lists", () => w.messages.length >= 2);
  assert.deepEqual(
    w.messages.map(({ length }) => length),
    [8786, 38],
  );
  for (const agent of agents) agent.ws.terminate();
});

test("broken and unknown messages of an authenticated agent are ignored, a wrong version ends it", async () => {
  await using relay = await relayHost();
  using a = await RawAgent.join(relay.url, "a");
  a.take();
  for (const message of [
    "010800",
    "010900",
    "0108",
    "0103",
    vectors.transportUp.slice(0, 74),
    "0101",
    "010c",
    "01ff00",
    vectors.auth,
    vectors.authResponse,
    vectors.onlineB,
    "0105",
    "0105ff",
  ])
    a.send(Buffer.from(message, "hex"));
  a.transport(a.id, Buffer.from("still here"));
  await until("the echo", () => a.messages.length > 0);
  assert.deepEqual(a.take(), [hex(encodeTransport(a.id, Buffer.from("still here")))]);
  a.send(Buffer.from("0205", "hex"));
  await until("the end", () => a.closed);
  using b = await RawAgent.join(relay.url, "b");
  b.send(Buffer.alloc(8821, 1));
  await until("the end of the one that sends too much", () => b.closed);
});

test("whatever an authenticated agent sends, the relay goes on", async () => {
  await using relay = await relayHost();
  using a = await RawAgent.join(relay.url, "a");
  using b = await RawAgent.join(relay.url, "b");
  b.take();
  const end = performance.now() + 1000;
  for (let i = 0; i < 3000 && performance.now() < end; i++) {
    const message = randomBytes(2 + (i % 300));
    message[0] = 1;
    // Close would be obeyed.
    if (message[1] === RelayType.close || i % 2) message[1] = 8 + (i % 4);
    if (i % 3 === 0) message.set(Buffer.from(b.id, "latin1").subarray(0, message.length - 2), 2);
    a.send(message);
    if (i % 100 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  b.transport(b.id, Buffer.from("echo"));
  await until("the echo", () => b.messages.some((message) => message.subarray(38).toString() === "echo"));
  assert.equal(a.closed, false);
});

test("health checks go out every 25 s, and silence ends the connection", async () => {
  const clock = new ManualClock();
  await using relay = await relayHost({}, 0, clock);
  const token = encodeRelayToken(createRelayToken(SECRET, clock.wall() / 1000 + 3600));
  using a = await RawAgent.join(relay.url, "a", token);
  a.take();
  clock.advance(24_999);
  await settle();
  assert.deepEqual(a.take(), []);
  for (let round = 0; round < 4; round++) {
    clock.advance(round === 0 ? 1 : 25_000);
    await until("the check", () => a.messages.length > 0);
    assert.deepEqual(a.take(), [hex(HEALTH_CHECK_MESSAGE)]);
    a.send(HEALTH_CHECK_MESSAGE);
    await settle();
  }
  clock.advance(25_000);
  await settle();
  assert.equal(a.closed, false);
  clock.advance(25_000);
  await until("the end", () => a.closed);
});

/** Authenticates over a plain socket and then reads nothing. */
async function deafAgent(port: number, id: string): Promise<Socket> {
  const socket = connect(port, "127.0.0.1");
  socket.on("error", () => {});
  await once(socket, "connect");
  socket.write(
    "GET /relay HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nOrigin: https://any.example\r\n\r\n",
  );
  await once(socket, "data");
  socket.pause();
  const auth = encodeAuth(PeerId.ofText(id), encodeRelayToken(validToken()));
  // Masked with zeros: the mask is the client's choice.
  socket.write(Buffer.concat([Buffer.of(0x82, 0x80 | auth.length, 0, 0, 0, 0), auth]));
  return socket;
}

test("an agent that reads nothing delays nobody, loses data and in the end its connection", async () => {
  await using relay = await relayHost({ stallMs: 2000 });
  const deaf = await deafAgent(relay.port.port, "deaf");
  const deafId = PeerId.ofText("deaf");
  using a = await RawAgent.join(relay.url, "a");
  using b = await RawAgent.join(relay.url, "b");
  await until("the deaf one", () => relay.server.isConnected(deafId));
  b.take();
  const packet = Buffer.alloc(8000, 4);
  // Until the kernel's buffers on both sides are full and the queue after them.
  const flood = async (): Promise<void> => {
    for (let i = 0; i < 20; i++) a.transport(deafId, packet);
    await sleep(2);
  };
  while (relay.server.counters().dropped === 0) await flood();
  a.transport(b.id, Buffer.from("fast"));
  await until("the payload for another", () => b.messages.length > 0);
  assert.ok(relay.server.isConnected(deafId));
  await until("the deaf one to be dropped", () => !relay.server.isConnected(deafId));
  deaf.destroy();
});

test("connections without Auth are bounded per address", async () => {
  await using relay = await relayHost({ pendingMaxPerAddress: 2 });
  using one = new RawAgent(relay.url, "1");
  using two = new RawAgent(relay.url, "2");
  await Promise.all([once(one.ws, "open"), once(two.ws, "open")]);
  using three = new RawAgent(relay.url, "3");
  await until("the third to be refused", () => three.closed);
  one.send(encodeAuth(one.id, encodeRelayToken(validToken())));
  await until("the first to be in", () => relay.server.isConnected(one.id));
  using four = await RawAgent.join(relay.url, "4");
  assert.equal(four.messages.length, 1);
});

test("only /relay is taken; any Origin is", async () => {
  await using relay = await relayHost();
  const elsewhere = new RawAgent(`${relay.url}/other`, "a");
  await until("the refusal", () => elsewhere.closed);
  const socket = await deafAgent(relay.port.port, "browser");
  await until("the browser", () => relay.server.isConnected(PeerId.ofText("browser")));
  socket.destroy();
});

test("close says Close to everyone and refuses newcomers", async () => {
  await using relay = await relayHost();
  using a = await RawAgent.join(relay.url, "a");
  a.take();
  await relay.server.close();
  await until("the end", () => a.closed);
  assert.deepEqual(a.take(), [vectors.close]);
  using late = new RawAgent(relay.url, "b");
  await until("the refusal", () => late.closed);
});
