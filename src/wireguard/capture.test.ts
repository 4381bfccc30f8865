import assert from "node:assert/strict";
import { test } from "node:test";
import { ManualClock } from "#base/time.ts";
import { CaptureHost, type CaptureOptions, type PacketCapture } from "./capture.ts";
import type { CaptureTarget } from "./worker/data-plane.ts";
import { Captured, RECORD_HEADER_BYTES, RecordField } from "./worker/records.ts";

function setUp(options: CaptureOptions = {}, slot?: number) {
  const clock = new ManualClock(5_000);
  const targets: CaptureTarget[] = [];
  let stops = 0;
  const plane = {
    interfaceName: "wg-test",
    startCapture: (target: CaptureTarget) => void targets.push(target),
    stopCapture: () => void stops++,
  };
  const host = new CaptureHost({ clock, plane });
  const capture = host.start(options, slot);
  /** What the data worker does with one packet. */
  const packet = (what: Captured, length: number): boolean => {
    const { ring, snapLength, filled } = targets.at(-1)!;
    const kept = Math.min(length, snapLength);
    const at = ring.begin(RECORD_HEADER_BYTES + kept);
    if (at < 0) {
      ring.countDropped();
      return false;
    }
    ring.bytes[at + RecordField.opcode] = what;
    ring.view.setUint32(at + RecordField.argument, length, true);
    ring.view.setFloat64(at + RecordField.time, clock.now() - 0.5, true);
    ring.view.setUint32(at + RecordField.payloadBytes, kept, true);
    ring.bytes.fill(0x45, at + RecordField.payload, at + RecordField.payload + kept);
    ring.commit();
    if (ring.consumerSleeps()) filled();
    return true;
  };
  return { clock, host, capture, targets, packet, stops: () => stops };
}

async function readAll(capture: PacketCapture): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of capture) chunks.push(chunk);
  return Buffer.concat(chunks);
}

/** Types of the blocks, from a walk over the whole file by the lengths at both ends of each. */
function blocks(file: Buffer): { type: number; body: Buffer }[] {
  const found: { type: number; body: Buffer }[] = [];
  for (let at = 0; at < file.length; ) {
    const total = file.readUInt32LE(at + 4);
    assert.equal(file.readUInt32LE(at + total - 4), total);
    assert.equal(total % 4, 0);
    found.push({ type: file.readUInt32LE(at), body: file.subarray(at + 8, at + total - 4) });
    at += total;
  }
  return found;
}

test("packets become blocks with time, direction, length and what became of them; the end counts them", async () => {
  const { clock, capture, packet } = setUp({ snapLength: 90 });
  packet(Captured.waiting, 1401);
  packet(Captured.inbound, 61);
  packet(Captured.filtered, 40);
  capture.stop();
  const [section, description, first, second, third, counters, ...rest] = blocks(await readAll(capture));
  assert.deepEqual(
    [section!.type, description!.type, first!.type, counters!.type, rest.length],
    [0x0a0d0d0a, 1, 6, 5, 0],
  );
  assert.equal(description!.body.readUInt16LE(0), 101);
  assert.equal(description!.body.readUInt32LE(4), 90);
  const micros = first!.body.readUInt32LE(4) * 2 ** 32 + first!.body.readUInt32LE(8);
  assert.equal(micros, (clock.wall() - 0.5) * 1000);
  assert.deepEqual([first!.body.readUInt32LE(12), first!.body.readUInt32LE(16)], [90, 1401]);
  const after = (body: Buffer, bytes: number): string => body.subarray(20 + ((bytes + 3) & ~3)).toString("hex");
  assert.match(after(first!.body, 90), /^0200040002000000010013007761697473/);
  assert.match(after(second!.body, 61), /^020004000100000000000000$/);
  assert.match(after(third!.body, 40), /^02000400010000000100..0064726f70706564/);
  assert.deepEqual(capture.summary, { packets: 3, bytes: capture.summary.bytes, dropped: 0, end: "stopped" });
});

test("a reader that waits gets each packet when it comes, and the rest when the capture ends", async () => {
  const { capture, packet, stops, clock } = setUp({ duration: 1_000 });
  const reader = capture[Symbol.asyncIterator]();
  await reader.next();
  for (let i = 1; i <= 3; i++) {
    const next = reader.next();
    packet(Captured.outbound, 100);
    assert.equal(blocks(Buffer.from((await next).value as Uint8Array)).length, 1);
    assert.equal(capture.summary.packets, i);
  }
  const last = reader.next();
  clock.advance(1_000);
  assert.equal(blocks(Buffer.from((await last).value as Uint8Array))[0]!.type, 5);
  assert.equal((await reader.next()).done, true);
  assert.equal(capture.summary.end, "duration");
  assert.equal(stops(), 1);
  assert.equal(clock.pending, 0);
});

test("bounds of packets and bytes hold exactly, whatever else is in the ring", async () => {
  const counted = setUp({ maxPackets: 2 });
  for (let i = 0; i < 5; i++) counted.packet(Captured.inbound, 100);
  assert.equal(blocks(await readAll(counted.capture)).filter(({ type }) => type === 6).length, 2);
  assert.deepEqual([counted.capture.summary.end, counted.stops()], ["packets", 1]);

  const sized = setUp({ maxBytes: 1_000 });
  for (let i = 0; i < 20; i++) sized.packet(Captured.inbound, 100);
  const file = await readAll(sized.capture);
  assert.equal(sized.capture.summary.end, "bytes");
  assert.ok(file.length > 800 && file.length - 44 <= 1_000, `${file.length}`);
});

test("what a slow reader missed is counted, and said in the file", async () => {
  const { capture, packet } = setUp();
  let sent = 0;
  while (packet(Captured.outbound, 60_000)) sent++;
  packet(Captured.outbound, 60_000);
  capture.stop();
  const counters = blocks(await readAll(capture)).at(-1)!.body;
  assert.deepEqual([counters.readUInt32LE(16), counters.readUInt32LE(28)], [sent + 2, 2]);
  assert.deepEqual([capture.summary.packets, capture.summary.dropped], [sent, 2]);
});

test("a second capture ends the first, a removed peer its own, a reader that leaves what it read", async () => {
  const { host, capture, stops, targets } = setUp({}, 4);
  host.notePeerRemoved(5);
  assert.equal(capture.summary.end, undefined);
  const second = host.start({ snapLength: 64 }, undefined);
  assert.equal(capture.summary.end, "replaced");
  assert.equal(targets.at(-1)!.snapLength, 64);
  host.notePeerRemoved(4);
  assert.equal(second.summary.end, undefined, "it is about all peers");
  for await (const _ of second) break;
  assert.equal(second.summary.end, "stopped");
  assert.equal(stops(), 2);
  const third = host.start({}, 4);
  host.notePeerRemoved(4);
  assert.equal(third.summary.end, "peer-removed");
  for (const snapLength of [0, 1.5, 65_576]) assert.throws(() => host.start({ snapLength }, undefined), RangeError);
});
