import type { Clock, Millis, Timer } from "#base/time.ts";

/** What a wake is for: somebody is waiting for it now, or it may wait its turn (start-up, permanent peers). */
export type WakePriority = "interactive" | "background";

/** Peers that may negotiate at the same moment; further wakes wait in order, interactive ones first. */
export const MAX_NEGOTIATING = 64;

/** A negotiation that proved nothing by then gives its place to the next; it goes on by itself. */
export const NEGOTIATION_PATIENCE: Millis = 3000;

/**
 * Admission of wakes: at most `limit` peers negotiate at once. A place is taken by `request` and given back by `release`
 * (connected, or asleep again) or after NEGOTIATION_PATIENCE. Requests are remembered once per key; a background request
 * becomes interactive when somebody asks for it.
 */
export class WakeQueue<Key> {
  readonly #clock: Clock;
  readonly #limit: number;
  readonly #start: (key: Key) => void;
  readonly #running = new Map<Key, Timer>();
  readonly #waiting: Record<WakePriority, Set<Key>> = { interactive: new Set(), background: new Set() };

  constructor(clock: Clock, start: (key: Key) => void, limit = MAX_NEGOTIATING) {
    this.#clock = clock;
    this.#start = start;
    this.#limit = limit;
  }

  get waiting(): number {
    return this.#waiting.interactive.size + this.#waiting.background.size;
  }

  get negotiating(): number {
    return this.#running.size;
  }

  /** Starts the wake now when there is a place, else later. */
  request(key: Key, priority: WakePriority): void {
    if (this.#running.has(key)) return;
    this.#waiting.background.delete(key);
    if (this.#waiting.interactive.has(key)) return;
    this.#waiting[priority].add(key);
    this.#admit();
  }

  /** The negotiation of `key` is over, or it is not wanted any more. */
  release(key: Key): void {
    this.#waiting.interactive.delete(key);
    this.#waiting.background.delete(key);
    this.#running.get(key)?.cancel();
    if (this.#running.delete(key)) this.#admit();
  }

  close(): void {
    for (const timer of this.#running.values()) timer.cancel();
    this.#running.clear();
    this.#waiting.interactive.clear();
    this.#waiting.background.clear();
  }

  #admit(): void {
    for (const waiting of [this.#waiting.interactive, this.#waiting.background]) {
      for (const key of waiting) {
        if (this.#running.size >= this.#limit) return;
        waiting.delete(key);
        this.#running.set(
          key,
          this.#clock.after(NEGOTIATION_PATIENCE, () => this.release(key)),
        );
        this.#start(key);
      }
    }
  }
}
