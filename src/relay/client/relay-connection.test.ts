import assert from "node:assert/strict";
import { once } from "node:events";
import type { Socket } from "node:net";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import { ManualClock } from "#base/time.ts";
import {
  CLOSE_MESSAGE,
  encodePeerList,
  encodeTransport,
  HEALTH_CHECK_MESSAGE,
  RelayType,
} from "../protocol/messages.ts";
import { PeerId } from "../protocol/peer-id.ts";
import { settle, until } from "../testing.ts";
import { agent, alice, bob, fakeRelay, handshake } from "./testing.ts";

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
