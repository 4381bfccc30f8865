import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Arena } from "./arena.ts";
import { addBytes, finish, fold } from "./checksum.ts";

/** RFC 1071 as it is written: big-endian words, carries added back at once. */
function plainSum(bytes: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) {
    sum += bytes[i]! * 256 + (bytes[i + 1] ?? 0);
    if (sum > 0xffff) sum -= 0xffff;
  }
  return sum;
}

const swapped = (value: number): number => ((value & 0xff) << 8) | (value >> 8);

test("the sum with vectors and without equals the plain one, at any offset and length", () => {
  const arenas = [new Arena(1 << 17), new Arena(1 << 17, false)];
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 3000 }), fc.nat(40), (bytes, offset) => {
      for (const arena of arenas) {
        arena.bytes.set(bytes, offset);
        assert.equal(fold(arena.addBytes(offset, bytes.length, 0)) % 0xffff, swapped(plainSum(bytes)) % 0xffff);
      }
    }),
  );
});

test("64 KiB of ones overflow nothing", () => {
  const arenas = [new Arena(1 << 17), new Arena(1 << 17, false)];
  for (const arena of arenas) {
    arena.bytes.fill(0xff);
    assert.equal(arena.addBytes(3, 65_535, 0), 32_767 * 65_535 + 255);
  }
});

test("the example of RFC 1071, section 3", () => {
  const bytes = Uint8Array.of(0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7);
  const sum = addBytes(new DataView(bytes.buffer), 0, 8, 0);
  assert.equal(swapped(fold(sum)), 0xddf2);
  assert.equal(swapped(finish(sum)), 0xffff - 0xddf2);
});
