/** Small credentials besides the relay token. Sources: protocol/management.md, sections 3.7 (SSHAuth) and 6.2. */
import { createHmac } from "node:crypto";
import { blake2b } from "@noble/hashes/blake2.js";

export interface TurnCredential {
  readonly user: string;
  readonly password: string;
}

/** A time-based TURN login in the manner of coturn's REST API; `expiresAt` in Unix seconds, the secret is not hashed. */
export function createTurnCredential(secret: string, expiresAt: number): TurnCredential {
  const user = String(Math.floor(expiresAt));
  return { user, password: createHmac("sha1", secret).update(user).digest("base64") };
}

/** How `SSHAuth.AuthorizedUsers` names a user: BLAKE2b with 16 bytes of output over the user id. */
export function hashSshUser(userId: string): Uint8Array {
  return blake2b(new TextEncoder().encode(userId), { dkLen: 16 });
}
