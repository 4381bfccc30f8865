import assert from "node:assert/strict";
import { Duplex } from "node:stream";
import { test } from "node:test";
import fc from "fast-check";
import { ManualClock } from "#base/time.ts";
import vectors from "../../../test/vectors/relay.json" with { type: "json" };
import { FrameWriter } from "./frame-writer.ts";

/** A socket whose writes complete when told to. */
class SlowSocket extends Duplex {
  readonly writes: Buffer[] = [];
  #accept: (() => void) | undefined;

  override _read(): void {}

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    // The writer takes its buffer back once the write is done.
    this.writes.push(Buffer.from(chunk));
    this.#accept = done;
  }

  async accept(): Promise<void> {
    this.#accept?.();
    await new Promise((resolve) => setImmediate(resolve));
  }
}

function setup(mask = false, limits = {}) {
  const clock = new ManualClock();
  const socket = new SlowSocket();
  let scheduled: (() => void)[] = [];
  let stalls = 0;
  const writer = new FrameWriter(
    { clock, schedule: (flush) => void scheduled.push(flush), stalled: () => stalls++ },
    { mask, maxBytes: 256 * 1024, maxAgeMs: 250, maxHandshakeBytes: 65536, stallMs: 10_000, ...limits },
  );
  const turn = (): void => {
    const flushes = scheduled;
    scheduled = [];
    for (const flush of flushes) flush();
  };
  return { clock, socket, writer, turn, stalls: () => stalls, scheduled: () => scheduled.length };
}

/** Reads frames as a WebSocket receiver does. */
function parseFrames(bytes: Buffer): Buffer[] {
  const frames: Buffer[] = [];
  for (let at = 0; at < bytes.length; ) {
    assert.equal(bytes[at], 0x82);
    const masked = (bytes[at + 1]! & 0x80) !== 0;
    let length = bytes[at + 1]! & 0x7f;
    assert.notEqual(length, 127);
    at += 2;
    if (length === 126) {
      length = bytes.readUInt16BE(at);
      at += 2;
    }
    const mask = masked ? bytes.subarray(at, at + 4) : undefined;
    if (mask) at += 4;
    const payload = Buffer.from(bytes.subarray(at, at + length));
    assert.equal(payload.length, length);
    if (mask) for (let i = 0; i < length; i++) payload[i]! ^= mask[i % 4]!;
    frames.push(payload);
    at += length;
  }
  return frames;
}

test("13.10: the server's frame, byte for byte; 13.11: the form of the client's", () => {
  const down = setup();
  down.writer.open(down.socket);
  down.writer.pushOwn(Buffer.from(vectors.healthCheck, "hex"));
  down.turn();
  assert.equal(down.socket.writes[0]?.toString("hex"), vectors.healthCheckFrameDown);
  const up = setup(true);
  up.writer.open(up.socket);
  up.writer.pushOwn(Buffer.from(vectors.healthCheck, "hex"));
  up.turn();
  assert.equal(up.socket.writes[0]?.length, vectors.healthCheckFrameUp.hex.length / 2);
  assert.equal(up.socket.writes[0]?.toString("hex", 0, 2), vectors.healthCheckFrameUp.hex.slice(0, 4));
  assert.deepEqual(parseFrames(up.socket.writes[0]!), [Buffer.from(vectors.healthCheck, "hex")]);
  assert.deepEqual(parseFrames(Buffer.from(vectors.healthCheckFrameUp.hex, "hex")), [
    Buffer.from(vectors.healthCheck, "hex"),
  ]);
});

test("what is pushed in one turn leaves in one write", () => {
  const { writer, socket, turn, scheduled } = setup();
  writer.open(socket);
  for (let i = 0; i < 40; i++) writer.pushData("x", Buffer.alloc(1350, i));
  assert.equal(scheduled(), 1);
  turn();
  assert.equal(socket.writes.length, 1);
  assert.deepEqual(
    parseFrames(socket.writes[0]!).map((frame) => frame[0]),
    Array.from({ length: 40 }, (_, i) => i),
  );
});

test("while the system takes nothing, messages wait and the oldest data goes", async () => {
  const { writer, socket, turn } = setup(false, { maxBytes: 3000 });
  writer.open(socket);
  writer.pushData("x", Buffer.alloc(1000, 1));
  turn();
  for (const fill of [2, 3, 4, 5]) writer.pushData("x", Buffer.alloc(1000, fill));
  writer.pushHandshake(Buffer.alloc(148, 9));
  assert.equal(writer.dropped, 1);
  assert.ok(writer.isBlocked);
  assert.equal(socket.writes.length, 1);
  await socket.accept();
  assert.deepEqual(
    parseFrames(socket.writes[1]!).map((frame) => frame[0]),
    [9, 3, 4, 5],
  );
});

test("messages given before the socket leave when it is there", () => {
  const { writer, socket } = setup(true);
  writer.pushHandshake(Buffer.from("handshake"));
  writer.pushOwn(Buffer.from("auth"));
  writer.open(socket);
  assert.deepEqual(parseFrames(socket.writes[0]!).map(String), ["auth", "handshake"]);
});

test("a write that is not taken in time is a stall; one that is taken is not", async () => {
  const { clock, writer, socket, turn, stalls } = setup();
  writer.open(socket);
  writer.pushOwn(Buffer.alloc(10));
  turn();
  clock.advance(9_000);
  await socket.accept();
  writer.pushOwn(Buffer.alloc(10));
  turn();
  clock.advance(9_000);
  assert.equal(stalls(), 0);
  clock.advance(1_000);
  assert.equal(stalls(), 1);
});

test("drain resolves when all was handed over, and nothing more is taken", async () => {
  const { writer, socket, turn } = setup();
  writer.open(socket);
  writer.pushData("x", Buffer.alloc(100, 1));
  turn();
  writer.pushOwn(Buffer.alloc(2, 2));
  let drained = false;
  const done = writer.drain().then(() => {
    drained = true;
  });
  writer.pushOwn(Buffer.alloc(2, 3));
  await socket.accept();
  assert.equal(drained, false);
  await socket.accept();
  await done;
  assert.equal(socket.writes.length, 2);
});

test("any mix of lengths comes out whole, masked or not", async () => {
  const lengths = fc.array(fc.oneof(fc.integer({ min: 0, max: 200 }), fc.integer({ min: 0, max: 8820 })), {
    maxLength: 60,
  });
  await fc.assert(
    fc.asyncProperty(lengths, fc.boolean(), async (sizes, mask) => {
      const { writer, socket, turn } = setup(mask, { maxBytes: 1e9 });
      writer.open(socket);
      const messages = sizes.map((size, i) => Buffer.alloc(size, i + 1));
      for (const message of messages) writer.pushOwn(message);
      turn();
      while (writer.queuedBytes > 0 || writer.isBlocked) await socket.accept();
      assert.deepEqual(parseFrames(Buffer.concat(socket.writes)), messages);
    }),
    { interruptAfterTimeLimit: 2000 },
  );
});

test("much that waits leaves at the end of the callback, little at the end of the turn", async () => {
  const { socket, writer, turn } = setup();
  writer.open(socket);
  writer.pushData("a", Buffer.alloc(1350, 1));
  await new Promise((resolve) => process.nextTick(resolve));
  assert.equal(socket.writes.length, 0);
  // What a socket reads at once.
  for (let i = 1; i < 48; i++) writer.pushData("a", Buffer.alloc(1350, 1));
  assert.equal(socket.writes.length, 0);
  await new Promise((resolve) => process.nextTick(resolve));
  assert.equal(parseFrames(Buffer.concat(socket.writes)).length, 48);
  assert.equal(socket.writes.length, 1);
  await socket.accept();
  turn();
  assert.equal(socket.writes.length, 1);
});
