import { NetError } from "#net/libc.ts";
import { EvpAead } from "./aead-evp.ts";
import { PrimitiveAead } from "./aead-primitives.ts";
import type { Arena } from "./arena.ts";
import { selfTest } from "./self-test.ts";

/** ChaCha20-Poly1305 (RFC 8439, no additional data) of transport packets; the nonce is four zero bytes and the counter. */
export interface Aead {
  /** How it is computed, for the device's list of features. */
  readonly name: "chacha20+poly1305" | "evp";
  /**
   * Encrypts `bytes` at address `input` to offset `at` of `view`, whose memory begins at address `base`; 16 bytes of tag
   * behind it. In place is allowed. `key` is the address of 32 bytes.
   */
  seal(
    key: number,
    counterLow: number,
    counterHigh: number,
    input: number,
    bytes: number,
    view: DataView,
    at: number,
    base: number,
  ): void;
  /**
   * Decrypts `bytes` at offset `at` of the arena in place; the tag lies behind them and may be overwritten. False when it
   * does not match: the bytes must not be used then.
   */
  open(key: number, counterLow: number, counterHigh: number, at: number, bytes: number): boolean;
  /** Frees and wipes whatever holds keys. */
  close(): void;
}

/**
 * The fastest way that computes correctly on this machine (docs/adr/0003). Throws NetError `ffi-missing` where OpenSSL cannot
 * be reached or does not have the cipher.
 */
export function openAead(arena: Arena): Aead {
  const primitives = PrimitiveAead.open(arena);
  if (primitives) {
    if (selfTest(arena, primitives)) return primitives;
    primitives.close();
  }
  const evp = new EvpAead(arena);
  if (selfTest(arena, evp)) return evp;
  evp.close();
  throw new NetError("ffi-missing", "OpenSSL through koffi does not compute ChaCha20-Poly1305 correctly");
}
