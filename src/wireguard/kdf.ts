import { hmac } from "./blake2s.ts";

const ONE = Uint8Array.of(1);
const TWO = Uint8Array.of(2);
const THREE = Uint8Array.of(3);

/** Kdf1 of the paper (HKDF over BLAKE2s): the next chaining key. The caller wipes results and inputs. */
export function kdf1(chainingKey: Uint8Array, input: Uint8Array): Uint8Array {
  const secret = hmac(chainingKey, input);
  const first = hmac(secret, ONE);
  secret.fill(0);
  return first;
}

/** Kdf2: chaining key and one key. */
export function kdf2(chainingKey: Uint8Array, input: Uint8Array): [Uint8Array, Uint8Array] {
  const secret = hmac(chainingKey, input);
  const first = hmac(secret, ONE);
  const second = hmac(secret, first, TWO);
  secret.fill(0);
  return [first, second];
}

/** Kdf3: chaining key and two keys. */
export function kdf3(chainingKey: Uint8Array, input: Uint8Array): [Uint8Array, Uint8Array, Uint8Array] {
  const secret = hmac(chainingKey, input);
  const first = hmac(secret, ONE);
  const second = hmac(secret, first, TWO);
  const third = hmac(secret, second, THREE);
  secret.fill(0);
  return [first, second, third];
}
