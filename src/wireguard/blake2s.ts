/**
 * BLAKE2s (RFC 7693) as WireGuard uses it: 32-byte digests, HMAC over them, and the keyed 16-byte MAC. Written here
 * because node:crypto has no keyed BLAKE2s and no 16-byte output (cutting a 32-byte digest is another function), and
 * because a call into node:crypto costs ten times a compression. All state is 32-bit integers; scratch memory is shared
 * by the calls (they are synchronous) and wiped after keyed ones.
 */

export const BLAKE2S_BYTES = 32;
const BLOCK_BYTES = 64;

/** RFC 7693 section 2.6, the words of SHA-256. */
const IV = Int32Array.of(
  0x6a09e667,
  0xbb67ae85,
  0x3c6ef372,
  0xa54ff53a,
  0x510e527f,
  0x9b05688c,
  0x1f83d9ab,
  0x5be0cd19,
);

/** Message word order, ten rounds of sixteen (RFC 7693 section 2.7). */
const SIGMA = Uint8Array.from(
  (
    "0123456789abcdef" +
    "ea489fd61c02b753" +
    "b8c052fdae367194" +
    "7931dcbe265a40f8" +
    "905724afe1bc683d" +
    "2c6a0b834d75fe19" +
    "c51fed4a0763928b" +
    "db7ec13950f4862a" +
    "6fe9b308c2d714a5" +
    "a2847615fb9e3cd0"
  ).split(""),
  (digit) => Number.parseInt(digit, 16),
);

/** The message block of the running compression. */
const M = new Int32Array(16);

/**
 * One compression of `block` into `h`. `counter` is the number of bytes hashed including this block (below 2^32: no
 * WireGuard input comes near). The eight mixing steps are written out: as calls they are not inlined and cost double.
 */
function compress(h: Int32Array, block: Uint8Array, offset: number, counter: number, last: boolean): void {
  for (let i = 0, at = offset; i < 16; i++, at += 4) {
    M[i] = block[at]! | (block[at + 1]! << 8) | (block[at + 2]! << 16) | (block[at + 3]! << 24);
  }
  let v0 = h[0]!;
  let v1 = h[1]!;
  let v2 = h[2]!;
  let v3 = h[3]!;
  let v4 = h[4]!;
  let v5 = h[5]!;
  let v6 = h[6]!;
  let v7 = h[7]!;
  let v8 = IV[0]!;
  let v9 = IV[1]!;
  let v10 = IV[2]!;
  let v11 = IV[3]!;
  let v12 = IV[4]! ^ counter;
  let v13 = IV[5]!;
  let v14 = IV[6]! ^ (last ? -1 : 0);
  let v15 = IV[7]!;
  for (let s = 0; s < 160; s += 16) {
    v0 = (v0 + v4 + M[SIGMA[s + 0]!]!) | 0;
    v12 ^= v0;
    v12 = (v12 >>> 16) | (v12 << 16);
    v8 = (v8 + v12) | 0;
    v4 ^= v8;
    v4 = (v4 >>> 12) | (v4 << 20);
    v0 = (v0 + v4 + M[SIGMA[s + 1]!]!) | 0;
    v12 ^= v0;
    v12 = (v12 >>> 8) | (v12 << 24);
    v8 = (v8 + v12) | 0;
    v4 ^= v8;
    v4 = (v4 >>> 7) | (v4 << 25);
    v1 = (v1 + v5 + M[SIGMA[s + 2]!]!) | 0;
    v13 ^= v1;
    v13 = (v13 >>> 16) | (v13 << 16);
    v9 = (v9 + v13) | 0;
    v5 ^= v9;
    v5 = (v5 >>> 12) | (v5 << 20);
    v1 = (v1 + v5 + M[SIGMA[s + 3]!]!) | 0;
    v13 ^= v1;
    v13 = (v13 >>> 8) | (v13 << 24);
    v9 = (v9 + v13) | 0;
    v5 ^= v9;
    v5 = (v5 >>> 7) | (v5 << 25);
    v2 = (v2 + v6 + M[SIGMA[s + 4]!]!) | 0;
    v14 ^= v2;
    v14 = (v14 >>> 16) | (v14 << 16);
    v10 = (v10 + v14) | 0;
    v6 ^= v10;
    v6 = (v6 >>> 12) | (v6 << 20);
    v2 = (v2 + v6 + M[SIGMA[s + 5]!]!) | 0;
    v14 ^= v2;
    v14 = (v14 >>> 8) | (v14 << 24);
    v10 = (v10 + v14) | 0;
    v6 ^= v10;
    v6 = (v6 >>> 7) | (v6 << 25);
    v3 = (v3 + v7 + M[SIGMA[s + 6]!]!) | 0;
    v15 ^= v3;
    v15 = (v15 >>> 16) | (v15 << 16);
    v11 = (v11 + v15) | 0;
    v7 ^= v11;
    v7 = (v7 >>> 12) | (v7 << 20);
    v3 = (v3 + v7 + M[SIGMA[s + 7]!]!) | 0;
    v15 ^= v3;
    v15 = (v15 >>> 8) | (v15 << 24);
    v11 = (v11 + v15) | 0;
    v7 ^= v11;
    v7 = (v7 >>> 7) | (v7 << 25);
    v0 = (v0 + v5 + M[SIGMA[s + 8]!]!) | 0;
    v15 ^= v0;
    v15 = (v15 >>> 16) | (v15 << 16);
    v10 = (v10 + v15) | 0;
    v5 ^= v10;
    v5 = (v5 >>> 12) | (v5 << 20);
    v0 = (v0 + v5 + M[SIGMA[s + 9]!]!) | 0;
    v15 ^= v0;
    v15 = (v15 >>> 8) | (v15 << 24);
    v10 = (v10 + v15) | 0;
    v5 ^= v10;
    v5 = (v5 >>> 7) | (v5 << 25);
    v1 = (v1 + v6 + M[SIGMA[s + 10]!]!) | 0;
    v12 ^= v1;
    v12 = (v12 >>> 16) | (v12 << 16);
    v11 = (v11 + v12) | 0;
    v6 ^= v11;
    v6 = (v6 >>> 12) | (v6 << 20);
    v1 = (v1 + v6 + M[SIGMA[s + 11]!]!) | 0;
    v12 ^= v1;
    v12 = (v12 >>> 8) | (v12 << 24);
    v11 = (v11 + v12) | 0;
    v6 ^= v11;
    v6 = (v6 >>> 7) | (v6 << 25);
    v2 = (v2 + v7 + M[SIGMA[s + 12]!]!) | 0;
    v13 ^= v2;
    v13 = (v13 >>> 16) | (v13 << 16);
    v8 = (v8 + v13) | 0;
    v7 ^= v8;
    v7 = (v7 >>> 12) | (v7 << 20);
    v2 = (v2 + v7 + M[SIGMA[s + 13]!]!) | 0;
    v13 ^= v2;
    v13 = (v13 >>> 8) | (v13 << 24);
    v8 = (v8 + v13) | 0;
    v7 ^= v8;
    v7 = (v7 >>> 7) | (v7 << 25);
    v3 = (v3 + v4 + M[SIGMA[s + 14]!]!) | 0;
    v14 ^= v3;
    v14 = (v14 >>> 16) | (v14 << 16);
    v9 = (v9 + v14) | 0;
    v4 ^= v9;
    v4 = (v4 >>> 12) | (v4 << 20);
    v3 = (v3 + v4 + M[SIGMA[s + 15]!]!) | 0;
    v14 ^= v3;
    v14 = (v14 >>> 8) | (v14 << 24);
    v9 = (v9 + v14) | 0;
    v4 ^= v9;
    v4 = (v4 >>> 7) | (v4 << 25);
  }
  h[0]! ^= v0 ^ v8;
  h[1]! ^= v1 ^ v9;
  h[2]! ^= v2 ^ v10;
  h[3]! ^= v3 ^ v11;
  h[4]! ^= v4 ^ v12;
  h[5]! ^= v5 ^ v13;
  h[6]! ^= v6 ^ v14;
  h[7]! ^= v7 ^ v15;
}

const state = new Int32Array(8);
const buffer = new Uint8Array(BLOCK_BYTES);
const pad = new Uint8Array(BLOCK_BYTES);
const inner = new Uint8Array(BLAKE2S_BYTES);

/** Sets `h` to the start of a hash with `outputBytes` of digest and, in keyed mode, `keyBytes` of key. */
function begin(h: Int32Array, outputBytes: number, keyBytes: number): void {
  h.set(IV);
  h[0]! ^= 0x01010000 ^ (keyBytes << 8) ^ outputBytes;
}

/**
 * Hashes `parts` in order into `h`, of which `before` bytes (a multiple of the block) are already in, and finishes. The
 * last block carries the flag, so a full block is only compressed when more bytes follow it.
 */
function finish(h: Int32Array, before: number, parts: readonly Uint8Array[]): void {
  let counter = before;
  let used = 0;
  for (const part of parts) {
    let at = 0;
    while (at < part.length) {
      if (used === BLOCK_BYTES) {
        counter += BLOCK_BYTES;
        compress(h, buffer, 0, counter, false);
        used = 0;
      }
      const take = Math.min(BLOCK_BYTES - used, part.length - at);
      for (let i = 0; i < take; i++) buffer[used + i] = part[at + i]!;
      used += take;
      at += take;
    }
  }
  buffer.fill(0, used);
  compress(h, buffer, 0, counter + used, true);
}

function output(h: Int32Array, out: Uint8Array): Uint8Array {
  for (let i = 0; i < out.length; i++) out[i] = h[i >> 2]! >>> ((i & 3) * 8);
  return out;
}

function wipeScratch(): void {
  state.fill(0);
  buffer.fill(0);
  M.fill(0);
}

/** H of the paper: the 32-byte digest of all parts one after the other. */
export function hash(...parts: readonly Uint8Array[]): Uint8Array {
  begin(state, BLAKE2S_BYTES, 0);
  finish(state, 0, parts);
  return output(state, new Uint8Array(BLAKE2S_BYTES));
}

/** HMAC (RFC 2104) over BLAKE2s-256; `key` has at most 64 bytes. The caller wipes the result. */
export function hmac(key: Uint8Array, ...parts: readonly Uint8Array[]): Uint8Array {
  if (key.length > BLOCK_BYTES) throw new RangeError(`an HMAC key has at most ${BLOCK_BYTES} bytes, got ${key.length}`);
  for (let i = 0; i < BLOCK_BYTES; i++) pad[i] = (key[i] ?? 0) ^ 0x36;
  begin(state, BLAKE2S_BYTES, 0);
  finish(state, 0, [pad, ...parts]);
  output(state, inner);
  for (let i = 0; i < BLOCK_BYTES; i++) pad[i]! ^= 0x36 ^ 0x5c;
  begin(state, BLAKE2S_BYTES, 0);
  finish(state, 0, [pad, inner]);
  const digest = output(state, new Uint8Array(BLAKE2S_BYTES));
  pad.fill(0);
  inner.fill(0);
  wipeScratch();
  return digest;
}

/**
 * The hash state after the key block of a keyed BLAKE2s with 16 bytes of output: what stays the same for every message
 * under one key, 32 bytes per key. `key` has at most 32 bytes.
 */
export function macState(key: Uint8Array): Int32Array {
  if (key.length > BLAKE2S_BYTES)
    throw new RangeError(`a MAC key has at most ${BLAKE2S_BYTES} bytes, got ${key.length}`);
  const h = new Int32Array(8);
  begin(h, 16, key.length);
  buffer.fill(0);
  buffer.set(key);
  compress(h, buffer, 0, BLOCK_BYTES, false);
  wipeScratch();
  return h;
}

/** MAC of the paper over `bytes[0, end)` from a precomputed key block; `end` is at least 1. 16 bytes. */
export function macWithState(key: Int32Array, bytes: Uint8Array, end: number = bytes.length): Uint8Array {
  if (end < 1) throw new RangeError("a MAC with a precomputed key block needs at least one byte of data");
  state.set(key);
  let at = 0;
  while (end - at > BLOCK_BYTES) {
    at += BLOCK_BYTES;
    compress(state, bytes, at - BLOCK_BYTES, BLOCK_BYTES + at, false);
  }
  buffer.fill(0);
  for (let i = at; i < end; i++) buffer[i - at] = bytes[i]!;
  compress(state, buffer, 0, BLOCK_BYTES + end, true);
  const out = output(state, new Uint8Array(16));
  wipeScratch();
  return out;
}

/** MAC of the paper: keyed BLAKE2s with 16 bytes of output (the digest length is a parameter of the hash, not a cut). */
export function mac(key: Uint8Array, ...parts: readonly Uint8Array[]): Uint8Array {
  const bytes = parts.length === 1 ? parts[0]! : Buffer.concat(parts);
  if (bytes.length > 0) {
    const keyed = macState(key);
    const out = macWithState(keyed, bytes);
    keyed.fill(0);
    return out;
  }
  begin(state, 16, key.length);
  pad.fill(0);
  pad.set(key);
  finish(state, 0, [pad]);
  const out = output(state, new Uint8Array(16));
  pad.fill(0);
  wipeScratch();
  return out;
}
