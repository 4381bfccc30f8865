import assert from "node:assert/strict";
import { test } from "node:test";
import { ManualClock } from "#base/time.ts";
import { relayHost, settle, until } from "../testing.ts";
import { agent, alice, bob, eve, handshake } from "./testing.ts";

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
