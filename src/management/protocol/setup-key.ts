/** Setup keys: random UUIDs that admit new peers. Sources: protocol/management.md, sections 3.1, 4.1 and 5.2. */
import { createHash, randomUUID } from "node:crypto";
import { PerchError } from "#base/errors.ts";

export class SetupKeyError extends PerchError<"setup-key-malformed"> {}

/** Stands for "no key" beside a token: a stock agent sends it with a JWT. */
export const NO_SETUP_KEY = "00000000-0000-0000-0000-000000000000";

/** A new key, upper-case UUID text. Shown once; only its hash is kept. */
export function createSetupKeyText(): string {
  return randomUUID().toUpperCase();
}

/** The form agents send: a UUID in lower case. Throws SetupKeyError; the message never holds the key. */
export function parseSetupKey(text: string): string {
  const key = text.trim().toLowerCase();
  if (!/^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/.test(key)) {
    throw new SetupKeyError(
      "setup-key-malformed",
      `a setup key is a UUID of 36 characters such as A2C8E62B-…, got ${key.length} characters`,
    );
  }
  return key;
}

/** What the server stores: base64 of SHA-256 over the upper-case text. */
export function hashSetupKey(text: string): string {
  return createHash("sha256").update(text.toUpperCase(), "utf8").digest("base64");
}
