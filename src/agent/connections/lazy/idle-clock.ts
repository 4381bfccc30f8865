import { DeadlineQueue } from "#base/deadline-queue.ts";
import { DeadlineTimer } from "#base/deadline-timer.ts";
import type { Clock, Millis } from "#base/time.ts";

/**
 * One clock for the sleep of all peers: a queue by the next instant at which a peer may have been idle for long enough, and
 * one timer at the earliest. Activity does not touch the queue: when a peer is due, `due` looks at the counters and returns
 * the next instant worth looking, or undefined to stop watching.
 */
export class IdleClock<Key> {
  readonly #clock: Clock;
  readonly #due: (key: Key, now: Millis) => Millis | undefined;
  #queue = new DeadlineQueue<Key>();
  readonly #timer: DeadlineTimer;

  constructor(clock: Clock, due: (key: Key, now: Millis) => Millis | undefined) {
    this.#clock = clock;
    this.#due = due;
    this.#timer = new DeadlineTimer(clock, () => this.#fire());
  }

  /** Number of watched keys. */
  get size(): number {
    return this.#queue.size;
  }

  /** Watches `key`, first looked at when `at` has come; replaces an earlier watch. */
  watch(key: Key, at: Millis): void {
    this.#queue.set(key, at);
    this.#arm();
  }

  unwatch(key: Key): void {
    this.#queue.cancel(key);
    this.#arm();
  }

  close(): void {
    this.#queue = new DeadlineQueue();
    this.#arm();
  }

  #fire(): void {
    const now = this.#clock.now();
    for (let key = this.#queue.takeDue(now); key !== undefined; key = this.#queue.takeDue(now)) {
      const next = this.#due(key, now);
      if (next !== undefined && !this.#queue.has(key)) this.#queue.set(key, Math.max(next, now + 1));
    }
    this.#arm();
  }

  #arm(): void {
    this.#timer.set(this.#queue.next());
  }
}
