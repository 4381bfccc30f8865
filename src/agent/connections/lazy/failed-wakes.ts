import type { Millis } from "#base/time.ts";

/** A wake that no handshake proved by then has failed, when the peer was there. */
export const PROOF_BUDGET: Millis = 30_000;
/** So many failed wakes in a row make a peer permanent. */
export const FAILURES_TO_KEEP = 2;
const FIRST_TERM: Millis = 3_600_000;
const MAX_TERM: Millis = 24 * 3_600_000;

/** What is known of a peer whose wakes fail. */
interface Trouble {
  failures: number;
  /** Length of the term it is kept for, and its end; undefined while it is not kept. */
  term: Millis;
  until: Millis | undefined;
}

/**
 * Peers whose wakes fail although they are there. After two failures in a row a peer is kept connected for an hour: each
 * further attempt is then made without somebody waiting for it. At the end of its term a peer that is connected is lazy
 * again and its failures are forgotten; one that is not is kept twice as long, a day at most. Pure; holds nothing of
 * peers without trouble.
 */
export class FailedWakes<Key> {
  readonly #troubles = new Map<Key, Trouble>();

  /** The peer is kept connected for its failed wakes until this instant. */
  keptUntil(key: Key): Millis | undefined {
    return this.#troubles.get(key)?.until;
  }

  /** Number of peers that are kept. */
  get kept(): number {
    let count = 0;
    for (const { until } of this.#troubles.values()) if (until !== undefined) count++;
    return count;
  }

  /** A wake failed. Returns when to look at the peer again if it is kept from now on. */
  noteFailed(key: Key, now: Millis): Millis | undefined {
    const trouble = this.#troubles.get(key) ?? { failures: 0, term: FIRST_TERM, until: undefined };
    this.#troubles.set(key, trouble);
    trouble.failures++;
    if (trouble.until !== undefined || trouble.failures < FAILURES_TO_KEEP) return undefined;
    trouble.until = now + trouble.term;
    return trouble.until;
  }

  /** A handshake proved the peer: a failure before it was no row. */
  noteProven(key: Key): void {
    if (this.#troubles.get(key)?.until === undefined) this.#troubles.delete(key);
  }

  /** The term of a kept peer is over. Returns the end of the next one, or undefined when the peer may be lazy again. */
  endTerm(key: Key, connected: boolean, now: Millis): Millis | undefined {
    const trouble = this.#troubles.get(key);
    if (!trouble) return undefined;
    if (connected) {
      this.#troubles.delete(key);
      return undefined;
    }
    trouble.term = Math.min(MAX_TERM, trouble.term * 2);
    trouble.until = now + trouble.term;
    return trouble.until;
  }

  forget(key: Key): void {
    this.#troubles.delete(key);
  }
}
