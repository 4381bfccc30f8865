/**
 * The token with which an agent proves to a relay that management sent it.
 *
 *     token     = algorithm (1 byte, 0x01) | signature (32) | payload (10 or more)
 *     key       = SHA-256(secret text)
 *     payload   = expiry as decimal Unix seconds, ASCII
 *     signature = HMAC-SHA256(key, payload)
 *
 * It names no peer and is checked only when a relay connection starts. Sources: protocol/relay.md, section 5.1 and
 * protocol/management.md, section 6.1.
 */
import { createHash, createHmac, timingSafeEqual } from "node:crypto";
import { PerchError } from "./errors.ts";

export const RELAY_TOKEN_ALGORITHM_HMAC_SHA256 = 1;
export const RELAY_TOKEN_SIGNATURE_BYTES = 32;
export const RELAY_TOKEN_MIN_PAYLOAD_BYTES = 10;

const HEAD_BYTES = 1 + RELAY_TOKEN_SIGNATURE_BYTES;
const MAX_INT64 = 2n ** 63n - 1n;

/** What management hands to an agent (`RelayConfig.tokenPayload` and `tokenSignature`). */
export interface RelayToken {
  readonly payload: string;
  /** Standard base64 of 32 bytes. */
  readonly signatureBase64: string;
}

/** Why a relay refuses a token, in the order of the checks. */
export type RelayTokenVerdict =
  | { readonly kind: "valid"; readonly expiresAt: bigint }
  | { readonly kind: "too-short" }
  | { readonly kind: "payload-too-short" }
  | { readonly kind: "unknown-algorithm" }
  | { readonly kind: "bad-signature" }
  | { readonly kind: "malformed-expiry" }
  | { readonly kind: "expired"; readonly expiresAt: bigint };

export class RelayTokenError extends PerchError<"relay-token-malformed"> {}

/** The HMAC key of a shared secret: 32 bytes. A relay derives it once. */
export function relayTokenKey(secret: string): Uint8Array {
  return createHash("sha256").update(secret, "utf8").digest();
}

/** Makes a token that is valid up to and including `expiresAt` (Unix seconds; a fraction is cut off). */
export function createRelayToken(secret: string, expiresAt: number): RelayToken {
  const payload = String(Math.floor(expiresAt));
  return { payload, signatureBase64: sign(relayTokenKey(secret), Buffer.from(payload, "ascii")).toString("base64") };
}

/**
 * The binary form the agent presents to the relay. Throws RelayTokenError when the signature is not base64 of 32 bytes:
 * such a configuration is an error of the server, not of the network.
 */
export function encodeRelayToken(token: RelayToken): Uint8Array {
  const signature = Buffer.from(token.signatureBase64, "base64");
  if (signature.length !== RELAY_TOKEN_SIGNATURE_BYTES || signature.toString("base64") !== token.signatureBase64) {
    throw new RelayTokenError(
      "relay-token-malformed",
      `a relay token signature is base64 of ${RELAY_TOKEN_SIGNATURE_BYTES} bytes, got ${token.signatureBase64.length} characters`,
    );
  }
  return new Uint8Array(
    Buffer.concat([Buffer.of(RELAY_TOKEN_ALGORITHM_HMAC_SHA256), signature, Buffer.from(token.payload, "utf8")]),
  );
}

/** Checks a presented token in the order of the document. `secretKey` is `relayTokenKey(secret)`. Never throws. */
export function verifyRelayToken(secretKey: Uint8Array, token: Uint8Array, nowSeconds: number): RelayTokenVerdict {
  if (token.length < HEAD_BYTES) return { kind: "too-short" };
  const payload = token.subarray(HEAD_BYTES);
  if (payload.length < RELAY_TOKEN_MIN_PAYLOAD_BYTES) return { kind: "payload-too-short" };
  if (token[0] !== RELAY_TOKEN_ALGORITHM_HMAC_SHA256) return { kind: "unknown-algorithm" };
  if (!timingSafeEqual(sign(secretKey, payload), token.subarray(1, HEAD_BYTES))) return { kind: "bad-signature" };
  const text = Buffer.from(payload).toString("latin1");
  if (!/^[+-]?[0-9]+$/.test(text)) return { kind: "malformed-expiry" };
  const expiresAt = BigInt(text.startsWith("+") ? text.slice(1) : text);
  if (expiresAt > MAX_INT64 || expiresAt < -MAX_INT64 - 1n) return { kind: "malformed-expiry" };
  // Whole seconds, as the issuer counts them: a token that expires in this second is still good.
  return BigInt(Math.floor(nowSeconds)) > expiresAt ? { kind: "expired", expiresAt } : { kind: "valid", expiresAt };
}

function sign(key: Uint8Array, payload: Uint8Array): Buffer {
  return createHmac("sha256", key).update(payload).digest();
}
