import { readFileSync } from "node:fs";
import { join } from "node:path";
import { writeFileAtomically } from "#base/atomic-file.ts";
import { messageOf } from "#base/errors.ts";
import { PrivateKey } from "#base/keys.ts";
import { makeDirectory } from "#base/make-directory.ts";
import { AgentError } from "./errors.ts";

/** File in the state directory that holds the WireGuard private key as `wg genkey` writes it; mode 0600. */
export const IDENTITY_FILE = "private.key";

/**
 * The agent's identity: the key it is known by in the network, made once and kept. A damaged file is an error and never
 * replaced, because a new key would be a new peer. Throws AgentError `state-dir`.
 */
export function loadIdentity(stateDir: string): PrivateKey {
  const path = join(stateDir, IDENTITY_FILE);
  try {
    makeDirectory(stateDir, 0o700);
    let text: string;
    try {
      text = readFileSync(path, "utf8");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
      const key = PrivateKey.generate();
      writeFileAtomically(path, `${key.toBase64()}\n`);
      return key;
    }
    return PrivateKey.parse(text.trim());
  } catch (cause) {
    throw new AgentError("state-dir", `cannot use the key file ${path}: ${messageOf(cause)}`, { cause });
  }
}
