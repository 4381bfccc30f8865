import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { type WebSocket, WebSocketServer } from "ws";
import { parseIp } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { createRelayToken } from "#base/relay-token.ts";
import { type Clock, ManualClock, systemClock } from "#base/time.ts";
import {
  CLOSE_MESSAGE,
  encodeAuthResponse,
  encodePeerList,
  encodeTransport,
  HEALTH_CHECK_MESSAGE,
  parseRelayMessage,
  RelayType,
} from "../protocol/messages.ts";
import { PeerId } from "../protocol/peer-id.ts";
import { relayHost, settle, somePublicKey, until, validToken } from "../testing.ts";
import { RelayClient, type RelayClientEvents } from "./relay-client.ts";

const alice = somePublicKey(1);
const bob = somePublicKey(2);
const eve = somePublicKey(3);
const handshake = (text: string): Buffer => Buffer.from(`\u0001${text}`);

function agent(key: PublicKey, peers: readonly PublicKey[], clock: Clock = systemClock) {
  const client = new RelayClient({ clock, log: silentLogger }, { key });
  const datagrams: RelayClientEvents["datagram"][] = [];
  const presence: RelayClientEvents["presence"][] = [];
  const home: RelayClientEvents["home"][] = [];
  const lost: string[] = [];
  client.events.on("datagram", (event) => datagrams.push(event));
  client.events.on("presence", (event) => presence.push(event));
  client.events.on("home", (event) => home.push(event));
  client.events.on("lost", ({ server }) => lost.push(server));
  for (const peer of peers) client.registerPeer(peer);
  client.setToken(validToken());
  const texts = (): string[] => datagrams.map(({ datagram }) => Buffer.from(datagram).toString());
  return { client, datagrams, presence, home, lost, texts, [Symbol.asyncDispose]: () => client.close() };
}

/** Moves time and lets pings be answered on the way. */
async function pass(clock: ManualClock, ms: number): Promise<void> {
  for (let left = ms; left > 0; left -= 5_000) {
    clock.advance(Math.min(5_000, left));
    await sleep(10);
  }
}

/** A relay that does as it is told: `onMessage` gets what agents send after their Auth was answered. */
async function fakeRelay(
  options: {
    beforeAnswer?: (ws: WebSocket, url: string) => void;
    mute?: boolean;
    onMessage?: (data: Buffer) => void;
  } = {},
  port = 0,
) {
  const http = createServer();
  const wss = new WebSocketServer({ server: http, autoPong: options.mute !== true });
  http.listen(port, "127.0.0.1");
  await once(http, "listening");
  const url = `rel://127.0.0.1:${(http.address() as AddressInfo).port}`;
  const connections: WebSocket[] = [];
  const messages: Buffer[] = [];
  wss.on("connection", (ws) => {
    connections.push(ws);
    ws.on("error", () => {});
    ws.on("message", (data: Buffer) => {
      messages.push(data);
      if (parseRelayMessage(data).kind === "auth") {
        options.beforeAnswer?.(ws, url);
        if (ws.readyState === ws.OPEN) ws.send(encodeAuthResponse(url));
      } else {
        options.onMessage?.(data);
      }
    });
  });
  return {
    url,
    connections,
    messages,
    port: (http.address() as AddressInfo).port,
    async [Symbol.asyncDispose]() {
      for (const ws of connections) ws.terminate();
      await new Promise<void>((resolve) => http.close(() => resolve()));
    },
  };
}

test("two agents exchange datagrams over their common home without any opening", async () => {
  await using relay = await relayHost();
  await using a = agent(alice, [bob]);
  await using b = agent(bob, [alice]);
  a.client.setServers([relay.url]);
  b.client.setServers([relay.url]);
  await until("both home", () => a.client.home.connected && b.client.home.connected);
  assert.equal(a.client.home.instanceUrl, relay.url);
  assert.equal(a.client.home.address, "127.0.0.1");
  assert.ok(a.client.home.rtt !== undefined && a.client.home.rtt >= 0);
  assert.deepEqual(a.home, [{ connected: true, instanceUrl: relay.url }]);
  assert.ok(a.client.send(bob, handshake("hello")));
  await until("the datagram", () => b.datagrams.length === 1);
  assert.deepEqual(b.datagrams[0]?.from, alice);
  assert.equal(b.datagrams[0]?.server, relay.url);
  assert.deepEqual(b.texts(), ["\u0001hello"]);
  assert.ok(b.client.send(alice, Buffer.from("back"), b.datagrams[0]?.server));
  await until("the answer", () => a.datagrams.length === 1);
  assert.deepEqual(a.client.counters(), { sent: 1, received: 1, dropped: 0, unknownSender: 0 });
});

test("datagrams of peers that are not registered are counted and dropped, and none are sent to them", async () => {
  await using relay = await relayHost();
  await using a = agent(alice, [bob]);
  await using e = agent(eve, [alice]);
  a.client.setServers([relay.url]);
  e.client.setServers([relay.url]);
  await until("both home", () => a.client.home.connected && e.client.home.connected);
  e.client.send(alice, Buffer.from("let me in"));
  await until("it to be counted", () => a.client.counters().unknownSender === 1);
  assert.equal(a.datagrams.length, 0);
  assert.equal(a.client.send(eve, Buffer.from("x")), false);
  a.client.registerPeer(eve);
  e.client.send(alice, Buffer.from("now"));
  await until("the datagram", () => a.datagrams.length === 1);
  a.client.unregisterPeer(eve);
  e.client.send(alice, Buffer.from("later"));
  await until("the second to be counted", () => a.client.counters().unknownSender === 2);
});

test("without a connection, and too long, a datagram is refused", async () => {
  await using a = agent(alice, [bob]);
  assert.equal(a.client.send(bob, Buffer.from("x")), false);
  assert.equal(a.client.send(bob, Buffer.from("x"), "rel://unasked:1"), false);
  await using relay = await relayHost();
  a.client.setServers([relay.url]);
  await until("home", () => a.client.home.connected);
  assert.equal(a.client.send(bob, Buffer.alloc(8783)), false);
  assert.equal(a.client.send(bob, Buffer.alloc(8782)), true);
  assert.equal(a.client.counters().dropped, 3);
});

test("handshakes leave before data of the same turn, and a full queue counts what it drops", async () => {
  await using relay = await relayHost({ queueMaxBytes: 1e7, queueMaxAgeMs: 1e6 });
  await using a = agent(alice, [bob]);
  await using b = agent(bob, [alice]);
  a.client.setServers([relay.url]);
  b.client.setServers([relay.url]);
  await until("both home", () => a.client.home.connected && b.client.home.connected);
  for (let i = 0; i < 10; i++) a.client.send(bob, Buffer.from(`\u0004${i}`));
  a.client.send(bob, handshake("first"));
  await until("all", () => b.datagrams.length === 11);
  assert.deepEqual(b.texts(), ["\u0001first", ...Array.from({ length: 10 }, (_, i) => `\u0004${i}`)]);
  for (let i = 0; i < 1200; i++) a.client.send(bob, Buffer.alloc(1350, 4));
  assert.ok(a.client.counters().dropped >= 200);
  await until("the rest", () => b.datagrams.length === 11 + 1200 - a.client.counters().dropped);
});

test("the first of several servers to answer becomes home; the others are left", async () => {
  await using relay = await relayHost();
  const silent = createServer();
  silent.on("upgrade", (_, socket) => socket.on("error", () => {}));
  silent.listen(0, "127.0.0.1");
  await once(silent, "listening");
  await using a = agent(alice, []);
  a.client.setServers([
    "rel://127.0.0.1:1",
    "nonsense",
    `rel://127.0.0.1:${(silent.address() as AddressInfo).port}`,
    relay.url,
  ]);
  await until("home", () => a.client.home.connected);
  assert.equal(a.client.home.instanceUrl, relay.url);
  await a.client.close();
  silent.closeAllConnections();
  silent.close();
});

test("a lost home is dialled again at once when it had lasted, and frames flow again", async () => {
  const clock = new ManualClock();
  const first = await relayHost();
  await using a = agent(alice, [bob], clock);
  a.client.setServers([first.url]);
  await until("home", () => a.client.home.connected);
  clock.advance(10_000);
  const { port } = first.port;
  await first[Symbol.asyncDispose]();
  await until("the loss", () => !a.client.home.connected);
  assert.deepEqual(a.lost, [first.url]);
  assert.equal(a.home.at(-1)?.error?.code, "relay-closed");
  await using _ = await relayHost({}, port);
  clock.advance(250);
  await until("home again", () => a.client.home.connected);
});

test("servers and foreign relays wait for the first token", async () => {
  const clock = new ManualClock();
  await using relay = await relayHost();
  await using foreign = await relayHost();
  await using client = new RelayClient({ clock, log: silentLogger }, { key: alice });
  client.registerPeer(bob);
  client.setServers([relay.url]);
  client.ensureServer(foreign.url, undefined, bob);
  await settle();
  assert.equal(client.home.connected, false);
  client.setToken(validToken());
  await until("both", () => client.home.connected && client.isConnected(foreign.url));
});

test("a token that comes while the old one is being refused is tried at once", async () => {
  const clock = new ManualClock();
  await using relay = await relayHost();
  await using a = agent(alice, [], clock);
  a.client.setToken(createRelayToken("wrong", Date.now() / 1000 + 60));
  a.client.setServers([relay.url]);
  a.client.setToken(validToken());
  await until("the refusal", () => a.home.length === 1);
  clock.advance(0);
  await until("home", () => a.client.home.connected);
});

test("failures are retried with backoff for ever, and a new token is tried at once", async () => {
  const clock = new ManualClock();
  await using relay = await relayHost();
  await using a = agent(alice, [], clock);
  a.client.setToken(createRelayToken("wrong", Date.now() / 1000 + 60));
  a.client.setServers([relay.url]);
  await until("the refusal", () => a.home.length === 1);
  assert.equal(a.home[0]?.error?.code, "relay-refused");
  for (const round of [2, 3, 4]) {
    assert.equal(clock.pending, 1);
    clock.advance(750 * 2 ** (round - 2));
    await until("the next refusal", () => a.home.length === round);
  }
  a.client.setToken(validToken());
  await until("home", () => a.client.home.connected);
});

test("presence is told for registered peers, again after each absence, and across a restart", async () => {
  const first = await relayHost({ offlineGraceMs: 10 });
  const clock = new ManualClock();
  await using a = agent(alice, [bob], clock);
  a.client.setServers([first.url]);
  a.client.subscribe([bob]);
  await until("home", () => a.client.home.connected);
  let b = agent(bob, [alice]);
  b.client.setServers([first.url]);
  await until("bob online", () => a.presence.length === 1);
  assert.deepEqual(a.presence[0], { peer: bob, online: true, server: first.url });
  await b.client.close();
  await until("bob offline", () => a.presence.length === 2);
  assert.equal(a.presence[1]?.online, false);
  b = agent(bob, [alice]);
  b.client.setServers([first.url]);
  await until("bob online again", () => a.presence.length === 3);
  assert.equal(a.presence[2]?.online, true);
  await b.client.close();

  clock.advance(10_000);
  const { port } = first.port;
  await first[Symbol.asyncDispose]();
  await until("the loss", () => !a.client.home.connected);
  a.presence.length = 0;
  await using _ = await relayHost({}, port);
  clock.advance(250);
  await until("home again", () => a.client.home.connected);
  b = agent(bob, [alice]);
  b.client.setServers([first.url]);
  await until("bob online at the new one", () => a.presence.length === 1);
  a.client.unsubscribe([bob]);
  await settle();
  await b.client.close();
  await settle();
  assert.equal(a.presence.length, 1);
});

test("over a foreign relay the first datagram leaves together with the Auth", async () => {
  await using homeA = await relayHost();
  await using homeB = await relayHost();
  await using a = agent(alice, [bob]);
  await using b = agent(bob, [alice]);
  a.client.setServers([homeA.url]);
  b.client.setServers([homeB.url]);
  await until("both home", () => a.client.home.connected && b.client.home.connected);
  b.client.ensureServer(homeA.url, parseIp("127.0.0.1"), alice);
  assert.equal(b.client.isConnected(homeA.url), false);
  assert.ok(b.client.send(alice, handshake("over A's relay"), homeA.url));
  await until("the datagram", () => a.datagrams.length === 1);
  assert.ok(b.client.isConnected(homeA.url));
  assert.ok(a.client.send(bob, handshake("answer")));
  await until("the answer", () => b.datagrams.length === 1);
  assert.equal(b.datagrams[0]?.server, homeA.url);
  a.client.ensureServer(homeA.url, undefined, bob);
  assert.equal(homeA.server.counters().peers, 2, "the own home needs no second connection");
});

test("a foreign relay is left a minute after the last peer released it", async () => {
  const clock = new ManualClock();
  await using foreign = await relayHost();
  await using a = agent(alice, [bob, eve], clock);
  a.client.ensureServer(foreign.url, undefined, bob);
  a.client.ensureServer(foreign.url, undefined, eve);
  await until("it", () => a.client.isConnected(foreign.url));
  clock.advance(1_000);
  a.client.releaseServer(foreign.url, bob);
  a.client.unregisterPeer(eve);
  await pass(clock, 59_000);
  assert.ok(a.client.isConnected(foreign.url));
  await pass(clock, 31_000);
  await until("it to be left", () => foreign.server.counters().peers === 0);
  assert.deepEqual(a.lost, []);
  assert.equal(clock.pending, 0);
});

test("an address that does not answer gives way to the host name, and a held relay is dialled again", async () => {
  const clock = new ManualClock();
  const foreign = await relayHost();
  const named = foreign.url.replace("127.0.0.1", "localhost");
  await using a = agent(alice, [bob], clock);
  a.client.ensureServer(named, parseIp("127.0.0.77"), bob);
  await until("it", () => a.client.isConnected(named));
  const { port } = foreign.port;
  await foreign[Symbol.asyncDispose]();
  await until("the loss", () => a.lost.length === 1);
  assert.deepEqual(a.lost, [named]);
  await using _ = await relayHost({}, port);
  clock.advance(750);
  await until("it again", () => a.client.isConnected(named));
});

test("a peer at the home relay that is down costs no second connection when the relay is back", async () => {
  const clock = new ManualClock();
  const relay = await relayHost();
  await using a = agent(alice, [bob], clock);
  a.client.setServers([relay.url]);
  await until("home", () => a.client.home.connected);
  await relay[Symbol.asyncDispose]();
  await until("the loss", () => a.lost.length === 1);
  clock.advance(750);
  await until("a failed round", () => a.home.length === 3);
  await using back = await relayHost({}, relay.port.port);
  a.client.ensureServer(relay.url, undefined, bob);
  await settle();
  clock.advance(2_500);
  await until("home", () => a.client.home.connected);
  for (let i = 0; i < 20; i++) {
    clock.advance(1_000);
    await sleep(5);
  }
  const { authenticated, reconnections } = back.server.counters();
  assert.deepEqual({ authenticated, reconnections }, { authenticated: 1, reconnections: 0 });
  assert.ok(a.client.send(bob, Buffer.from("x"), relay.url));
  assert.deepEqual(a.lost, [relay.url]);
});

test("a foreign relay that becomes home is one connection, and foreign again when home moves on", async () => {
  const first = await relayHost();
  const second = await relayHost();
  await using a = agent(alice, [bob]);
  await using b = agent(bob, [alice]);
  b.client.setServers([second.url]);
  a.client.setServers([first.url]);
  await until("both home", () => a.client.home.connected && b.client.home.connected);
  a.client.ensureServer(second.url, undefined, bob);
  await until("the foreign relay", () => a.client.isConnected(second.url));

  a.client.setServers([second.url]);
  await first[Symbol.asyncDispose]();
  await until("the second as home", () => a.client.home.instanceUrl === second.url);
  await sleep(1_000);
  const { authenticated, reconnections } = second.server.counters();
  assert.deepEqual({ authenticated, reconnections }, { authenticated: 3, reconnections: 1 });
  assert.equal(a.client.home.instanceUrl, second.url);
  assert.ok(a.client.send(bob, handshake("over the new home"), second.url));
  await until("the datagram", () => b.datagrams.length === 1);

  await using third = await relayHost();
  a.client.setServers([third.url]);
  await second[Symbol.asyncDispose]();
  await until("the third as home", () => a.client.home.instanceUrl === third.url);
  await using again = await relayHost({}, second.port.port);
  await until("the second as foreign", () => a.client.isConnected(again.url));
});

test("a peer's relay that home is just trying is dialled for it when home is elsewhere", async () => {
  let refusals = 0;
  await using slow = await fakeRelay({
    beforeAnswer: (ws) => {
      if (refusals++ === 0) ws.terminate();
    },
  });
  await using near = await relayHost();
  await using a = agent(alice, [bob]);
  a.client.setServers([slow.url, near.url]);
  a.client.ensureServer(slow.url, undefined, bob);
  await until("both", () => a.client.home.instanceUrl === near.url && a.client.isConnected(slow.url));
  assert.equal(slow.connections.length, 2, "home's attempt and then the foreign connection");
});

test("what is asked of a foreign relay's presence moves to home and back with it", async () => {
  const relay = await relayHost();
  await using a = agent(alice, [bob]);
  await using b = agent(bob, [alice]);
  b.client.setServers([relay.url]);
  await until("bob", () => b.client.home.connected);
  a.client.ensureServer(relay.url, undefined, bob);
  a.client.subscribe([bob], relay.url);
  await until("bob online", () => a.presence.length === 1);
  a.client.setServers([relay.url]);
  await until("home", () => a.client.home.connected);
  await until("bob online again", () => a.presence.length === 2);
  a.client.unsubscribe([bob], relay.url);
  await settle();
  await b.client.close();
  await settle();
  assert.equal(a.presence.length, 2);
  await relay[Symbol.asyncDispose]();
});

test("frames that overtake the AuthResponse are not lost", async () => {
  await using relay = await fakeRelay({
    beforeAnswer: (ws) => {
      ws.send(encodeTransport(PeerId.of(bob), Buffer.from("early 1")));
      for (const list of encodePeerList(RelayType.peersOnline, [PeerId.of(bob)])) ws.send(list);
      ws.send(encodeTransport(PeerId.of(bob), Buffer.from("early 2")));
    },
  });
  await using a = agent(alice, [bob]);
  a.client.subscribe([bob]);
  a.client.setServers([relay.url]);
  await until("the frames", () => a.datagrams.length === 2 && a.presence.length === 1);
  assert.deepEqual(a.texts(), ["early 1", "early 2"]);
  assert.ok(a.datagrams.every(({ server }) => server === relay.url));
});

test("health checks are answered, unknown and broken messages skipped, Close obeyed", async () => {
  await using relay = await fakeRelay();
  await using a = agent(alice, [bob]);
  a.client.setServers([relay.url]);
  await until("home", () => a.client.home.connected);
  const ws = relay.connections[0]!;
  relay.messages.length = 0;
  for (const text of ["", "01", "0203", "0100", "0101", "010c00", "01ff", "010a00", "0103", "0107", "0108", "010b"])
    ws.send(Buffer.from(text, "hex"));
  ws.send("text");
  ws.send(Buffer.alloc(20_000, 1));
  ws.send(encodeTransport(PeerId.of(bob), Buffer.alloc(0)));
  ws.send(HEALTH_CHECK_MESSAGE);
  await until("the answer", () => relay.messages.length === 1);
  assert.deepEqual(relay.messages[0], HEALTH_CHECK_MESSAGE);
  assert.deepEqual(a.texts(), [""]);
  ws.send(CLOSE_MESSAGE);
  await until("the end", () => !a.client.home.connected);
  assert.equal(a.home.at(-1)?.error?.code, "relay-closed");
});

test("a relay that stops answering pings is left within 22 s", async () => {
  const clock = new ManualClock();
  await using relay = await fakeRelay({ mute: true });
  await using a = agent(alice, [bob], clock);
  a.client.setServers([relay.url]);
  await until("home", () => a.client.home.connected);
  clock.advance(15_000);
  await settle();
  relay.connections[0]!.send(encodeTransport(PeerId.of(bob), Buffer.from("alive")));
  await until("a frame", () => a.datagrams.length === 1);
  clock.advance(7_000);
  assert.ok(a.client.home.connected, "any frame is a sign of life");
  clock.advance(8_000);
  await settle();
  clock.advance(7_000);
  assert.equal(a.client.home.connected, false);
  assert.equal(a.home.at(-1)?.error?.code, "relay-silent");
});

test("a late pong has a second connection take over, even while frames arrive, and nothing is lost", async () => {
  const clock = new ManualClock();
  await using relay = await fakeRelay();
  await using a = agent(alice, [bob], clock);
  a.client.setServers([relay.url]);
  await until("home", () => a.client.home.connected);
  const [first] = relay.connections;
  let pings = 0;
  first!.on("ping", () => pings++);
  clock.advance(15_000);
  await until("the first ping", () => pings === 1);
  await sleep(20);
  // What the agent sends is stuck from now on.
  (first as unknown as { _socket: Socket })._socket.pause();
  clock.advance(15_000);
  first!.send(encodeTransport(PeerId.of(bob), Buffer.from("still arrives")));
  await until("a frame", () => a.datagrams.length === 1);
  assert.equal(relay.connections.length, 1);
  clock.advance(2_100);
  await until("the second connection", () => relay.connections.length === 2);
  await settle();
  await until("its Auth", () => relay.messages.length === 2);
  await settle();
  assert.ok(a.client.send(bob, Buffer.from("leaves")));
  await until("the datagram", () => relay.messages.length === 3);
  assert.ok(
    a.home.every(({ connected }) => connected),
    "nobody noticed",
  );
});

test("a probe without an answer ends the connection after 2 s, and many probes at once ping once", async () => {
  const clock = new ManualClock();
  await using relay = await fakeRelay({ mute: true });
  await using a = agent(alice, [bob], clock);
  a.client.setServers([relay.url]);
  a.client.probe();
  await until("home", () => a.client.home.connected);
  let pings = 0;
  relay.connections[0]!.on("ping", () => pings++);
  for (let times = 0; times < 5; times++) a.client.probe();
  await until("the ping", () => pings === 1);
  clock.advance(1_999);
  assert.ok(a.client.home.connected);
  clock.advance(1);
  assert.equal(a.client.home.connected, false);
  assert.equal(a.home.at(-1)?.error?.code, "relay-silent");
  await settle();
  assert.equal(pings, 1);
});

test("a probe that is answered changes nothing, and foreign relays are asked as well", async () => {
  const clock = new ManualClock();
  await using home = await fakeRelay();
  await using foreign = await fakeRelay();
  await using a = agent(alice, [bob], clock);
  a.client.setServers([home.url]);
  await until("home", () => a.client.home.connected);
  a.client.ensureServer(foreign.url, undefined, bob);
  await until("the foreign relay", () => a.client.isConnected(foreign.url));
  let pings = 0;
  for (const relay of [home, foreign]) relay.connections[0]!.on("ping", () => pings++);
  a.client.probe();
  await until("both pings", () => pings === 2);
  await sleep(20);
  clock.advance(10_000);
  await settle();
  assert.ok(a.client.home.connected && a.client.isConnected(foreign.url));
  assert.deepEqual([home.connections.length, foreign.connections.length], [1, 1]);
});

test("a word that servers are back ends the pause before the next attempt", async () => {
  const clock = new ManualClock();
  const first = await fakeRelay();
  await using a = agent(alice, [bob], clock);
  a.client.setServers([first.url]);
  await until("home", () => a.client.home.connected);
  await first[Symbol.asyncDispose]();
  await until("the loss", () => !a.client.home.connected);
  await using _second = await fakeRelay({}, first.port);
  await settle();
  assert.ok(!a.client.home.connected);
  a.client.retryNow();
  await until("home again", () => a.client.home.connected);
});

test("an idle home connection arms one timer and pings every 15 s", async () => {
  const clock = new ManualClock();
  await using relay = await fakeRelay();
  let pings = 0;
  await using a = agent(alice, [bob], clock);
  a.client.setServers([relay.url]);
  await until("home", () => a.client.home.connected);
  relay.connections[0]!.on("ping", () => pings++);
  await sleep(10);
  // The stall check of the first write ends by itself.
  clock.advance(10_000);
  assert.equal(clock.pending, 1);
  for (let round = 1; round <= 3; round++) {
    clock.advance(round === 1 ? 5_000 : 15_000);
    await until("the ping", () => pings === round);
    await settle();
  }
  assert.equal(clock.pending, 1);
  assert.ok(a.client.home.connected);
});

test("on a change of network a second connection takes over and nobody is told that the agent left", async () => {
  await using relay = await relayHost({ offlineGraceMs: 20 });
  await using a = agent(alice, [bob]);
  await using b = agent(bob, [alice]);
  a.client.setServers([relay.url]);
  b.client.setServers([relay.url]);
  await until("both home", () => a.client.home.connected && b.client.home.connected);
  b.client.subscribe([alice]);
  await until("alice online", () => b.presence.length === 1);
  a.client.noteNetworkChange();
  // Not one datagram is lost on the way, and each comes at most twice.
  let sent = 0;
  let answered = 0;
  b.client.events.on("datagram", () => {
    if (b.client.send(alice, handshake("answer"))) answered++;
  });
  for (; sent < 200; sent++) {
    assert.ok(a.client.home.connected);
    assert.ok(a.client.send(bob, handshake(String(sent))));
    if (sent % 10 === 0) await sleep(1);
    else await new Promise((resolve) => setImmediate(resolve));
  }
  await until("the datagrams", () => new Set(b.texts()).size === sent);
  await until("the answers", () => a.datagrams.length === answered);
  assert.equal(relay.server.counters().reconnections, 1);
  await sleep(80);
  assert.ok(b.presence.every(({ online }) => online));
  assert.deepEqual(a.lost, []);
  assert.ok(a.home.every(({ connected }) => connected));
});

test("a server that drops whoever subscribes is used without presence from the third time on", async () => {
  let closeOn: (() => void) | undefined;
  await using relay = await fakeRelay({
    onMessage: (data) => {
      if (parseRelayMessage(data).kind === "peer-list") closeOn?.();
    },
  });
  closeOn = () => relay.connections.at(-1)!.terminate();
  const clock = new ManualClock();
  await using a = agent(alice, [bob], clock);
  a.client.subscribe([bob]);
  a.client.setServers([relay.url]);
  for (const round of [1, 2]) {
    await until(`loss ${round}`, () => a.lost.length === round);
    clock.advance(1_500);
  }
  await until("the third connection", () => relay.connections.length === 3 && a.client.home.connected);
  await settle();
  assert.ok(a.client.home.connected);
  assert.equal(relay.messages.filter((data) => parseRelayMessage(data).kind === "peer-list").length, 2);
});

test("no servers means no attempts; a live connection outlives an emptied list", async () => {
  const clock = new ManualClock();
  await using relay = await relayHost();
  await using a = agent(alice, [], clock);
  a.client.setServers([]);
  assert.equal(clock.pending, 0);
  a.client.setServers([relay.url]);
  await until("home", () => a.client.home.connected);
  a.client.setServers([]);
  assert.ok(a.client.home.connected);
});

test("close says Close, so that others learn of it at once", async () => {
  await using relay = await relayHost({ offlineGraceMs: 60_000 });
  const a = agent(alice, [bob]);
  await using b = agent(bob, [alice]);
  a.client.setServers([relay.url]);
  b.client.setServers([relay.url]);
  b.client.subscribe([alice]);
  await until("alice online", () => b.presence.length === 1);
  await a.client.close();
  await a.client.close();
  await until("alice offline", () => b.presence.length === 2);
  assert.equal(b.presence[1]?.online, false);
});

test("a datagram leaves while the sender's event loop does nothing else", async () => {
  const shared = new Int32Array(new SharedArrayBuffer(4));
  const worker = new Worker(
    `const { workerData, parentPort } = require("node:worker_threads");
     const { WebSocketServer } = require("ws");
     const server = new WebSocketServer({ port: 0, host: "127.0.0.1" }, () => parentPort.postMessage(server.address().port));
     server.on("connection", (ws) => ws.on("message", (data) => {
       if (data[1] === 6) ws.send(Buffer.from("010772656c3a2f2f78", "hex"));
       if (data[1] === 3) { Atomics.store(workerData, 0, 1); Atomics.notify(workerData, 0); }
     }));`,
    { eval: true, workerData: shared },
  );
  try {
    const [port] = await once(worker, "message");
    await using a = agent(alice, [bob]);
    a.client.setServers([`rel://127.0.0.1:${port}`]);
    await until("home", () => a.client.home.connected);
    assert.ok(a.client.send(bob, handshake("now")));
    // Only what process.nextTick runs; after it nothing of this thread does.
    await new Promise<void>((resolve) => process.nextTick(() => process.nextTick(resolve)));
    assert.notEqual(Atomics.wait(shared, 0, 0, 3000), "timed-out");
  } finally {
    await worker.terminate();
  }
});
