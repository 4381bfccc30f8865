import { randomBytes } from "node:crypto";
import type { PublicKey } from "#base/keys.ts";

/** Changes remembered; who was away for more gets a whole map. */
const CHANGES_MAX = 16_384;

/** Which peers changed, in order, so that a receiver can be told what is new since the revision it has. */
export class ChangeLog {
  /** A revision means something together with the epoch only: a new process counts anew. */
  readonly epoch: string = randomBytes(6).toString("base64url");
  readonly #keys: PublicKey[] = [];
  /** Revision before the first of `#keys`. */
  #before = 0;

  get revision(): number {
    return this.#before + this.#keys.length;
  }

  note(key: PublicKey): void {
    if (this.#keys.length >= 2 * CHANGES_MAX) {
      this.#keys.splice(0, CHANGES_MAX);
      this.#before += CHANGES_MAX;
    }
    this.#keys.push(key);
  }

  /** Peers that were added, changed or removed after `revision`; undefined when that is not known any more. */
  since(revision: number): ReadonlySet<PublicKey> | undefined {
    if (revision < this.#before || revision > this.revision) return undefined;
    return new Set(this.#keys.slice(revision - this.#before));
  }
}
