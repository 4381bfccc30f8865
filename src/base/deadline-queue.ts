import { BinaryHeap } from "./binary-heap.ts";
import type { Millis } from "./time.ts";

interface Entry<Id> {
  readonly at: Millis;
  readonly id: Id;
}

/**
 * Deadlines of many things that need one timer: at most one deadline per id, the earliest first. A deadline that was moved
 * or cancelled stays in the heap until its time comes or until such leftovers are half of it.
 */
export class DeadlineQueue<Id> {
  readonly #heap = new BinaryHeap<Entry<Id>>((a, b) => a.at < b.at);
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
    this.#heap.push(entry);
    if (this.#heap.size > 64 && this.#heap.size > 2 * this.#current.size) this.#rebuild();
  }

  cancel(id: Id): void {
    this.#current.delete(id);
    if (this.#current.size === 0) this.#heap.clear();
  }

  /** When the next one is due, undefined when there is none. */
  next(): Millis | undefined {
    this.#dropLeftovers();
    return this.#heap.first?.at;
  }

  /** Takes out the earliest id that is due, undefined when none is. */
  takeDue(now: Millis): Id | undefined {
    this.#dropLeftovers();
    const { first } = this.#heap;
    if (!first || first.at > now) return undefined;
    this.#heap.pop();
    this.#current.delete(first.id);
    return first.id;
  }

  #dropLeftovers(): void {
    const heap = this.#heap;
    while (heap.first && this.#current.get(heap.first.id) !== heap.first) heap.pop();
  }

  #rebuild(): void {
    this.#heap.clear();
    for (const entry of this.#current.values()) this.#heap.push(entry);
  }
}
