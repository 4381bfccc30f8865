import { createCipheriv, randomBytes } from "node:crypto";
import { libc, NetError } from "#net/libc.ts";
import type { Aead } from "./aead-evp.ts";
import type { Arena } from "./arena.ts";

const KEY_BYTES = 32;
const TAG_BYTES = 16;
/** Odd on purpose: a whole block and a part. */
const PLAINTEXT_BYTES = 101;
const COUNTER_LOW = 0x01020304;
const COUNTER_HIGH = 0x0005;

/**
 * Proves at start that OpenSSL does through raw addresses what node:crypto does: seals, compares, opens, and refuses a
 * forged tag. Throws NetError `ffi-missing` when any of it is wrong.
 */
export function selfTest(arena: Arena, aead: Aead): void {
  const key = new Uint8Array(new ArrayBuffer(KEY_BYTES));
  key.set(randomBytes(KEY_BYTES));
  const plaintext = randomBytes(PLAINTEXT_BYTES);
  const nonce = new Uint8Array(12);
  new DataView(nonce.buffer).setUint32(4, COUNTER_LOW, true);
  new DataView(nonce.buffer).setUint32(8, COUNTER_HIGH, true);
  const cipher = createCipheriv("chacha20-poly1305", key, nonce, { authTagLength: TAG_BYTES });
  const expected = Buffer.concat([cipher.update(plaintext), cipher.final(), cipher.getAuthTag()]);

  const place = arena.take(PLAINTEXT_BYTES + TAG_BYTES);
  const address = arena.base + place;
  const keyAddress = libc().addressOf(key);
  const at = (): Uint8Array => arena.bytes.subarray(place, place + expected.length);
  const equal = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

  arena.bytes.set(plaintext, place);
  aead.seal(keyAddress, COUNTER_LOW, COUNTER_HIGH, address, PLAINTEXT_BYTES, address);
  const sealed = equal(at(), expected);
  const opened =
    aead.open(keyAddress, COUNTER_LOW, COUNTER_HIGH, address, PLAINTEXT_BYTES) &&
    equal(at().subarray(0, PLAINTEXT_BYTES), plaintext);
  arena.bytes.set(expected, place);
  arena.bytes[place + PLAINTEXT_BYTES]! ^= 1;
  const refused = !aead.open(keyAddress, COUNTER_LOW, COUNTER_HIGH, address, PLAINTEXT_BYTES);
  at().fill(0);
  key.fill(0);
  if (!sealed || !opened || !refused)
    throw new NetError("ffi-missing", "OpenSSL through koffi does not compute ChaCha20-Poly1305 correctly");
}
