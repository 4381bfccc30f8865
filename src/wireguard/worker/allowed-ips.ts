/**
 * Cryptokey routing (paper section 2): which peer a prefix belongs to, longest prefix first. One table per family.
 *
 * Every prefix is an entry in typed arrays, found by a hash of its masked address and its length; a lookup asks once for
 * each prefix length in use, longest first. Host prefixes are by far the most and are found with the first question, so
 * that the cost does not depend on the number of peers. The last destination is remembered.
 *
 * Addresses are four 32-bit words in network order; an IPv4 address is the first of them, the others are 0.
 */
export class AllowedIps {
  readonly #maxBits: 32 | 128;
  /** Entries; `#slot` -1 marks a free one, whose `#next` is the next free. */
  #words = new Int32Array(4 * INITIAL_ENTRIES);
  #bits = new Uint8Array(INITIAL_ENTRIES);
  #slot = new Int32Array(INITIAL_ENTRIES).fill(-1);
  /** Other entries of the same peer. */
  #next = new Int32Array(INITIAL_ENTRIES);
  #previous = new Int32Array(INITIAL_ENTRIES);
  #used = 0;
  #free = -1;
  #count = 0;
  /** First entry of a peer's chain by slot, + 1; 0: none. */
  #first = new Int32Array(INITIAL_ENTRIES);
  /** Open addressing: entry + 1, 0 empty. At most half full. */
  #table = new Int32Array(2 * INITIAL_ENTRIES);
  readonly #lengthUse: Uint32Array;
  /** Prefix lengths in use, longest first. */
  #lengths = new Uint8Array(0);

  #lastValid = false;
  #last0 = 0;
  #last1 = 0;
  #last2 = 0;
  #last3 = 0;
  #lastSlot = -1;
  #lastBits = -1;

  constructor(maxBits: 32 | 128) {
    this.#maxBits = maxBits;
    this.#lengthUse = new Uint32Array(maxBits + 1);
  }

  /** Prefixes in the table. */
  get size(): number {
    return this.#count;
  }

  /** Length of the prefix that the last `lookup` found. */
  get matchedBits(): number {
    return this.#lastBits;
  }

  /** Prefix lengths in use, longest first. */
  get lengths(): Readonly<Uint8Array> {
    return this.#lengths;
  }

  /** Slot that exactly this prefix belongs to, or -1. */
  exact(w0: number, w1: number, w2: number, w3: number, bits: number): number {
    const entry = this.#find(mask(w0, bits), mask(w1, bits - 32), mask(w2, bits - 64), mask(w3, bits - 96), bits);
    return entry < 0 ? -1 : this.#slot[entry]!;
  }

  /** Slot of the peer that the address belongs to, or -1. */
  lookup(w0: number, w1: number, w2: number, w3: number): number {
    if (
      this.#lastValid &&
      this.#last0 === (w0 | 0) &&
      this.#last1 === (w1 | 0) &&
      this.#last2 === (w2 | 0) &&
      this.#last3 === (w3 | 0)
    ) {
      return this.#lastSlot;
    }
    this.#lastValid = true;
    this.#last0 = w0 | 0;
    this.#last1 = w1 | 0;
    this.#last2 = w2 | 0;
    this.#last3 = w3 | 0;
    this.#lastSlot = -1;
    this.#lastBits = -1;
    for (let i = 0; i < this.#lengths.length; i++) {
      const bits = this.#lengths[i]!;
      const entry = this.#find(mask(w0, bits), mask(w1, bits - 32), mask(w2, bits - 64), mask(w3, bits - 96), bits);
      if (entry < 0) continue;
      this.#lastSlot = this.#slot[entry]!;
      this.#lastBits = bits;
      break;
    }
    return this.#lastSlot;
  }

  /** Gives the prefix to `slot`, taking it from whoever has it. */
  add(w0: number, w1: number, w2: number, w3: number, bits: number, slot: number): void {
    this.#lastValid = false;
    const a = mask(w0, bits);
    const b = mask(w1, bits - 32);
    const c = mask(w2, bits - 64);
    const d = mask(w3, bits - 96);
    const found = this.#find(a, b, c, d, bits);
    if (found >= 0) {
      this.#unchain(found);
      this.#slot[found] = slot;
      this.#chain(found, slot);
      return;
    }
    if (2 * (this.#count + 1) > this.#table.length) this.#rehash(2 * this.#table.length);
    const entry = this.#takeEntry();
    this.#words.set([a, b, c, d], 4 * entry);
    this.#bits[entry] = bits;
    this.#slot[entry] = slot;
    this.#chain(entry, slot);
    this.#insert(entry);
    this.#count++;
    if (this.#lengthUse[bits]!++ === 0) this.#listLengths();
  }

  /** Removes the prefix when it belongs to `slot`. */
  remove(w0: number, w1: number, w2: number, w3: number, bits: number, slot: number): void {
    const entry = this.#find(mask(w0, bits), mask(w1, bits - 32), mask(w2, bits - 64), mask(w3, bits - 96), bits);
    if (entry >= 0 && this.#slot[entry] === slot) this.#removeEntry(entry);
  }

  /** Removes all prefixes of a peer. */
  removePeer(slot: number): void {
    for (;;) {
      const first = this.#first[slot] ?? 0;
      if (first === 0) return;
      this.#removeEntry(first - 1);
    }
  }

  #removeEntry(entry: number): void {
    this.#lastValid = false;
    const bits = this.#bits[entry]!;
    this.#unchain(entry);
    this.#delete(entry);
    this.#slot[entry] = -1;
    this.#next[entry] = this.#free;
    this.#free = entry;
    this.#count--;
    if (--this.#lengthUse[bits]! === 0) this.#listLengths();
  }

  #find(a: number, b: number, c: number, d: number, bits: number): number {
    const table = this.#table;
    const words = this.#words;
    const last = table.length - 1;
    for (let at = hash(a, b, c, d, bits) & last; ; at = (at + 1) & last) {
      const entry = table[at]! - 1;
      if (entry < 0) return -1;
      const w = 4 * entry;
      if (
        words[w] === a &&
        words[w + 1] === b &&
        words[w + 2] === c &&
        words[w + 3] === d &&
        this.#bits[entry] === bits
      ) {
        return entry;
      }
    }
  }

  #hashOf(entry: number): number {
    const w = 4 * entry;
    const words = this.#words;
    return hash(words[w]!, words[w + 1]!, words[w + 2]!, words[w + 3]!, this.#bits[entry]!);
  }

  #insert(entry: number): void {
    const last = this.#table.length - 1;
    let at = this.#hashOf(entry) & last;
    while (this.#table[at] !== 0) at = (at + 1) & last;
    this.#table[at] = entry + 1;
  }

  /** Takes the entry out of the hash and moves back what its absence would make unreachable. */
  #delete(entry: number): void {
    const table = this.#table;
    const last = table.length - 1;
    let hole = this.#hashOf(entry) & last;
    while (table[hole] !== entry + 1) hole = (hole + 1) & last;
    for (let at = (hole + 1) & last; table[at] !== 0; at = (at + 1) & last) {
      const home = this.#hashOf(table[at]! - 1) & last;
      // Movable when its home does not lie in (hole, at], cyclically.
      if (((at - home) & last) < ((at - hole) & last)) continue;
      table[hole] = table[at]!;
      hole = at;
    }
    table[hole] = 0;
  }

  #rehash(length: number): void {
    this.#table = new Int32Array(length);
    for (let entry = 0; entry < this.#used; entry++) if (this.#slot[entry]! >= 0) this.#insert(entry);
  }

  #takeEntry(): number {
    if (this.#free >= 0) {
      const entry = this.#free;
      this.#free = this.#next[entry]!;
      return entry;
    }
    if (this.#used === this.#slot.length) {
      this.#words = grown(this.#words, new Int32Array(2 * this.#words.length));
      this.#slot = grown(this.#slot, new Int32Array(2 * this.#slot.length).fill(-1));
      this.#next = grown(this.#next, new Int32Array(2 * this.#next.length));
      this.#previous = grown(this.#previous, new Int32Array(2 * this.#previous.length));
      const bits = new Uint8Array(2 * this.#bits.length);
      bits.set(this.#bits);
      this.#bits = bits;
    }
    return this.#used++;
  }

  #chain(entry: number, slot: number): void {
    if (slot >= this.#first.length) this.#first = grown(this.#first, new Int32Array(2 * Math.max(slot, 1)));
    const first = this.#first[slot]! - 1;
    this.#next[entry] = first;
    this.#previous[entry] = -1;
    if (first >= 0) this.#previous[first] = entry;
    this.#first[slot] = entry + 1;
  }

  #unchain(entry: number): void {
    const next = this.#next[entry]!;
    const previous = this.#previous[entry]!;
    if (next >= 0) this.#previous[next] = previous;
    if (previous >= 0) this.#next[previous] = next;
    else this.#first[this.#slot[entry]!] = next + 1;
  }

  #listLengths(): void {
    const lengths: number[] = [];
    for (let bits = this.#maxBits; bits >= 0; bits--) if (this.#lengthUse[bits]! > 0) lengths.push(bits);
    this.#lengths = Uint8Array.from(lengths);
  }
}

const INITIAL_ENTRIES = 64;

/** Keeps the first `bits` bits of a word; none below 1, all from 32 on. */
function mask(word: number, bits: number): number {
  if (bits <= 0) return 0;
  return bits >= 32 ? word | 0 : word & (-1 << (32 - bits));
}

function hash(a: number, b: number, c: number, d: number, bits: number): number {
  let h = Math.imul(a ^ Math.imul(bits + 1, 0x9e3779b1), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 15) ^ b, 0xc2b2ae35);
  h = Math.imul(h ^ (h >>> 13) ^ c, 0x27d4eb2f);
  h = Math.imul(h ^ (h >>> 16) ^ d, 0x165667b1);
  return (h ^ (h >>> 15)) >>> 0;
}

function grown(old: Int32Array<ArrayBuffer>, fresh: Int32Array<ArrayBuffer>): Int32Array<ArrayBuffer> {
  fresh.set(old);
  return fresh;
}
