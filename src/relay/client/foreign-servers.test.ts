import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { parseIp } from "#base/ip.ts";
import { ManualClock } from "#base/time.ts";
import { relayHost, settle, until } from "../testing.ts";
import { agent, alice, bob, eve, fakeRelay, handshake, pass } from "./testing.ts";

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
