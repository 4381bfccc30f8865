import { diffieHellman, generateKeyPairSync, type KeyObject } from "node:crypto";
import { type PrivateKey, PublicKey } from "#base/keys.ts";

/** A key pair for one handshake. Its private half lives in a KeyObject, which memory is freed (not wiped) with it. */
export interface Ephemeral {
  readonly privateKey: KeyObject;
  readonly publicBytes: Uint8Array;
}

export function generateEphemeral(): Ephemeral {
  const { publicKey, privateKey } = generateKeyPairSync("x25519");
  // JWK export takes under a microsecond; DER takes longer than the exchange itself.
  return { privateKey, publicBytes: new Uint8Array(Buffer.from(publicKey.export({ format: "jwk" }).x!, "base64url")) };
}

/** A given key as ephemeral; test vectors need it. */
export function ephemeralFrom(key: PrivateKey): Ephemeral {
  return { privateKey: key.keyObject(), publicBytes: PublicKey.toBytes(key.publicKey) };
}

/** X25519; undefined when the result is all zeros (a degenerate public key). The caller wipes the result. */
export function exchange(privateKey: KeyObject, publicKey: KeyObject): Uint8Array | undefined {
  try {
    return diffieHellman({ privateKey, publicKey });
  } catch {
    return undefined;
  }
}
