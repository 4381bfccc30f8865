import type { Clock, Millis, Timer } from "./time.ts";

/** One timer for whatever comes first; armed again only when that changes. */
export class DeadlineTimer {
  readonly #clock: Clock;
  readonly #fire: () => void;
  #timer: Timer | undefined;
  #at: Millis | undefined;

  constructor(clock: Clock, fire: () => void) {
    this.#clock = clock;
    this.#fire = fire;
  }

  /** Fires at `at`, or at once when that is past; undefined: not at all. */
  set(at: Millis | undefined): void {
    if (at === this.#at) return;
    this.#timer?.cancel();
    this.#at = at;
    if (at === undefined) return;
    this.#timer = this.#clock.after(Math.max(0, at - this.#clock.now()), () => {
      this.#at = undefined;
      this.#fire();
    });
  }
}
