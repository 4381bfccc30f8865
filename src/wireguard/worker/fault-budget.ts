import type { Millis } from "#base/time.ts";

/** So many faults within `window` are one too many. */
export const FAULTS_MAX = 5;
export const FAULT_WINDOW: Millis = 60_000;

/** Decides whether a worker that died is worth replacing: a fault that comes back at once would cost all time there is. */
export class FaultBudget {
  readonly #at: Millis[] = [];

  /** Notes a fault at `now`; false when it was the last straw. */
  take(now: Millis): boolean {
    this.#at.push(now);
    if (this.#at.length < FAULTS_MAX) return true;
    return now - this.#at.shift()! >= FAULT_WINDOW;
  }
}
