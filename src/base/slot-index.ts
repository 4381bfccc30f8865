/** Two words an entry: the hash, and the slot plus one. */
const WORDS = 2;
const EMPTY = 0;
/** Was taken out: what was put in behind it is still found. */
const GONE = 0xffff_ffff;
const CAPACITY_MIN = 16;
const GROWTH = 1.5;
/** Of the places, those that may be taken or have been. */
const LOAD_MAX = 0.8;
/** Below it there are more places than needed. */
const LOAD_MIN = 0.25;

/** Largest slot. */
export const SLOT_MAX = GONE - 2;

/**
 * Finds the rows of somebody's table by a hash: 12 bytes an entry, where a Map takes 36 and keeps the key. The table has the
 * rows, each in a slot, and says whether one is meant; several may have the same hash. Open addressing with linear probing.
 */
export class SlotIndex {
  #words = new Uint32Array(CAPACITY_MIN * WORDS);
  #size = 0;
  /** Places that are not EMPTY. */
  #used = 0;

  get size(): number {
    return this.#size;
  }

  /** The slot of the first entry with this hash that is meant, -1 when there is none. */
  find(hash: number, isMeant: (slot: number) => boolean): number {
    const at = this.#place(hash, isMeant);
    return at < 0 ? -1 : this.#words[at + 1]! - 1;
  }

  /** Adds an entry, whatever is there. */
  add(hash: number, slot: number): void {
    if (this.#used >= (this.#words.length / WORDS) * LOAD_MAX) this.#resize();
    this.#put(hash >>> 0, slot + 1);
    this.#used++;
    this.#size++;
  }

  /** Takes this very entry out; false when it is not there. */
  remove(hash: number, slot: number): boolean {
    const at = this.#place(hash, (each) => each === slot);
    if (at < 0) return false;
    this.#words[at + 1] = GONE;
    this.#size--;
    if (this.#words.length > CAPACITY_MIN * WORDS && this.#size < (this.#words.length / WORDS) * LOAD_MIN)
      this.#resize();
    return true;
  }

  #place(hash: number, isMeant: (slot: number) => boolean): number {
    const words = this.#words;
    for (let at = this.#home(hash >>> 0); ; at = at + WORDS === words.length ? 0 : at + WORDS) {
      const entry = words[at + 1]!;
      if (entry === EMPTY) return -1;
      if (entry !== GONE && words[at] === hash >>> 0 && isMeant(entry - 1)) return at;
    }
  }

  #put(hash: number, entry: number): void {
    const words = this.#words;
    let at = this.#home(hash);
    while (words[at + 1] !== EMPTY) at = at + WORDS === words.length ? 0 : at + WORDS;
    words[at] = hash;
    words[at + 1] = entry;
  }

  /** The high bits choose the place, so that any number of places will do. */
  #home(hash: number): number {
    return Math.floor((hash / 2 ** 32) * (this.#words.length / WORDS)) * WORDS;
  }

  /** Makes room for what there is and half as much again, and forgets what is gone. */
  #resize(): void {
    const before = this.#words;
    const places = Math.max(CAPACITY_MIN, Math.ceil((this.#size / LOAD_MAX) * GROWTH));
    this.#words = new Uint32Array(places * WORDS);
    this.#used = this.#size;
    for (let at = 0; at < before.length; at += WORDS) {
      const entry = before[at + 1]!;
      if (entry !== EMPTY && entry !== GONE) this.#put(before[at]!, entry);
    }
  }
}

/** Rows in numbered slots; a slot that was given back is the next to be taken. */
export class Slots<Row> {
  readonly #rows: (Row | undefined)[] = [];
  readonly #free: number[] = [];

  /** Undefined where there is none, -1 included. */
  at(slot: number): Row | undefined {
    return this.#rows[slot];
  }

  take(row: Row): number {
    const slot = this.#free.pop() ?? this.#rows.length;
    this.#rows[slot] = row;
    return slot;
  }

  give(slot: number): void {
    if (this.#rows[slot] === undefined) return;
    this.#rows[slot] = undefined;
    this.#free.push(slot);
  }
}

/** Another one in each process: nobody outside can choose texts that fall on the same place. */
const SEED = Math.floor(Math.random() * 2 ** 32);

/** 32 bits of a text, for a SlotIndex; the same in one process only. */
export function hashText(text: string): number {
  let hash = SEED;
  for (let at = 0; at < text.length; at++) hash = Math.imul(hash ^ text.charCodeAt(at), 0x01000193);
  // Its high bits are the last ones to be reached by each letter; the finish of MurmurHash3 spreads them.
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}
