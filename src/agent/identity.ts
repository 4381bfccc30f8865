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
 * replaced, because a new key would be a new peer. The key is never in a string, which nobody could wipe. Throws AgentError
 * `state-dir`.
 */
export function loadIdentity(stateDir: string): PrivateKey {
  const path = join(stateDir, IDENTITY_FILE);
  try {
    makeDirectory(stateDir, 0o700);
    const content = readIfThere(path);
    if (content === undefined) return create(path);
    try {
      return PrivateKey.parse(withoutSpace(content));
    } finally {
      content.fill(0);
    }
  } catch (cause) {
    throw new AgentError("state-dir", `cannot use the key file ${path}: ${messageOf(cause)}`, { cause });
  }
}

function readIfThere(path: string): Buffer | undefined {
  try {
    return readFileSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    return undefined;
  }
}

function create(path: string): PrivateKey {
  const key = PrivateKey.generate();
  const text = key.encode();
  const line = new Uint8Array(text.length + 1).fill(NEWLINE);
  line.set(text);
  try {
    writeFileAtomically(path, line);
  } finally {
    text.fill(0);
    line.fill(0);
  }
  return key;
}

/** What lies between spaces, tabs and line ends. */
function withoutSpace(bytes: Uint8Array): Uint8Array {
  let start = 0;
  let end = bytes.length;
  while (start < end && SPACE.includes(bytes[start]!)) start++;
  while (end > start && SPACE.includes(bytes[end - 1]!)) end--;
  return bytes.subarray(start, end);
}

const NEWLINE = 0x0a;
const SPACE: readonly number[] = [0x20, 0x09, NEWLINE, 0x0d];
