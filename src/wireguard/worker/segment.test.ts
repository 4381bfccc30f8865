import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Arena } from "./arena.ts";
import { buildPacket, isIntact, type PacketSpec } from "./packet-model.ts";
import { Segmenter } from "./segment.ts";

const AT = 64;
const arena = new Arena(1 << 17);
const memory = arena.bytes;

function place(packet: Uint8Array, virtio: readonly number[] | Uint8Array): void {
  memory.fill(0xee);
  memory.set(virtio, AT - 10);
  memory.set(packet, AT);
}

/** All segments, each copied when it is due, as the transmitter encrypts it. */
function segments(length: number): Uint8Array[] {
  const segmenter = new Segmenter(arena);
  const count = segmenter.begin(AT, length);
  return Array.from({ length: count }, (_, i) => {
    segmenter.segment(i, count);
    return memory.slice(segmenter.offset, segmenter.offset + segmenter.length);
  });
}

const u16 = (value: number): number[] => [value & 0xff, value >> 8];
const virtioHeader = (type: number, size: number, headerBytes: number, start: number, offset: number): number[] => [
  1,
  type,
  ...u16(headerBytes),
  ...u16(size),
  ...u16(start),
  ...u16(offset),
];

const packets = fc.record({
  v6: fc.boolean(),
  protocol: fc.constantFrom("tcp" as const, "udp" as const),
  payload: fc.uint8Array({ minLength: 1, maxLength: 9000 }),
  size: fc.integer({ min: 1, max: 1500 }),
  sequence: fc.nat(0xffffffff),
  id: fc.nat(0xffff),
  flags: fc.constantFrom(0x10, 0x18, 0x19, 0x90, 0x11),
  options: fc.constantFrom(new Uint8Array(0), Uint8Array.of(1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8)),
});

test("a super-packet becomes the packets that the slow model builds, and its neighbours stay untouched", () => {
  fc.assert(
    fc.property(packets, ({ size, ...spec }) => {
      const tcp = spec.protocol === "tcp";
      const packet = buildPacket(spec);
      const ipBytes = spec.v6 ? 40 : 20;
      const headerBytes = packet.length - spec.payload.length;
      const type = tcp ? (spec.v6 ? 4 : 1) : 5;
      place(packet, virtioHeader(type, size, headerBytes, ipBytes, tcp ? 16 : 6));
      const made = segments(packet.length);
      const count = Math.ceil(spec.payload.length / size);
      assert.equal(made.length, count);
      made.forEach((segment, i) => {
        let flags = spec.flags;
        if (i < count - 1) flags &= ~9;
        if (i > 0) flags &= ~0x80;
        const expected: PacketSpec = {
          ...spec,
          payload: spec.payload.subarray(i * size, (i + 1) * size),
          sequence: (spec.sequence + i * size) >>> 0,
          id: (spec.id + i) & 0xffff,
          flags,
        };
        assert.deepEqual(Buffer.from(segment), Buffer.from(buildPacket(expected)));
      });
      assert.ok(memory.subarray(AT + packet.length).every((byte) => byte === 0xee));
    }),
    { numRuns: 300 },
  );
});

test("an unfinished checksum is finished, and a UDP sum of zero becomes all ones", () => {
  for (const protocol of ["tcp", "udp"] as const) {
    for (const v6 of [false, true]) {
      for (let seed = 0; seed < 300; seed++) {
        const payload = Uint8Array.of(seed >> 8, seed, 7);
        const whole = buildPacket({ v6, protocol, payload });
        const ipBytes = v6 ? 40 : 20;
        const field = ipBytes + (protocol === "tcp" ? 16 : 6);
        const packet = whole.slice();
        // The pseudo-header's sum in the field: found from the finished checksum by leaving out the rest.
        let sum = 0xffff - ((packet[field]! << 8) | packet[field + 1]!);
        packet.set([0, 0], field);
        for (let i = ipBytes; i < packet.length; i += 2) {
          sum -= packet[i]! * 256 + (packet[i + 1] ?? 0);
          if (sum < 0) sum += 0xffff;
        }
        packet.set([sum >> 8, sum & 0xff], field);
        place(packet, virtioHeader(0, 0, 0, ipBytes, field - ipBytes));
        const [made] = segments(packet.length);
        assert.ok(isIntact(made!), `${protocol} ${v6} ${seed}`);
        assert.deepEqual(Buffer.from(made!), Buffer.from(whole));
      }
    }
  }
});

test("whatever the header claims, no segment lies outside the packet", () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 1, maxLength: 400 }),
      fc.uint8Array({ minLength: 10, maxLength: 10 }),
      fc.constantFrom(0, 0x45, 0x60, 0x4f),
      fc.constantFrom(0, 6, 17),
      (bytes, virtio, first, protocol) => {
        if (first !== 0) bytes[0] = first;
        if (protocol !== 0 && bytes.length > 20) {
          bytes[9] = protocol;
          bytes[6] = protocol;
        }
        virtio[1] = [0, 1, 4, 5, 3, 0x81][virtio[1]! % 6]!;
        place(bytes, virtio);
        const segmenter = new Segmenter(arena);
        const count = segmenter.begin(AT, bytes.length);
        for (let i = 0; i < count; i++) {
          segmenter.segment(i, count);
          assert.ok(segmenter.offset >= AT && segmenter.length >= 0);
          assert.ok(segmenter.offset + segmenter.length <= AT + bytes.length);
        }
        assert.ok(memory.subarray(AT + bytes.length, AT + bytes.length + 64).every((byte) => byte === 0xee));
      },
    ),
    { numRuns: 2000 },
  );
});
