import type { KeyObject } from "node:crypto";
import { inspect } from "node:util";
import { importPublicKey, type PrivateKey, PublicKey } from "#base/keys.ts";
import { hash, macState } from "./blake2s.ts";
import { CONSTRUCTION, IDENTIFIER, LABEL_COOKIE, LABEL_MAC1 } from "./constants.ts";
import { exchange } from "./x25519.ts";

/** Chaining key and hash before the first message: the same for every handshake there is. */
export const INITIAL_CHAINING_KEY = hash(Buffer.from(CONSTRUCTION));
export const INITIAL_HASH = hash(INITIAL_CHAINING_KEY, Buffer.from(IDENTIFIER));

/** What follows from a public key alone and every message addressed to its owner needs. */
interface AddressedTo {
  /** Hash after "the responder is this key". */
  readonly startHash: Uint8Array;
  /** State of the mac1 MAC after its key block. */
  readonly mac1Key: Int32Array;
  /** Key under which cookies of this owner travel. */
  readonly cookieKey: Uint8Array;
}

function addressedTo(publicBytes: Uint8Array): AddressedTo {
  return {
    startHash: hash(INITIAL_HASH, publicBytes),
    mac1Key: macState(hash(Buffer.from(LABEL_MAC1), publicBytes)),
    cookieKey: hash(Buffer.from(LABEL_COOKIE), publicBytes),
  };
}

/** Our own static key with everything derived from it once. Prints without secrets. */
export class LocalIdentity implements AddressedTo {
  readonly publicKey: PublicKey;
  readonly publicBytes: Uint8Array;
  readonly startHash: Uint8Array;
  readonly mac1Key: Int32Array;
  readonly cookieKey: Uint8Array;
  readonly #privateKey: PrivateKey;

  constructor(privateKey: PrivateKey) {
    this.#privateKey = privateKey;
    this.publicKey = privateKey.publicKey;
    this.publicBytes = PublicKey.toBytes(this.publicKey);
    ({ startHash: this.startHash, mac1Key: this.mac1Key, cookieKey: this.cookieKey } = addressedTo(this.publicBytes));
  }

  /** DH with our static key; undefined for a degenerate result. The caller wipes it. */
  exchange(publicKey: KeyObject): Uint8Array | undefined {
    return exchange(this.#privateKey.keyObject(), publicKey);
  }
}

/**
 * A peer's static key with what handshakes with it need, the static-static secret among it. Costs two thirds of a
 * handshake message to make and a kilobyte to keep, so it exists only for peers that are in contact; `wipe` ends it.
 */
export class RemoteIdentity implements AddressedTo {
  readonly publicBytes: Uint8Array;
  readonly publicKey: KeyObject;
  readonly startHash: Uint8Array;
  readonly mac1Key: Int32Array;
  readonly cookieKey: Uint8Array;
  readonly #staticSecret: Uint8Array;

  private constructor(publicBytes: Uint8Array, publicKey: KeyObject, staticSecret: Uint8Array) {
    this.publicBytes = publicBytes;
    this.publicKey = publicKey;
    this.#staticSecret = staticSecret;
    ({ startHash: this.startHash, mac1Key: this.mac1Key, cookieKey: this.cookieKey } = addressedTo(publicBytes));
  }

  /** Undefined when the key is degenerate: no handshake with it can ever work. */
  static create(local: LocalIdentity, publicBytes: Uint8Array): RemoteIdentity | undefined {
    const publicKey = importPublicKey(publicBytes);
    const staticSecret = local.exchange(publicKey);
    return staticSecret && new RemoteIdentity(publicBytes, publicKey, staticSecret);
  }

  /** DH of both static keys; belongs to this object, never written to by others. */
  get staticSecret(): Uint8Array {
    return this.#staticSecret;
  }

  wipe(): void {
    this.#staticSecret.fill(0);
  }

  [inspect.custom](): string {
    return `RemoteIdentity ${PublicKey.short(PublicKey.fromBytes(this.publicBytes))}`;
  }
}
