import type { InnerFlow } from "./inner-flow.ts";

/** Packets whose later fragments may pass; more at a time push the oldest out. */
export const FRAGMENTED_LIMIT = 1024;
/** Time for the rest of a packet to come, in seconds; the kernel waits as long for IPv4. */
export const FRAGMENT_SECONDS = 30;

const KEY_WORDS = 10;
/** Places asked for one packet. */
const WAYS = 4;

/**
 * Fragmented packets whose first fragment passed: later ones have no ports to judge them by. A small table in which each
 * packet may lie in one of four places, so that nothing has to be kept in order.
 */
export class Fragments {
  /** Device clock in whole seconds. */
  now = 0;
  readonly #keys = new Int32Array(KEY_WORDS * FRAGMENTED_LIMIT);
  readonly #addedAt = new Int32Array(FRAGMENTED_LIMIT).fill(-FRAGMENT_SECONDS);

  /** The first fragment passed. */
  add(flow: InnerFlow): void {
    const base = place(flow);
    let chosen = this.#find(flow);
    if (chosen < 0) {
      chosen = base;
      for (let i = 1; i < WAYS; i++) if (this.#addedAt[base + i]! < this.#addedAt[chosen]!) chosen = base + i;
      this.#store(chosen, flow);
    }
    this.#addedAt[chosen] = this.now;
  }

  /** Whether the first fragment of this later one passed. */
  has(flow: InnerFlow): boolean {
    return this.#find(flow) >= 0;
  }

  #find(flow: InnerFlow): number {
    const base = place(flow);
    for (let i = base; i < base + WAYS; i++) {
      if (this.now - this.#addedAt[i]! < FRAGMENT_SECONDS && this.#holds(i, flow)) return i;
    }
    return -1;
  }

  #holds(index: number, flow: InnerFlow): boolean {
    const at = index * KEY_WORDS;
    const keys = this.#keys;
    return (
      keys[at] === flow.fragmentId &&
      keys[at + 1] === kindOf(flow) &&
      keys[at + 2] === flow.source0 &&
      keys[at + 3] === flow.source1 &&
      keys[at + 4] === flow.source2 &&
      keys[at + 5] === flow.source3 &&
      keys[at + 6] === flow.destination0 &&
      keys[at + 7] === flow.destination1 &&
      keys[at + 8] === flow.destination2 &&
      keys[at + 9] === flow.destination3
    );
  }

  #store(index: number, flow: InnerFlow): void {
    const at = index * KEY_WORDS;
    const keys = this.#keys;
    keys[at] = flow.fragmentId;
    keys[at + 1] = kindOf(flow);
    keys[at + 2] = flow.source0;
    keys[at + 3] = flow.source1;
    keys[at + 4] = flow.source2;
    keys[at + 5] = flow.source3;
    keys[at + 6] = flow.destination0;
    keys[at + 7] = flow.destination1;
    keys[at + 8] = flow.destination2;
    keys[at + 9] = flow.destination3;
  }
}

/** IPv4 tells packets apart by the protocol too (RFC 791), IPv6 does not: other headers may follow in the first one. */
function kindOf(flow: InnerFlow): number {
  return flow.isV6 ? 256 : flow.protocol;
}

function place(flow: InnerFlow): number {
  let h = Math.imul(flow.fragmentId ^ flow.source0, 0x9e3779b1) ^ flow.source3;
  h = Math.imul(h ^ (h >>> 15), 0x85ebca6b);
  return (h ^ (h >>> 13)) & (FRAGMENTED_LIMIT - WAYS) & ~(WAYS - 1);
}
