import { randomFillSync } from "node:crypto";

/** LE32 of the bytes 21 12 a4 42: an index equal to STUN's magic cookie would confuse sloppy demultiplexers (RFC 7983). */
const STUN_COOKIE = 0x42a41221;
const POOL = 256;

/**
 * Session indices: 32-bit numbers, random, unique in the device over handshakes and sessions, each naming an owner.
 * Zero is never drawn, so that tables elsewhere may use it for "none".
 */
export class IndexTable<Owner> {
  readonly #owners = new Map<number, Owner>();
  readonly #random: () => number;

  /** `random` gives 32-bit numbers; the default draws them from the operating system, many at a time. */
  constructor(random: () => number = createRandomU32()) {
    this.#random = random;
  }

  get size(): number {
    return this.#owners.size;
  }

  allocate(owner: Owner): number {
    for (;;) {
      const index = this.#random() >>> 0;
      if (index === 0 || index === STUN_COOKIE || this.#owners.has(index)) continue;
      this.#owners.set(index, owner);
      return index;
    }
  }

  get(index: number): Owner | undefined {
    return this.#owners.get(index);
  }

  free(index: number): void {
    this.#owners.delete(index);
  }

  /** Frees all indices but those that `keep` wants; returns the owners of the freed. */
  freeAll(keep: (index: number, owner: Owner) => boolean): Set<Owner> {
    const owners = new Set<Owner>();
    for (const [index, owner] of this.#owners) {
      if (keep(index, owner)) continue;
      this.#owners.delete(index);
      owners.add(owner);
    }
    return owners;
  }
}

function createRandomU32(): () => number {
  const pool = new Uint32Array(POOL);
  let next = POOL;
  return () => {
    if (next === POOL) {
      randomFillSync(pool);
      next = 0;
    }
    return pool[next++]!;
  };
}
