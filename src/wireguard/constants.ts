import type { Millis } from "#base/time.ts";

/**
 * The protocol's numbers under the names of the WireGuard paper (Donenfeld, NDSS 2017, section 6 and table on timers);
 * those the paper does not name follow the Linux implementation. Durations are milliseconds.
 */

/** Noise construction, hashed into the first chaining key. */
export const CONSTRUCTION = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
export const IDENTIFIER = "WireGuard v1 zx2c4 Jason@zx2c4.com";
export const LABEL_MAC1 = "mac1----";
export const LABEL_COOKIE = "cookie--";

/** Age of a session after which its initiator renews it when it sends. */
export const REKEY_AFTER_TIME: Millis = 120_000;
/** Age at which a session is no longer used in either direction. */
export const REJECT_AFTER_TIME: Millis = 180_000;
/** Silence after which a handshake that is not answered is given up. */
export const REKEY_ATTEMPT_TIME: Millis = 90_000;
/** Time between two initiations to one peer, and before an unanswered one is repeated. */
export const REKEY_TIMEOUT: Millis = 5_000;
/** Most that is added to REKEY_TIMEOUT at random. */
export const REKEY_TIMEOUT_JITTER: Millis = 333;
/** Passive keepalive: answer to data when nothing else was sent. */
export const KEEPALIVE_TIMEOUT: Millis = 10_000;
/** Life of the cookie secret and of a received cookie. */
export const COOKIE_REFRESH_TIME: Millis = 120_000;
/** A received cookie is given up this much before the responder forgets its secret. */
export const COOKIE_SECRET_LATENCY: Millis = 5_000;
/** All secrets of a peer are wiped this long after its last session was made. */
export const ZERO_KEYS_TIME: Millis = 3 * REJECT_AFTER_TIME;
/** A responder accepts one initiation of a peer in this time (50 a second). */
export const HANDSHAKE_INITIATION_INTERVAL: Millis = 20;

/** Handshake messages of one source address that are answered under load: this many a second, and so many at once. */
export const RATE_LIMIT_PER_SECOND = 20;
export const RATE_LIMIT_BURST = 5;
/** How long "under load" lasts after the last sign of it. */
export const UNDER_LOAD_HOLD: Millis = 1_000;

/** Plaintext is padded with zeros to a multiple of this, never beyond the MTU. */
export const PADDING_MULTIPLE = 16;
/** Bytes of header and tag of a transport message; also the size of a keepalive. */
export const TRANSPORT_OVERHEAD = 32;
export const DEFAULT_MTU = 1420;

/** Lowered by tests only; the defaults are the protocol's. */
export interface HandshakeTiming {
  readonly rekeyTimeout: Millis;
  readonly jitter: Millis;
  readonly rekeyAttemptTime: Millis;
}

export const PROTOCOL_TIMING: HandshakeTiming = {
  rekeyTimeout: REKEY_TIMEOUT,
  jitter: REKEY_TIMEOUT_JITTER,
  rekeyAttemptTime: REKEY_ATTEMPT_TIME,
};
