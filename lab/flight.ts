import type { Millis } from "#base/time.ts";

/** Where a packet goes when its time comes. */
export type Leg = "to-core" | "to-site";

/** A packet on its way through the lab. From the pool, owned by one holder at a time. */
export interface Packet {
  readonly bytes: Uint8Array;
  length: number;
  /** Index of the host that sent it; -1 for a router's own. */
  from: number;
  leg: Leg;
  /** Index of the site whose link it is on. */
  site: number;
  due: Millis;
  order: number;
}

/** Reuses packet buffers. `take` gives undefined when `limit` of them are under way: the caller drops. */
export class PacketPool {
  readonly #free: Packet[] = [];
  readonly #bytes: number;
  readonly #limit: number;
  #made = 0;

  constructor(bytes: number, limit: number) {
    this.#bytes = bytes;
    this.#limit = limit;
  }

  take(): Packet | undefined {
    const packet = this.#free.pop();
    if (packet) return packet;
    if (this.#made >= this.#limit) return undefined;
    this.#made++;
    return { bytes: new Uint8Array(this.#bytes), length: 0, from: -1, leg: "to-core", site: 0, due: 0, order: 0 };
  }

  give(packet: Packet): void {
    this.#free.push(packet);
  }
}

/** Packets by the time they are due; equal times leave in the order they came. A binary heap. */
export class Flight {
  readonly #heap: Packet[] = [];
  #order = 0;

  get size(): number {
    return this.#heap.length;
  }

  nextDue(): Millis | undefined {
    return this.#heap[0]?.due;
  }

  add(packet: Packet, due: Millis): void {
    packet.due = due;
    packet.order = this.#order++;
    const heap = this.#heap;
    let at = heap.length;
    heap.push(packet);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!isBefore(packet, heap[parent]!)) break;
      heap[at] = heap[parent]!;
      at = parent;
    }
    heap[at] = packet;
  }

  /** The first packet that is due by `now`, or undefined. */
  take(now: Millis): Packet | undefined {
    const heap = this.#heap;
    const first = heap[0];
    if (!first || first.due > now) return undefined;
    const last = heap.pop()!;
    if (heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = at * 2 + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++;
      if (!isBefore(heap[child]!, last)) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = last;
    return first;
  }
}

function isBefore(a: Packet, b: Packet): boolean {
  return a.due < b.due || (a.due === b.due && a.order < b.order);
}
