import type { Clock, Millis } from "#base/time.ts";

/** Signal messages of one agent, per second, over any longer time; wakes wait for what is above. */
export const SIGNAL_RATE = 500;
/** Messages that a quiet agent may send at once. */
export const SIGNAL_BURST = 250;
/** Of these, what wakes that can wait leave to those that cannot. */
const RESERVE = SIGNAL_BURST / 4;

/**
 * What new wakes may cost: each message that is sent is paid for, also those that nobody could hold back (answers, offers
 * that are repeated), and while there is a debt no wake begins. A bucket of SIGNAL_BURST that fills at SIGNAL_RATE.
 */
export class MessageBudget {
  readonly #clock: Clock;
  readonly #rate: number;
  readonly #burst: number;
  #balance: number;
  #at: Millis;

  constructor(clock: Clock, rate = SIGNAL_RATE, burst = SIGNAL_BURST) {
    this.#clock = clock;
    this.#rate = rate;
    this.#burst = burst;
    this.#balance = burst;
    this.#at = clock.now();
  }

  /** A message is sent. */
  spend(): void {
    this.#fill();
    // A change of the network makes hundreds speak at once; a wake after it does not wait for longer than a moment.
    this.#balance = Math.max(-this.#burst, this.#balance - 1);
  }

  /** Time until a wake may begin, if nothing is sent meanwhile; a patient one leaves RESERVE. */
  timeUntil(patient: boolean): Millis {
    this.#fill();
    const needed = 1 + (patient ? RESERVE : 0);
    return Math.ceil((Math.max(0, needed - this.#balance) / this.#rate) * 1000);
  }

  #fill(): void {
    const now = this.#clock.now();
    this.#balance = Math.min(this.#burst, this.#balance + ((now - this.#at) / 1000) * this.#rate);
    this.#at = now;
  }
}
