import type { Millis } from "#base/time.ts";

/** How another program that writes our file is answered. */
export interface RewritePolicy {
  /** A writer has finished when nothing happened for so long; ten times as long is waited for one that goes on and on. */
  readonly settle: Millis;
  /** A file that is absent or empty gets so much more time: some programs remove it first. */
  readonly emptyGrace: Millis;
  /** Ours is put in again at most this often. */
  readonly pause: Millis;
  /** So many rewritings within `window` are a fight, which we leave for `truce`. */
  readonly rewritings: number;
  readonly window: Millis;
  readonly truce: Millis;
}

/** A DHCP client or a network manager writes once or twice when the network changes; a guardian writes whenever we do. */
export const REWRITE_POLICY: RewritePolicy = {
  settle: 300,
  emptyGrace: 2000,
  pause: 3000,
  rewritings: 5,
  window: 60_000,
  truce: 600_000,
};

/** When ours is put in again, and whether it is left to the other program until then. */
export interface RewriteAnswer {
  readonly at: Millis;
  readonly isFight: boolean;
}

/** Decides, without doing anything, when a file that another program rewrote is taken back. */
export class RewriteGuard {
  readonly #policy: RewritePolicy;
  #rewritings: readonly Millis[] = [];
  #lastPut: Millis = Number.NEGATIVE_INFINITY;

  constructor(policy: RewritePolicy = REWRITE_POLICY) {
    this.#policy = policy;
  }

  /** Of the fight that goes on, or of what may become one. */
  get count(): number {
    return this.#rewritings.length;
  }

  /** Another program's content was found in the place of ours; once for each time that ours was put in. */
  noteRewritten(now: Millis): RewriteAnswer {
    const { rewritings, window, truce } = this.#policy;
    this.#rewritings = [...this.#rewritings.filter((at) => now - at < window), now];
    if (this.#rewritings.length < rewritings) return { at: this.nextPut(now), isFight: false };
    return { at: now + truce, isFight: true };
  }

  /** When ours may be put in at the earliest, whatever the reason. */
  nextPut(now: Millis): Millis {
    return Math.max(now, this.#lastPut + this.#policy.pause);
  }

  /** Ours is in its place. */
  notePut(now: Millis): void {
    this.#lastPut = now;
  }
}
