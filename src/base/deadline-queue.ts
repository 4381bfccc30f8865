import type { Millis } from "./time.ts";

interface Entry<Id> {
  readonly at: Millis;
  readonly id: Id;
}

/**
 * Deadlines of many things that need one timer: at most one deadline per id, the earliest first. A binary heap; a
 * deadline that was moved or cancelled stays in it until its time comes or until such leftovers are half of it.
 */
export class DeadlineQueue<Id> {
  #heap: Entry<Id>[] = [];
  readonly #current = new Map<Id, Entry<Id>>();

  get size(): number {
    return this.#current.size;
  }

  has(id: Id): boolean {
    return this.#current.has(id);
  }

  /** Sets or moves the deadline of `id`. */
  set(id: Id, at: Millis): void {
    const entry = { at, id };
    this.#current.set(id, entry);
    this.#push(entry);
    if (this.#heap.length > 64 && this.#heap.length > 2 * this.#current.size) this.#rebuild();
  }

  cancel(id: Id): void {
    this.#current.delete(id);
    if (this.#current.size === 0) this.#heap = [];
  }

  /** When the next one is due, undefined when there is none. */
  next(): Millis | undefined {
    this.#dropLeftovers();
    return this.#heap[0]?.at;
  }

  /** Takes out the earliest id that is due, undefined when none is. */
  takeDue(now: Millis): Id | undefined {
    this.#dropLeftovers();
    const first = this.#heap[0];
    if (!first || first.at > now) return undefined;
    this.#pop();
    this.#current.delete(first.id);
    return first.id;
  }

  #dropLeftovers(): void {
    for (let first = this.#heap[0]; first && this.#current.get(first.id) !== first; first = this.#heap[0]) this.#pop();
  }

  #rebuild(): void {
    this.#heap = [];
    for (const entry of this.#current.values()) this.#push(entry);
  }

  #push(entry: Entry<Id>): void {
    const heap = this.#heap;
    let at = heap.length;
    heap.push(entry);
    while (at > 0) {
      const above = (at - 1) >> 1;
      if (heap[above]!.at <= entry.at) break;
      heap[at] = heap[above]!;
      at = above;
    }
    heap[at] = entry;
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop()!;
    if (heap.length === 0) return;
    let at = 0;
    for (;;) {
      let below = 2 * at + 1;
      if (below >= heap.length) break;
      if (below + 1 < heap.length && heap[below + 1]!.at < heap[below]!.at) below++;
      if (heap[below]!.at >= last.at) break;
      heap[at] = heap[below]!;
      at = below;
    }
    heap[at] = last;
  }
}
