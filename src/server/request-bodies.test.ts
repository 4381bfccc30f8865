import assert from "node:assert/strict";
import { once } from "node:events";
import { type ClientHttp2Session, type ClientHttp2Stream, connect, constants } from "node:http2";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { encodeMessage } from "#base/flagged-messages.ts";
import { parseIp } from "#base/ip.ts";
import { PrivateKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { type Clock, ManualClock, systemClock } from "#base/time.ts";
import { createCandidateBody } from "#signal/protocol/offer.ts";
import { sealMessage } from "#signal/protocol/sealed-message.ts";
import { SIGNAL_SEND_PATH, SIGNAL_STREAM_PATH } from "#signal/protocol/signal-service.ts";
import { createSignalServer } from "#signal/server/signal-server.ts";
import { createFront, type FrontLimits } from "./front.ts";

const MIB = 1024 * 1024;

/** A front with the signal service. */
async function open(options: { limits?: Partial<FrontLimits>; clock?: Clock } = {}) {
  const deps = { clock: options.clock ?? systemClock, log: silentLogger };
  const signal = createSignalServer(deps);
  const front = await createFront(
    deps,
    { listen: { address: parseIp("127.0.0.1"), port: 0 }, limits: options.limits ?? {} },
    {
      request: (_, request, response) => signal.handle(request as never, response as never),
      isEndless: (path) => path === SIGNAL_STREAM_PATH,
      upgrade: () => false,
    },
  );
  const sessions: ClientHttp2Session[] = [];
  return {
    front,
    session() {
      const session = connect(`http://127.0.0.1:${front.endpoint.port}`);
      session.on("error", () => {});
      sessions.push(session);
      return session;
    },
    async [Symbol.asyncDispose]() {
      for (const session of sessions) session.destroy();
      signal.close();
      await front.close(0);
    },
  };
}

/** A Send whose body is begun with `bytes` of a message that is longer. */
function unfinished(session: ClientHttp2Session, bytes: number, headers: Record<string, string> = {}) {
  const call = session.request({
    ":method": "POST",
    ":path": SIGNAL_SEND_PATH,
    "content-type": "application/grpc",
    ...headers,
  });
  call.on("error", () => {});
  const frame = Buffer.alloc(bytes);
  frame.writeUInt32BE(4 * MIB, 1);
  call.write(frame);
  return call;
}

async function send(session: ClientHttp2Session, bytes: number): Promise<string | undefined> {
  const call = session.request({
    ":method": "POST",
    ":path": SIGNAL_SEND_PATH,
    "content-type": "application/grpc",
    te: "trailers",
  });
  call.on("error", () => {});
  let status: string | undefined;
  call.on("trailers", (trailers) => {
    status = trailers["grpc-status"] as string;
  });
  const body = createCandidateBody("x".repeat(bytes));
  call.end(encodeMessage(sealMessage(body, PrivateKey.generate().publicKey, PrivateKey.generate())));
  call.resume();
  await once(call, "close");
  return status;
}

async function until(what: string, condition: () => boolean): Promise<void> {
  for (let i = 0; i < 600; i++) {
    if (condition()) return;
    await sleep(5);
  }
  assert.fail(`did not happen within 3 s: ${what}`);
}

const codeOf = async (call: ClientHttp2Stream): Promise<number | undefined> => {
  await until("the call to end", () => call.destroyed);
  return call.rstCode;
};

test("a connection can make the server hold no more than 8 MiB of unfinished messages", async () => {
  await using server = await open();
  const session = server.session();
  const calls = Array.from({ length: 60 }, () => unfinished(session, 2 * MIB));
  await until("57 to be reset", () => calls.filter((call) => call.closed).length >= 57);
  assert.equal(
    await codeOf(calls.find((call) => call.closed) as ClientHttp2Stream),
    constants.NGHTTP2_ENHANCE_YOUR_CALM,
  );
  await sleep(100);
  const { bodyBytes, bodiesRefused } = server.front.stats;
  assert.ok(bodyBytes > 4 * MIB && bodyBytes <= 8 * MIB, `${bodyBytes} bytes`);
  assert.equal(bodiesRefused, calls.filter((call) => call.closed).length);
  assert.equal(await send(session, 1000), "0", "a small message passes all the same");
  for (const call of calls) call.close();
  await until("nothing to be held", () => server.front.stats.bodyBytes === 0);
  assert.equal(await send(session, 3 * MIB), "0", "and a large one when there is room");
});

test("a dozen messages of half a megabyte pass at the same moment", async () => {
  await using server = await open();
  const session = server.session();
  const statuses = await Promise.all(Array.from({ length: 12 }, () => send(session, MIB / 2)));
  assert.deepEqual(new Set(statuses), new Set(["0"]));
  assert.equal(server.front.stats.bodyBytes, 0);
});

test("tiny frames cost what they take in memory", async () => {
  await using server = await open({ limits: { maxBodyBytesPerConnection: 100_000 } });
  const session = server.session();
  const call = unfinished(session, 10);
  for (let i = 0; i < 1000 && !call.closed; i++) {
    await new Promise((resolve) => call.write(Buffer.alloc(1), resolve));
    await new Promise(setImmediate);
  }
  assert.equal(await codeOf(call), constants.NGHTTP2_ENHANCE_YOUR_CALM);
});

test("when the server holds too much, the calls of those who hold the most go", async () => {
  await using server = await open({ limits: { maxBodyBytes: 4 * MIB } });
  const modest = unfinished(server.session(), MIB / 2);
  await until("the modest", () => server.front.stats.bodyBytes >= MIB / 2);
  const greedy = server.session();
  const calls = [unfinished(greedy, 2 * MIB), unfinished(greedy, 2 * MIB)];
  for (const call of calls) assert.equal(await codeOf(call), constants.NGHTTP2_ENHANCE_YOUR_CALM);
  assert.equal(modest.closed, false);
  assert.ok(server.front.stats.bodyBytes < MIB);
});

test("a body that does not end in 15 s, or in the call's own time, is given up; a registration lasts", async () => {
  const clock = new ManualClock();
  await using server = await open({ clock });
  const session = server.session();
  const hasty = unfinished(session, 100, { "grpc-timeout": "1500m" });
  const patient = unfinished(session, 100, { "grpc-timeout": "1H" });
  const silent = unfinished(session, 100);
  const stream = session.request({
    ":method": "POST",
    ":path": SIGNAL_STREAM_PATH,
    "content-type": "application/grpc",
    "x-wiretrustee-peer-id": "someone",
  });
  stream.on("error", () => {});
  await once(stream, "response");
  await until("all calls", () => server.front.stats.bodyBytes > 300);
  clock.advance(1_499);
  await sleep(30);
  assert.equal(hasty.closed, false);
  clock.advance(1);
  assert.equal(await codeOf(hasty), constants.NGHTTP2_ENHANCE_YOUR_CALM);
  clock.advance(13_499);
  await sleep(30);
  assert.equal(patient.closed || silent.closed, false);
  clock.advance(1);
  for (const call of [patient, silent]) assert.equal(await codeOf(call), constants.NGHTTP2_ENHANCE_YOUR_CALM);
  assert.equal(server.front.stats.bodyTimeouts, 3);
  assert.equal(server.front.stats.bodyBytes, 0);
  clock.advance(5_000);
  await sleep(30);
  assert.equal(stream.closed, false);
});
