import {
  createPrivateKey,
  createPublicKey,
  diffieHellman,
  generateKeyPairSync,
  type KeyObject,
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

/** An X25519 private key. It prints as `[private key]` in every way; `toBase64` is the one explicit way out. */
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
    const { privateKey } = generateKeyPairSync("x25519");
    return new PrivateKey(Buffer.from(privateKey.export({ format: "jwk" }).d!, "base64url"));
  }

  /** From base64 of 32 bytes. Throws KeyError; the message never holds the text. */
  static parse(text: string): PrivateKey {
    return new PrivateKey(decodeKey(text, "private key"));
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
    this.#keyObject ??= createPrivateKey({
      key: Buffer.concat([Buffer.from("302e020100300506032b656e04220420", "hex"), this.#bytes]),
      format: "der",
      type: "pkcs8",
    });
    return this.#keyObject;
  }

  /** X25519 with a public key. Throws KeyError for a degenerate result (RFC 7748, section 6.1). */
  sharedSecret(publicKey: Uint8Array): Uint8Array {
    try {
      return new Uint8Array(diffieHellman({ privateKey: this.keyObject(), publicKey: importPublicKey(publicKey) }));
    } catch (cause) {
      throw new KeyError("key-degenerate", "the X25519 exchange has no usable result", { cause });
    }
  }

  /** A copy of the clamped key; the caller wipes it. */
  bytes(): Uint8Array {
    return new Uint8Array(this.#bytes);
  }

  toBase64(): string {
    return this.#bytes.toString("base64");
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
    this.#bytes = Buffer.from(bytes);
  }

  /** From base64 of 32 bytes. Throws KeyError; the message never holds the text. */
  static parse(text: string): PresharedKey {
    return new PresharedKey(decodeKey(text, "preshared key"));
  }

  bytes(): Uint8Array {
    return new Uint8Array(this.#bytes);
  }

  toBase64(): string {
    return this.#bytes.toString("base64");
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

function decodeKey(text: string, what: string): Uint8Array {
  const bytes = Buffer.from(text, "base64");
  if (!/^[A-Za-z0-9+/]{43}=$/.test(text) || bytes.length !== KEY_BYTES) {
    throw new KeyError(
      "key-malformed",
      `${what} must be 44 characters of base64 (${KEY_BYTES} bytes), got ${text.length} characters`,
    );
  }
  return bytes;
}
