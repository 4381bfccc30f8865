import type { Clock, Millis, Timer } from "#base/time.ts";

/** Quiet time after which held updates go out. */
export const QUIET_PERIOD: Millis = 1_000;

/** Longest time an update is held while others keep coming; without it a network that never rests would never hear of itself. */
export const MAX_HOLD: Millis = 5_000;

/**
 * Paces the updates of one stream (protocol/management.md, section 5.4): the first goes out at once, those that follow are held
 * until a second has passed without another one. Updates carry no content, so however many are held, one goes out.
 *
 *            note: emit, arm                      note: held, arm again
 *     open ------------------> quiet, none held -------------------> quiet, one held
 *       ^                        |        ^                              |
 *       '------- timer ----------'        '------- timer: emit, arm -----'
 */
export class UpdateGate {
  readonly #clock: Clock;
  readonly #emit: () => void;
  #timer: Timer | undefined;
  /** When the first held update came; undefined: none is held. */
  #heldSince: Millis | undefined;

  constructor(clock: Clock, emit: () => void) {
    this.#clock = clock;
    this.#emit = emit;
  }

  note(): void {
    if (!this.#timer) {
      this.#arm(QUIET_PERIOD);
      this.#emit();
      return;
    }
    const now = this.#clock.now();
    this.#heldSince ??= now;
    this.#timer.cancel();
    this.#arm(Math.min(QUIET_PERIOD, Math.max(0, this.#heldSince + MAX_HOLD - now)));
  }

  close(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
    this.#heldSince = undefined;
  }

  #arm(delay: Millis): void {
    this.#timer = this.#clock.after(delay, () => {
      this.#timer = undefined;
      if (this.#heldSince === undefined) return;
      this.#heldSince = undefined;
      this.#arm(QUIET_PERIOD);
      this.#emit();
    });
  }
}
