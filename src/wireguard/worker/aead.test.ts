import assert from "node:assert/strict";
import { createCipheriv } from "node:crypto";
import { test } from "node:test";
import { chacha20poly1305 } from "@noble/ciphers/chacha.js";
import { libc } from "#net/libc.ts";
import { type Aead, openAead } from "./aead.ts";
import { EvpAead } from "./aead-evp.ts";
import { PrimitiveAead } from "./aead-primitives.ts";
import { Arena } from "./arena.ts";
import { selfTest } from "./self-test.ts";

const WAYS = [
  { name: "EVP", make: (arena: Arena): Aead => new EvpAead(arena) },
  {
    name: "primitives",
    make: (arena: Arena): Aead => {
      const aead = PrimitiveAead.open(arena);
      assert.ok(aead, "the Node that Perch brings has them");
      return aead;
    },
  },
];

function setup(make: (arena: Arena) => Aead) {
  const arena = new Arena(1 << 16);
  const aead = make(arena);
  const key = new Uint8Array(new ArrayBuffer(32));
  const place = arena.take(8192);
  const seal = (keyBytes: Uint8Array, counter: number, plaintext: Uint8Array): Uint8Array => {
    key.set(keyBytes);
    arena.bytes.set(plaintext, place);
    const address = arena.base + place;
    const { view, base } = arena;
    const [low, high] = [counter >>> 0, Math.floor(counter / 2 ** 32)];
    const behind = place + plaintext.length + 16;
    arena.bytes.fill(0xee, behind, behind + 32);
    aead.seal(libc().addressOf(key), low, high, address, plaintext.length, view, place, base);
    assert.ok(
      arena.bytes.subarray(behind, behind + 32).every((byte) => byte === 0xee),
      "what lies behind the tag was written to",
    );
    return arena.bytes.slice(place, behind);
  };
  const open = (keyBytes: Uint8Array, counter: number, sealed: Uint8Array): Uint8Array | undefined => {
    key.set(keyBytes);
    arena.bytes.set(sealed, place);
    const bytes = sealed.length - 16;
    const behind = place + sealed.length;
    arena.bytes.fill(0xee, behind, behind + 32);
    const ok = aead.open(libc().addressOf(key), counter >>> 0, Math.floor(counter / 2 ** 32), place, bytes);
    assert.ok(
      arena.bytes.subarray(behind, behind + 32).every((byte) => byte === 0xee),
      "what lies behind the tag was written to",
    );
    return ok ? arena.bytes.slice(place, place + bytes) : undefined;
  };
  return { arena, aead, seal, open };
}

const hex = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, "hex"));

for (const { name, make } of WAYS) {
  test(`${name}: the packets of the fixed-key session are equal to wireguard-go's byte for byte`, () => {
    const { seal, open } = setup(make);
    const key = hex("a007faf842d83f5bd3be20a14e0ffcec34c84867b78b051980602713205922de");
    assert.deepEqual(seal(key, 0, new Uint8Array(0)), hex("f1bce9fd9651b3f6b50c00179cbd1e01"));
    const inner = new Uint8Array(32);
    inner.set(hex("4500001d000000004011f6ccc0000201c00002020001000200090000ab"));
    const data = hex(
      "8d1cd7b7b3b14856579ce5678ed0fda122eae45b18cb493a8cbabce82ab378117d6e9fc73b784cad07ad5dda7bed1816",
    );
    assert.deepEqual(seal(key, 1, inner), data);
    assert.deepEqual(open(key, 1, data), inner);
    assert.deepEqual(open(key, 0, hex("f1bce9fd9651b3f6b50c00179cbd1e01")), new Uint8Array(0));
  });

  test(`${name}: it equals node:crypto and noble for all lengths around the block sizes, and counters above 32 bits`, () => {
    const { seal, open } = setup(make);
    const key = new Uint8Array(32).map((_, i) => 0x80 + i);
    const lengths = [...Array(70).keys(), 127, 128, 129, 1000, 1280, 1408, 1419, 1420, 1421, 2048, 4095];
    for (const length of lengths) {
      const plaintext = new Uint8Array(length).map((_, i) => i * 7);
      for (const counter of [0, 2 ** 32 + 5, 2 ** 52]) {
        const nonce = new Uint8Array(12);
        new DataView(nonce.buffer).setBigUint64(4, BigInt(counter), true);
        const cipher = createCipheriv("chacha20-poly1305", key, nonce, { authTagLength: 16 });
        const expected = Buffer.concat([cipher.update(plaintext), cipher.final(), cipher.getAuthTag()]);
        const sealed = seal(key, counter, plaintext);
        assert.deepEqual(Buffer.from(sealed), expected, `length ${length}`);
        assert.deepEqual(sealed, chacha20poly1305(key, nonce).encrypt(plaintext));
        assert.deepEqual(open(key, counter, sealed), plaintext);
      }
    }
  });

  test(`${name}: a change of any byte, of the counter or of the key is refused`, () => {
    const { seal, open } = setup(make);
    const key = new Uint8Array(32).fill(7);
    const sealed = seal(key, 9, new Uint8Array(40).fill(1));
    for (let i = 0; i < sealed.length; i++) {
      const forged = sealed.slice();
      forged[i]! ^= 1;
      assert.equal(open(key, 9, forged), undefined);
    }
    assert.equal(open(key, 10, sealed), undefined);
    assert.equal(open(new Uint8Array(32).fill(8), 9, sealed), undefined);
    assert.ok(open(key, 9, sealed));
  });
}

test("the self-test passes here, and fails with an AEAD that does nothing", () => {
  for (const { make } of WAYS) {
    const { arena, aead } = setup(make);
    assert.equal(selfTest(arena, aead), true);
    aead.seal = () => undefined;
    assert.equal(selfTest(arena, aead), false);
  }
});

test("the primitives are taken where the process has them, and wiped when closed", () => {
  const { arena } = setup((fresh) => new EvpAead(fresh));
  const aead = openAead(arena);
  assert.equal(aead.name, "chacha20+poly1305");
  const key = new Uint8Array(new ArrayBuffer(32)).fill(9);
  const place = arena.take(64);
  aead.seal(libc().addressOf(key), 1, 0, arena.base + place, 32, arena.view, place, arena.base);
  const inUse = arena.bytes.reduce((count, byte) => count + Number(byte !== 0), 0);
  aead.close();
  const left = arena.bytes.reduce((count, byte) => count + Number(byte !== 0), 0);
  assert.ok(inUse > left + 64, `${inUse} bytes were in use, ${left} are left`);
});
