import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { format, inspect } from "node:util";
import { x25519 } from "@noble/curves/ed25519.js";
import fc from "fast-check";
import { KEY_BYTES, PresharedKey, PrivateKey, PublicKey } from "./keys.ts";

const keyBytes = fc.uint8Array({ minLength: KEY_BYTES, maxLength: KEY_BYTES });
const hex = (text: string): Uint8Array => new Uint8Array(Buffer.from(text, "hex"));
const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

describe("key pairs", () => {
  test("Bob's public key and the shared secret are those of RFC 7748, section 6.1", () => {
    const bob = PrivateKey.fromBytes(hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
    const alicePublic = hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
    assert.equal(
      toHex(PublicKey.toBytes(bob.publicKey)),
      "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
    );
    assert.equal(
      toHex(bob.sharedSecret(alicePublic)),
      "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742",
    );
  });

  test("public keys and shared secrets are those of another implementation", () => {
    fc.assert(
      fc.property(keyBytes, keyBytes, (mine, theirs) => {
        const key = PrivateKey.fromBytes(mine);
        const theirPublic = x25519.getPublicKey(theirs);
        assert.equal(toHex(PublicKey.toBytes(key.publicKey)), toHex(x25519.getPublicKey(mine)));
        assert.equal(toHex(key.sharedSecret(theirPublic)), toHex(x25519.getSharedSecret(mine, theirPublic)));
      }),
      { numRuns: 25 },
    );
  });

  test("generated keys differ, are clamped and survive base64", () => {
    const keys = Array.from({ length: 20 }, () => PrivateKey.generate());
    assert.equal(new Set(keys.map((key) => key.toBase64())).size, keys.length);
    for (const key of keys) {
      const bytes = key.bytes();
      assert.equal(bytes[0]! & 7, 0);
      assert.equal(bytes[31]! & 0xc0, 0x40);
      assert.equal(PrivateKey.parse(key.toBase64()).publicKey, key.publicKey);
    }
  });

  test("a degenerate public key gives an error, not an all-zero secret", () => {
    const key = PrivateKey.generate();
    const order8 = "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800";
    for (const low of ["00".repeat(32), `01${"00".repeat(31)}`, order8])
      assert.throws(() => key.sharedSecret(hex(low)), { code: "key-degenerate" });
  });

  test("keys pass as ASCII bytes, without a string", () => {
    fc.assert(
      fc.property(keyBytes, (bytes) => {
        const key = PrivateKey.fromBytes(bytes);
        const text = key.encode();
        assert.equal(Buffer.from(text).toString("latin1"), key.toBase64());
        assert.equal(PrivateKey.parse(text).toBase64(), key.toBase64());
        assert.equal(PresharedKey.parse(text).toBase64(), key.toBase64());
      }),
    );
    for (const bad of [
      new Uint8Array(44),
      new Uint8Array(0),
      new Uint8Array(44).fill(200),
      Buffer.from("A".repeat(44)),
    ])
      assert.throws(() => PrivateKey.parse(bad), { code: "key-malformed" });
  });

  test("no key lies in the memory that small buffers share", () => {
    // Whoever asks for a small buffer gets a piece of it, with what was there before.
    const pool = (): Buffer => Buffer.from(Buffer.from("x").buffer);
    const known = PrivateKey.fromBytes(Uint8Array.from({ length: 32 }, (_, i) => 200 - 5 * i));
    const secret = known.bytes();
    const text = known.encode();
    const key = PrivateKey.parse(text);
    const psk = PresharedKey.parse(text);
    key.keyObject();
    key.publicKey;
    PrivateKey.generate().publicKey;
    assert.deepEqual(psk.bytes(), secret);
    assert.equal(pool().indexOf(secret), -1);
  });

  test("the caller of bytes gets a copy", () => {
    const key = PrivateKey.generate();
    const before = key.toBase64();
    key.bytes().fill(0);
    assert.equal(key.toBase64(), before);
  });
});

describe("text of keys", () => {
  test("every public key survives its text; bits that base64 ignores do not make another key", () => {
    fc.assert(
      fc.property(keyBytes, (bytes) => {
        const key = PublicKey.fromBytes(bytes);
        assert.equal(key.length, 44);
        assert.equal(PublicKey.parse(key), key);
        assert.deepEqual(PublicKey.toBytes(key), bytes);
      }),
    );
    assert.equal(PublicKey.parse(`${"A".repeat(42)}B=`), PublicKey.fromBytes(new Uint8Array(32)));
  });

  test("what is not a key is refused, and the message never holds the text", () => {
    const good = PrivateKey.generate().toBase64();
    const bad = [
      "",
      good.slice(1),
      `${good}=`,
      good.slice(0, -1),
      `${good.slice(0, -2)}==`,
      good.replace(/./, "!"),
      ` ${good}`,
    ];
    for (const text of bad)
      for (const parse of [PrivateKey.parse, PublicKey.parse, PresharedKey.parse])
        assert.throws(
          () => parse(text),
          (error: Error & { code: string }) =>
            error.code === "key-malformed" && (text === "" || !error.message.includes(text)),
        );
  });

  test("bytes of another length are refused with their number", () => {
    for (const length of [0, 31, 33]) {
      assert.throws(() => PrivateKey.fromBytes(new Uint8Array(length)), {
        code: "key-malformed",
        message: new RegExp(`${length}`),
      });
      assert.throws(() => PublicKey.fromBytes(new Uint8Array(length)), {
        code: "key-malformed",
        message: new RegExp(`${length}`),
      });
    }
  });
});

describe("secrets", () => {
  for (const [name, secret, bytes] of [
    ["a private key", PrivateKey.generate(), (key: PrivateKey | PresharedKey) => key.bytes()],
    [
      "a preshared key",
      PresharedKey.parse(PrivateKey.generate().toBase64()),
      (key: PrivateKey | PresharedKey) => key.bytes(),
    ],
  ] as const)
    test(`${name} shows nothing of itself, however it is printed`, () => {
      const raw = Buffer.from(bytes(secret));
      const holder = { peer: { secret }, list: [secret], map: new Map([["k", secret]]) };
      const texts = [
        String(secret),
        `${secret}`,
        JSON.stringify(secret),
        JSON.stringify(holder),
        inspect(secret),
        inspect(holder, { depth: Number.POSITIVE_INFINITY, showHidden: true }),
        format("%s %o %O %j %d", secret, secret, secret, secret, secret),
        new Error(`with ${secret}`).message,
        Object.keys(secret).join(),
        JSON.stringify(Object.entries(secret)),
        JSON.stringify({ ...secret }),
        // What pino and other serializers walk.
        JSON.stringify(Object.getOwnPropertyNames(secret)),
      ];
      for (const text of texts) {
        assert.ok(!text.includes(raw.toString("base64").slice(0, 12)), text);
        assert.ok(!text.includes(raw.toString("base64url").slice(0, 12)), text);
        assert.ok(!text.includes(raw.toString("hex").slice(0, 12)), text);
        assert.ok(!text.includes([...raw.subarray(0, 4)].join(",")), text);
      }
    });

  test("two preshared keys are compared by their bytes", () => {
    const text = PrivateKey.generate().toBase64();
    assert.ok(PresharedKey.parse(text).equals(PresharedKey.parse(text)));
    assert.ok(!PresharedKey.parse(text).equals(PresharedKey.parse(PrivateKey.generate().toBase64())));
  });
});
