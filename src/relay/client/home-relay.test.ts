import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { silentLogger } from "#base/log.ts";
import { createRelayToken } from "#base/relay-token.ts";
import { ManualClock } from "#base/time.ts";
import { parseRelayMessage } from "../protocol/messages.ts";
import { relayHost, settle, until, validToken } from "../testing.ts";
import { RelayClient } from "./relay-client.ts";
import { agent, alice, bob, fakeRelay, handshake } from "./testing.ts";

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
