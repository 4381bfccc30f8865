import {
  createPrivateKey,
  createPublicKey,
  diffieHellman,
  type KeyObject,
  randomFillSync,
  timingSafeEqual,
} from "node:crypto";
import { inspect } from "node:util";
import { PerchError } from "./errors.ts";

export class KeyError extends PerchError<"key-malformed" | "key-degenerate"> {}

/** Bytes in an X25519 key, public or private, and in a pre-shared key. */
export const KEY_BYTES = 32;

/** A WireGuard (X25519) public key as canonical padded base64, 44 characters; compare with `===`, use as a map key. */
export type PublicKey = string & { readonly __brand: "PublicKey" };

export const PublicKey = {
  /** Accepts base64 of 32 bytes, canonical or not, and returns the canonical form. Throws KeyError. */
  parse(text: string): PublicKey {
    return Buffer.from(decodeKey(text, "public key")).toString("base64") as PublicKey;
  },
  fromBytes(bytes: Uint8Array): PublicKey {
    if (bytes.length !== KEY_BYTES)
      throw new KeyError("key-malformed", `public key has ${bytes.length} bytes, want ${KEY_BYTES}`);
    return Buffer.from(bytes).toString("base64") as PublicKey;
  },
  toBytes(key: PublicKey): Uint8Array {
    return new Uint8Array(Buffer.from(key, "base64"));
  },
  /** First characters, for logs and tables. */
  short(key: PublicKey): string {
    return key.slice(0, 8);
  },
};

/** PKCS #8 of an X25519 private key (RFC 8410) up to the key itself. */
const PKCS8_PREFIX = Uint8Array.from([0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x6e, 4, 0x22, 4, 0x20]);

/**
 * An X25519 private key. It prints as `[private key]` in every way; `toBase64` and `encode` are the explicit ways out. It is
 * kept in memory of its own, never in a string, which could not be wiped; OpenSSL clears its copy when the object is collected.
 */
export class PrivateKey {
  readonly #bytes: Buffer;
  #keyObject: KeyObject | undefined;
  #public: PublicKey | undefined;

  private constructor(bytes: Uint8Array) {
    this.#bytes = Buffer.alloc(KEY_BYTES);
    this.#bytes.set(bytes);
    this.#bytes[0]! &= 248;
    this.#bytes[31] = (this.#bytes[31]! & 127) | 64;
  }

  static generate(): PrivateKey {
    return wipeAfter(randomFillSync(new Uint8Array(KEY_BYTES)), (bytes) => new PrivateKey(bytes));
  }

  /**
   * From base64 of 32 bytes, as text or as its ASCII bytes, which the caller can wipe where a string stays until it is collected.
   * Throws KeyError; the message never holds the text.
   */
  static parse(text: string | Uint8Array): PrivateKey {
    return wipeAfter(decodeKey(text, "private key"), (bytes) => new PrivateKey(bytes));
  }

  static fromBytes(bytes: Uint8Array): PrivateKey {
    if (bytes.length !== KEY_BYTES)
      throw new KeyError("key-malformed", `private key has ${bytes.length} bytes, want ${KEY_BYTES}`);
    return new PrivateKey(bytes);
  }

  get publicKey(): PublicKey {
    this.#public ??= Buffer.from(createPublicKey(this.keyObject()).export({ format: "jwk" }).x!, "base64url").toString(
      "base64",
    ) as PublicKey;
    return this.#public;
  }

  /** The key as node:crypto wants it, imported once. */
  keyObject(): KeyObject {
    // Importing a private JWK needs its public half (RFC 8037); PKCS #8 derives it, costs 0.3 ms and is paid once per key.
    this.#keyObject ??= wipeAfter(Buffer.alloc(PKCS8_PREFIX.length + KEY_BYTES), (der) => {
      der.set(PKCS8_PREFIX);
      der.set(this.#bytes, PKCS8_PREFIX.length);
      return createPrivateKey({ key: der, format: "der", type: "pkcs8" });
    });
    return this.#keyObject;
  }

  /** X25519 with a public key. Throws KeyError for a degenerate result (RFC 7748, section 6.1). */
  sharedSecret(publicKey: Uint8Array): Uint8Array {
    try {
      const secret = diffieHellman({ privateKey: this.keyObject(), publicKey: importPublicKey(publicKey) });
      return wipeAfter(secret, (bytes) => new Uint8Array(bytes));
    } catch (cause) {
      throw new KeyError("key-degenerate", "the X25519 exchange has no usable result", { cause });
    }
  }

  /** A copy of the clamped key; the caller wipes it. */
  bytes(): Uint8Array {
    return new Uint8Array(this.#bytes);
  }

  /** The key in a string, for those who are given one; it lives until it is collected. */
  toBase64(): string {
    return this.#bytes.toString("base64");
  }

  /** Base64 as ASCII bytes, for files; the caller wipes it. */
  encode(): Uint8Array {
    return encodeKey(this.#bytes);
  }

  toString(): string {
    return "[private key]";
  }

  toJSON(): string {
    return this.toString();
  }

  [inspect.custom](): string {
    return this.toString();
  }
}

/** A symmetric key shared by two peers outside the protocol (WireGuard's psk2). Prints as `[preshared key]`. */
export class PresharedKey {
  readonly #bytes: Buffer;

  private constructor(bytes: Uint8Array) {
    this.#bytes = Buffer.alloc(KEY_BYTES);
    this.#bytes.set(bytes);
  }

  /** From base64 of 32 bytes, as text or as its ASCII bytes. Throws KeyError; the message never holds the text. */
  static parse(text: string | Uint8Array): PresharedKey {
    return wipeAfter(decodeKey(text, "preshared key"), (bytes) => new PresharedKey(bytes));
  }

  bytes(): Uint8Array {
    return new Uint8Array(this.#bytes);
  }

  toBase64(): string {
    return this.#bytes.toString("base64");
  }

  /** Base64 as ASCII bytes, for files; the caller wipes it. */
  encode(): Uint8Array {
    return encodeKey(this.#bytes);
  }

  equals(other: PresharedKey): boolean {
    return timingSafeEqual(this.#bytes, other.#bytes);
  }

  toString(): string {
    return "[preshared key]";
  }

  toJSON(): string {
    return this.toString();
  }

  [inspect.custom](): string {
    return this.toString();
  }
}

/** Imports a raw X25519 public key; by JWK because DER costs ten times the exchange itself (docs/packet-path.md). */
export function importPublicKey(bytes: Uint8Array): KeyObject {
  return createPublicKey({
    key: {
      kty: "OKP",
      crv: "X25519",
      x: Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("base64url"),
    },
    format: "jwk",
  });
}

const ALPHABET = Uint8Array.from(
  Buffer.from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", "latin1"),
);
/** Value of each ASCII character in it, -1 for the others. */
const DIGITS = new Int8Array(128).fill(-1);
ALPHABET.forEach((code, digit) => {
  DIGITS[code] = digit;
});
/** Characters of a key in base64, the last of them `=`. */
const TEXT_LENGTH = 44;
const PADDING = 0x3d;

/*
 * Base64 by hand: Buffer decodes small texts into memory that it shares with everything else small, where nobody wipes them,
 * and encodes to strings alone.
 */

/** 32 bytes in memory of their own, of text with the right number of the right characters. Throws KeyError. */
function decodeKey(text: string | Uint8Array, what: string): Uint8Array {
  const bytes = new Uint8Array(KEY_BYTES);
  const malformed = (): KeyError => {
    bytes.fill(0);
    const got = `got ${text.length} characters`;
    return new KeyError("key-malformed", `${what} must be 44 characters of base64 (${KEY_BYTES} bytes), ${got}`);
  };
  const codeAt = (index: number): number => (typeof text === "string" ? text.charCodeAt(index) : text[index]!);
  if (text.length !== TEXT_LENGTH || codeAt(TEXT_LENGTH - 1) !== PADDING) throw malformed();
  let bits = 0;
  let pending = 0;
  let at = 0;
  for (let i = 0; i < TEXT_LENGTH - 1; i++) {
    const digit = DIGITS[codeAt(i)] ?? -1;
    if (digit < 0) throw malformed();
    pending = ((pending << 6) | digit) & 0xffff;
    bits += 6;
    if (bits < 8) continue;
    bits -= 8;
    bytes[at++] = pending >> bits;
  }
  return bytes;
}

function encodeKey(bytes: Uint8Array): Uint8Array {
  const text = new Uint8Array(TEXT_LENGTH).fill(PADDING);
  for (let at = 0; at < TEXT_LENGTH - 1; at++) {
    const bit = 6 * at;
    const word = (bytes[bit >> 3]! << 8) | (bytes[(bit >> 3) + 1] ?? 0);
    text[at] = ALPHABET[(word >> (10 - (bit & 7))) & 63]!;
  }
  return text;
}

function wipeAfter<Bytes extends Uint8Array, Result>(bytes: Bytes, use: (bytes: Bytes) => Result): Result {
  try {
    return use(bytes);
  } finally {
    bytes.fill(0);
  }
}
