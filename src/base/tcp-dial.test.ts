import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, createServer, Socket } from "node:net";
import { test } from "node:test";
import { DIALS_MAX, dialTcp, REDIAL_INTERVAL } from "./tcp-dial.ts";
import { ManualClock } from "./time.ts";

async function listen() {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { server, port: (server.address() as AddressInfo).port };
}

function dial(clock: ManualClock, port: number) {
  const result = Promise.withResolvers<Socket | Error>();
  const stop = dialTcp(
    clock,
    { host: "127.0.0.1", port },
    { connected: result.resolve, failed: (error) => result.resolve(error) },
  );
  return { stop, result: result.promise };
}

test("connects, and leaves no timer", async () => {
  const clock = new ManualClock();
  const { server, port } = await listen();
  const socket = await dial(clock, port).result;
  assert.ok(!(socket instanceof Error));
  assert.equal(clock.pending, 0);
  socket.destroy();
  server.close();
});

test("a refusal is told at once, and leaves no timer", async () => {
  const clock = new ManualClock();
  const { server, port } = await listen();
  server.close();
  await once(server, "close");
  assert.match(String(await dial(clock, port).result), /ECONNREFUSED/);
  assert.equal(clock.pending, 0);
});

test("giving up says nothing and leaves nothing", async () => {
  const clock = new ManualClock();
  const { server, port } = await listen();
  const { stop, result } = dial(clock, port);
  stop();
  stop();
  assert.equal(clock.pending, 0);
  await clock.advance(10 * REDIAL_INTERVAL);
  assert.equal(await Promise.race([result, new Promise((resolve) => setTimeout(resolve, 50, "nothing"))]), "nothing");
  server.close();
});

test("silence is met with another attempt every 1.5 s, four at most at once, and the first connection wins", async () => {
  const clock = new ManualClock();
  const opened: Socket[] = [];
  const connected: Socket[] = [];
  dialTcp(
    clock,
    { host: "silent", port: 1 },
    { connected: (socket) => connected.push(socket), failed: (error) => assert.fail(error) },
    () => {
      const socket = new Socket();
      opened.push(socket);
      return socket;
    },
  );
  await clock.advance(6 * REDIAL_INTERVAL);
  assert.equal(opened.length, 7);
  assert.equal(opened.filter(({ destroyed }) => !destroyed).length, DIALS_MAX);
  opened[0]!.emit("connect");
  assert.deepEqual(connected, [], "given up before");
  opened[5]!.emit("connect");
  opened[6]!.emit("connect");
  assert.deepEqual(connected, [opened[5]]);
  assert.deepEqual(
    opened.map(({ destroyed }) => destroyed),
    [true, true, true, true, true, false, true],
  );
  assert.equal(clock.pending, 0);
  opened[5]!.destroy();
});
