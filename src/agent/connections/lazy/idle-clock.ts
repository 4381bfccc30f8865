import { DeadlineQueue } from "#base/deadline-queue.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";

/**
 * One clock for the sleep of all peers: a queue by the next instant at which a peer may have been idle for long enough, and
 * one timer at the earliest. Activity does not touch the queue: when a peer is due, `due` looks at the counters and returns
 * the next instant worth looking, or undefined to stop watching.
 */
export class IdleClock<Key> {
  readonly #clock: Clock;
  readonly #due: (key: Key, now: Millis) => Millis | undefined;
  #queue = new DeadlineQueue<Key>();
  #timer: Timer | undefined;
  #timerAt: Millis | undefined;

  constructor(clock: Clock, due: (key: Key, now: Millis) => Millis | undefined) {
    this.#clock = clock;
    this.#due = due;
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
    this.#timer = undefined;
    this.#timerAt = undefined;
    const now = this.#clock.now();
    for (let key = this.#queue.takeDue(now); key !== undefined; key = this.#queue.takeDue(now)) {
      const next = this.#due(key, now);
      if (next !== undefined && !this.#queue.has(key)) this.#queue.set(key, Math.max(next, now + 1));
    }
    this.#arm();
  }

  #arm(): void {
    const at = this.#queue.next();
    if (at === this.#timerAt) return;
    this.#timer?.cancel();
    this.#timerAt = at;
    this.#timer =
      at === undefined ? undefined : this.#clock.after(Math.max(0, at - this.#clock.now()), () => this.#fire());
  }
}
