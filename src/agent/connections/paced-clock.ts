import { DeadlineQueue } from "#base/deadline-queue.ts";
import { DeadlineTimer } from "#base/deadline-timer.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";

/** Callbacks that run before everybody else gets a turn; those of a peer take up to a millisecond each. */
export const CALLBACKS_PER_TURN = 8;

/**
 * The clock of all peers: one timer of the real one, whatever number is pending, and few callbacks in a row. Peers that woke
 * together repeat their messages together; without the pause, hundreds would be due in one turn of the event loop.
 */
export class PacedClock implements Clock {
  readonly #clock: Clock;
  readonly #queue = new DeadlineQueue<{ readonly callback: () => void }>();
  readonly #timer: DeadlineTimer;

  constructor(clock: Clock) {
    this.#clock = clock;
    this.#timer = new DeadlineTimer(clock, () => this.#run());
  }

  now(): Millis {
    return this.#clock.now();
  }

  wall(): number {
    return this.#clock.wall();
  }

  after(delay: Millis, callback: () => void): Timer {
    const entry = { callback };
    this.#queue.set(entry, this.#clock.now() + delay);
    this.#arm();
    return {
      cancel: () => {
        this.#queue.cancel(entry);
        this.#arm();
      },
    };
  }

  #run(): void {
    const now = this.#clock.now();
    try {
      for (let count = 0; count < CALLBACKS_PER_TURN; count++) {
        const entry = this.#queue.takeDue(now);
        if (!entry) break;
        entry.callback();
      }
    } finally {
      this.#arm();
    }
  }

  #arm(): void {
    this.#timer.set(this.#queue.next());
  }
}
