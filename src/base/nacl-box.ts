/**
 * The sealed envelope that management and signal share: NaCl `crypto_box` (X25519, HSalsa20, XSalsa20-Poly1305).
 *
 *     body = nonce (24, random) | tag (16) | ciphertext (as long as the plaintext)
 *
 * Source: protocol/management.md, section 2.2.
 */
import sodium from "libsodium-wrappers";
import { PerchError } from "./errors.ts";
import { type PrivateKey, PublicKey } from "./keys.ts";

await sodium.ready;

export const BOX_NONCE_BYTES = 24;
export const BOX_TAG_BYTES = 16;
/** What an envelope adds to its plaintext, in bytes. */
export const BOX_OVERHEAD_BYTES = BOX_NONCE_BYTES + BOX_TAG_BYTES;

/** Shared keys kept per own key; the least recently used one goes first. */
export const BOX_CACHE_PAIRS = 4096;

/** The body is useless; the keys and later bodies are not affected. */
export class BoxError extends PerchError<"box-truncated" | "box-forged" | "box-key-degenerate" | "box-nonce"> {}

const cache = new WeakMap<PrivateKey, Map<PublicKey, Uint8Array>>();

/**
 * Seals `plaintext` (may be empty) for `remotePublic`, readable by nobody else but the sealer. A nonce is drawn at random
 * unless one is given, which only test vectors do. Throws BoxError `box-key-degenerate` for a low-order public key.
 */
export function sealBox(
  plaintext: Uint8Array,
  remotePublic: PublicKey,
  own: PrivateKey,
  nonce: Uint8Array = sodium.randombytes_buf(BOX_NONCE_BYTES),
): Uint8Array {
  if (nonce.length !== BOX_NONCE_BYTES)
    throw new BoxError("box-nonce", `a nonce has ${BOX_NONCE_BYTES} bytes, got ${nonce.length}`);
  const box = sodium.crypto_box_easy_afternm(plaintext, nonce, sharedKey(remotePublic, own));
  const body = new Uint8Array(BOX_NONCE_BYTES + box.length);
  body.set(nonce);
  body.set(box, BOX_NONCE_BYTES);
  return body;
}

/**
 * Opens a body sealed by the owner of `remotePublic` for us. Throws BoxError: `box-truncated` when there is no room for
 * nonce and tag, `box-forged` when the tag does not match, `box-key-degenerate` for a low-order public key.
 */
export function openBox(body: Uint8Array, remotePublic: PublicKey, own: PrivateKey): Uint8Array {
  if (body.length < BOX_OVERHEAD_BYTES)
    throw new BoxError("box-truncated", `a sealed body has at least ${BOX_OVERHEAD_BYTES} bytes, got ${body.length}`);
  const key = sharedKey(remotePublic, own);
  try {
    return sodium.crypto_box_open_easy_afternm(body.subarray(BOX_NONCE_BYTES), body.subarray(0, BOX_NONCE_BYTES), key);
  } catch (cause) {
    throw new BoxError("box-forged", `the body does not open with the key of ${PublicKey.short(remotePublic)}`, {
      cause,
    });
  }
}

/** The box key k of a pair, the same on both sides. The caller must not change it. Exported for tests of the vectors. */
export function sharedKey(remotePublic: PublicKey, own: PrivateKey): Uint8Array {
  const pairs = cache.get(own) ?? new Map<PublicKey, Uint8Array>();
  cache.set(own, pairs);
  let key = pairs.get(remotePublic);
  if (key) {
    pairs.delete(remotePublic);
  } else {
    const privateBytes = own.bytes();
    try {
      key = sodium.crypto_box_beforenm(PublicKey.toBytes(remotePublic), privateBytes);
    } catch (cause) {
      throw new BoxError("box-key-degenerate", `${PublicKey.short(remotePublic)} is no usable public key`, { cause });
    } finally {
      privateBytes.fill(0);
    }
    if (pairs.size >= BOX_CACHE_PAIRS) for (const oldest of pairs.keys()) if (pairs.delete(oldest)) break;
  }
  pairs.set(remotePublic, key);
  return key;
}
