import type { Millis } from "#base/time.ts";

/** So many in each stretch of time, counted from the first in it or, where what is taken takes long, from its end. Pure. */
export class Quota {
  readonly #limit: number;
  readonly #per: Millis;
  #since = Number.NEGATIVE_INFINITY;
  #taken = 0;

  constructor(limit: number, per: Millis) {
    this.#limit = limit;
    this.#per = per;
  }

  /** True while there is one left. */
  take(now: Millis): boolean {
    if (now - this.#since >= this.#per) {
      this.#since = now;
      this.#taken = 0;
    }
    if (this.#taken === this.#limit) return false;
    this.#taken++;
    return true;
  }

  /** What was taken is done only now: on a busy machine it may have taken longer than the stretch. */
  noteDone(now: Millis): void {
    this.#since = now;
  }
}
