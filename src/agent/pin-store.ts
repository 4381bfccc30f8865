import { readFileSync } from "node:fs";
import { join } from "node:path";
import { writeFileAtomically } from "#base/atomic-file.ts";
import { messageOf } from "#base/errors.ts";
import { PublicKey } from "#base/keys.ts";
import { AgentError } from "./errors.ts";

/** File in the state directory with one public key a line: the peers that the user pinned. */
export const PIN_FILE = "pinned-peers";

/** Peers that stay connected because the user said so; kept over restarts. */
export class PinStore {
  readonly #path: string;
  #keys: Set<PublicKey> | undefined;

  constructor(stateDir: string) {
    this.#path = join(stateDir, PIN_FILE);
  }

  /** Throws AgentError `state-dir` when the file cannot be read. */
  all(): ReadonlySet<PublicKey> {
    return this.#load();
  }

  has(key: PublicKey): boolean {
    return this.#load().has(key);
  }

  set(key: PublicKey, pinned: boolean): void {
    const keys = this.#load();
    if (keys.has(key) === pinned) return;
    if (pinned) keys.add(key);
    else keys.delete(key);
    writeFileAtomically(this.#path, [...keys, ""].join("\n"));
  }

  #load(): Set<PublicKey> {
    if (this.#keys) return this.#keys;
    try {
      const lines = readFileSync(this.#path, "utf8").split("\n").filter(Boolean);
      this.#keys = new Set(lines.map((line) => PublicKey.parse(line)));
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== "ENOENT") {
        throw new AgentError("state-dir", `cannot read ${this.#path}: ${messageOf(cause)}`, { cause });
      }
      this.#keys = new Set();
    }
    return this.#keys;
  }
}
