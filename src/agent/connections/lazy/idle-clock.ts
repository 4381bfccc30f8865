import type { Clock, Millis, Timer } from "#base/time.ts";

/**
 * One clock for the sleep of all peers: a heap by the next instant at which a peer may have been idle for long enough,
 * and one timer at the earliest. Activity does not touch the heap: when an entry is due, `due` looks at the counters and
 * returns the next instant worth looking, or undefined to stop watching.
 */
export class IdleClock<Key> {
  readonly #clock: Clock;
  readonly #due: (key: Key, now: Millis) => Millis | undefined;
  readonly #heap: Entry<Key>[] = [];
  readonly #entries = new Map<Key, Entry<Key>>();
  #timer: Timer | undefined;
  #timerAt: Millis | undefined;

  constructor(clock: Clock, due: (key: Key, now: Millis) => Millis | undefined) {
    this.#clock = clock;
    this.#due = due;
  }

  /** Number of watched keys. */
  get size(): number {
    return this.#entries.size;
  }

  /** Watches `key`, first looked at when `at` has come; replaces an earlier watch. */
  watch(key: Key, at: Millis): void {
    this.unwatch(key);
    const entry: Entry<Key> = { key, at, index: this.#heap.length };
    this.#heap.push(entry);
    this.#entries.set(key, entry);
    this.#up(entry.index);
    this.#arm();
  }

  unwatch(key: Key): void {
    const entry = this.#entries.get(key);
    if (!entry) return;
    this.#entries.delete(key);
    const last = this.#heap.pop()!;
    if (last !== entry) {
      this.#heap[entry.index] = last;
      last.index = entry.index;
      this.#up(last.index);
      this.#down(last.index);
    }
    this.#arm();
  }

  close(): void {
    this.#heap.length = 0;
    this.#entries.clear();
    this.#arm();
  }

  #fire(): void {
    this.#timer = undefined;
    this.#timerAt = undefined;
    const now = this.#clock.now();
    for (let first = this.#heap[0]; first && first.at <= now; first = this.#heap[0]) {
      this.unwatch(first.key);
      const next = this.#due(first.key, now);
      if (next !== undefined && !this.#entries.has(first.key)) this.watch(first.key, Math.max(next, now + 1));
    }
    this.#arm();
  }

  #arm(): void {
    const at = this.#heap[0]?.at;
    if (at === this.#timerAt) return;
    this.#timer?.cancel();
    this.#timerAt = at;
    this.#timer =
      at === undefined ? undefined : this.#clock.after(Math.max(0, at - this.#clock.now()), () => this.#fire());
  }

  #up(index: number): void {
    let at = index;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (this.#heap[parent]!.at <= this.#heap[at]!.at) return;
      this.#swap(at, parent);
      at = parent;
    }
  }

  #down(index: number): void {
    let at = index;
    for (;;) {
      let least = at;
      for (const child of [2 * at + 1, 2 * at + 2]) {
        if (child < this.#heap.length && this.#heap[child]!.at < this.#heap[least]!.at) least = child;
      }
      if (least === at) return;
      this.#swap(at, least);
      at = least;
    }
  }

  #swap(a: number, b: number): void {
    const [first, second] = [this.#heap[a]!, this.#heap[b]!];
    [this.#heap[a], this.#heap[b]] = [second, first];
    first.index = b;
    second.index = a;
  }
}

interface Entry<Key> {
  readonly key: Key;
  readonly at: Millis;
  index: number;
}
