import assert from "node:assert/strict";
import { createHash, createHmac, randomBytes } from "node:crypto";
import { describe, it } from "node:test";
import { blake2s } from "@noble/hashes/blake2.js";
import { hash, hmac, mac, macState, macWithState } from "./blake2s.ts";
import { kdf1, kdf2, kdf3 } from "./kdf.ts";

const equal = (actual: Uint8Array, expected: Uint8Array, what: string): void =>
  assert.equal(Buffer.from(actual).toString("hex"), Buffer.from(expected).toString("hex"), what);

describe("BLAKE2s", () => {
  it("hashes every length up to four blocks like node:crypto, in one part or several", () => {
    for (let length = 0; length <= 256; length++) {
      const data = randomBytes(length);
      const expected = createHash("blake2s256").update(data).digest();
      equal(hash(data), expected, `${length} bytes`);
      const cut = (length * 7) % (length + 1);
      equal(hash(data.subarray(0, cut), data.subarray(cut)), expected, `${length} bytes cut at ${cut}`);
    }
  });

  it("makes the keyed MAC of lengths 0, 1, 63 to 65, 116, 127 to 129 and 148 like noble", () => {
    for (const keyLength of [1, 16, 32]) {
      const key = randomBytes(keyLength);
      for (const length of [0, 1, 63, 64, 65, 116, 127, 128, 129, 148]) {
        const data = randomBytes(length);
        const expected = blake2s(data, { key, dkLen: 16 });
        equal(mac(key, data), expected, `${length} bytes`);
        if (length > 0) equal(macWithState(macState(key), data), expected, `${length} bytes, key block ready`);
        equal(mac(key, data.subarray(0, length >> 1), data.subarray(length >> 1)), expected, "in two parts");
      }
    }
  });

  it("makes a MAC that is not the start of a longer digest", () => {
    const key = randomBytes(32);
    const data = randomBytes(116);
    assert.notDeepEqual(Buffer.from(mac(key, data)), Buffer.from(blake2s(data, { key, dkLen: 32 }).subarray(0, 16)));
  });

  it("leaves a precomputed key block usable", () => {
    const key = macState(randomBytes(32));
    const data = randomBytes(148);
    equal(macWithState(key, data, 116), macWithState(key, data, 116), "second time");
  });

  it("refuses keys that do not fit", () => {
    assert.throws(() => macState(new Uint8Array(33)), RangeError);
    assert.throws(() => hmac(new Uint8Array(65), new Uint8Array(1)), RangeError);
    assert.throws(() => macWithState(macState(new Uint8Array(32)), new Uint8Array(0)), RangeError);
  });
});

describe("HMAC and Kdf", () => {
  const reference = (key: Uint8Array, ...parts: Uint8Array[]): Buffer =>
    parts.reduce((h, part) => h.update(part), createHmac("blake2s256", key)).digest();

  it("make HMAC like node:crypto", () => {
    for (const length of [0, 1, 31, 32, 33, 63, 64, 65, 200]) {
      const key = randomBytes(Math.min(length, 64));
      const data = randomBytes(length);
      equal(hmac(key, data), reference(key, data), `${length} bytes`);
    }
  });

  it("derive one, two and three keys as the paper says", () => {
    const chainingKey = randomBytes(32);
    for (const input of [new Uint8Array(0), randomBytes(32)]) {
      const secret = reference(chainingKey, input);
      const first = reference(secret, Uint8Array.of(1));
      const second = reference(secret, first, Uint8Array.of(2));
      const third = reference(secret, second, Uint8Array.of(3));
      equal(kdf1(chainingKey, input), first, "kdf1");
      kdf2(chainingKey, input).forEach((key, i) => {
        equal(key, [first, second][i]!, `kdf2 ${i}`);
      });
      kdf3(chainingKey, input).forEach((key, i) => {
        equal(key, [first, second, third][i]!, `kdf3 ${i}`);
      });
    }
  });
});
