import { createCipheriv, randomBytes } from "node:crypto";
import { libc } from "#net/libc.ts";
import type { Aead } from "./aead.ts";
import type { Arena } from "./arena.ts";

const KEY_BYTES = 32;
const TAG_BYTES = 16;
const LENGTHS = [0, 16, 101, 256, 1280, 1420, 4099];
const COUNTER_LOW = 0x01020304;
const COUNTER_HIGH = 0x0005;

/**
 * Whether OpenSSL does through raw addresses what node:crypto does, asked at each start: seals, compares, opens, and refuses a
 * forged tag, for lengths on each side of what its vector code treats apart.
 */
export function selfTest(arena: Arena, aead: Aead): boolean {
  const place = arena.take(Math.max(...LENGTHS) + TAG_BYTES);
  return LENGTHS.every((length) => holds(arena, aead, place, length));
}

function holds(arena: Arena, aead: Aead, place: number, length: number): boolean {
  const key = new Uint8Array(new ArrayBuffer(KEY_BYTES));
  key.set(randomBytes(KEY_BYTES));
  const plaintext = randomBytes(length);
  const nonce = new Uint8Array(12);
  new DataView(nonce.buffer).setUint32(4, COUNTER_LOW, true);
  new DataView(nonce.buffer).setUint32(8, COUNTER_HIGH, true);
  const cipher = createCipheriv("chacha20-poly1305", key, nonce, { authTagLength: TAG_BYTES });
  const expected = Buffer.concat([cipher.update(plaintext), cipher.final(), cipher.getAuthTag()]);

  const { base, bytes, view } = arena;
  const keyAddress = libc().addressOf(key);
  const at = bytes.subarray(place, place + expected.length);
  const open = (): boolean => {
    bytes.set(expected, place);
    return aead.open(keyAddress, COUNTER_LOW, COUNTER_HIGH, place, length);
  };
  bytes.set(plaintext, place);
  aead.seal(keyAddress, COUNTER_LOW, COUNTER_HIGH, base + place, length, view, place, base);
  const sealed = Buffer.compare(at, expected) === 0;
  const opened = open() && Buffer.compare(at.subarray(0, length), plaintext) === 0;
  expected[length]! ^= 1;
  const refused = !open();
  at.fill(0);
  key.fill(0);
  return sealed && opened && refused;
}
