import type { Clock, Millis } from "#base/time.ts";

/** So many peers may be woken by name at once; a program that looks up all names of a network does not want to talk to all. */
export const BURST = 16;
/** Then one in this time. */
export const REFILL: Millis = 2000;

/** How many peers questions for their names may wake: a bucket that fills by itself. */
export class NameWakes {
  readonly #clock: Clock;
  #left = BURST;
  #countedAt: Millis;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#countedAt = clock.now();
  }

  /** Takes one; false when there is none. */
  take(): boolean {
    const now = this.#clock.now();
    const gained = Math.floor((now - this.#countedAt) / REFILL);
    this.#left = Math.min(BURST, this.#left + gained);
    this.#countedAt = this.#left === BURST ? now : this.#countedAt + gained * REFILL;
    if (this.#left === 0) return false;
    this.#left--;
    return true;
  }
}
