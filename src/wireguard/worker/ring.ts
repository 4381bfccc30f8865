/**
 * A queue of records between two threads over shared memory: one producer, one consumer, no locks.
 *
 *   Int32 words   0 head (producer)  1 tail (consumer)  2 consumer sleeps  3 producer wants space  4 dropped
 *   from byte 64  data; a record never wraps: a skip mark fills the rest of the ring before one that would
 *
 *   record        u32 total bytes (multiple of 8; high bit set: skip mark), then what `records.ts` says
 *
 * Head and tail count bytes and run freely modulo 2^32; the capacity is a power of two. The record is published by the
 * atomic store to head, so its bytes are visible to whoever loads head.
 *
 * Waking is the caller's: the consumer calls `sleepUnlessFilled` and blocks only when it returns true; the producer calls
 * `consumerSleeps` after its records and wakes the consumer when it returns true.
 */
const HEAD = 0;
const TAIL = 1;
const SLEEPING = 2;
const WANTS_SPACE = 3;
const DROPPED = 4;
const DATA = 64;
const SKIP = 0x80000000;

export class Ring {
  readonly buffer: SharedArrayBuffer;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly capacity: number;
  readonly #words: Int32Array;
  readonly #mask: number;
  /** Producer: where the record begun ends, relative to the start of time. Consumer: where the record at hand ends. */
  #pending = 0;

  /** `capacityBytes` is a power of two, at least 1024. */
  static create(capacityBytes: number): Ring {
    return new Ring(new SharedArrayBuffer(DATA + capacityBytes));
  }

  /** The other end of a ring made elsewhere. */
  constructor(buffer: SharedArrayBuffer) {
    this.buffer = buffer;
    this.capacity = buffer.byteLength - DATA;
    if (this.capacity < 1024 || (this.capacity & (this.capacity - 1)) !== 0)
      throw new RangeError(`ring capacity ${this.capacity} is no power of two of at least 1024`);
    this.#mask = this.capacity - 1;
    this.#words = new Int32Array(buffer, 0, DATA / 4);
    this.bytes = new Uint8Array(buffer, DATA);
    this.view = new DataView(buffer, DATA);
  }

  /** Bytes between the ends. */
  get used(): number {
    return (Atomics.load(this.#words, HEAD) - Atomics.load(this.#words, TAIL)) | 0;
  }

  /** Records refused because the ring was full. */
  get dropped(): number {
    return Atomics.load(this.#words, DROPPED);
  }

  // Producer.

  /** Reserves a record of `bytes` and returns its offset in `bytes`/`view`; -1 when it does not fit now. */
  begin(bytes: number): number {
    const total = (bytes + 7) & ~7;
    const head = this.#words[HEAD]!;
    const offset = head & this.#mask;
    const free = this.capacity - ((head - Atomics.load(this.#words, TAIL)) | 0);
    const toEnd = this.capacity - offset;
    if (total <= toEnd) {
      if (total > free) return -1;
      this.view.setUint32(offset, total, true);
      this.#pending = (head + total) | 0;
      return offset;
    }
    if (toEnd + total > free) return -1;
    this.view.setUint32(offset, (SKIP | toEnd) >>> 0, true);
    this.view.setUint32(0, total, true);
    this.#pending = (head + toEnd + total) | 0;
    return 0;
  }

  /** Publishes the record begun last. */
  commit(): void {
    Atomics.store(this.#words, HEAD, this.#pending);
  }

  countDropped(): void {
    Atomics.add(this.#words, DROPPED, 1);
  }

  /** True once for each time the consumer went to sleep: the caller must wake it. */
  consumerSleeps(): boolean {
    return Atomics.exchange(this.#words, SLEEPING, 0) === 1;
  }

  /** Asks the consumer to say when it has made room. */
  wantSpace(): void {
    Atomics.store(this.#words, WANTS_SPACE, 1);
  }

  // Consumer.

  /** Offset of the oldest record, or -1. It stays valid until `release`. */
  next(): number {
    let tail = this.#words[TAIL]!;
    const head = Atomics.load(this.#words, HEAD);
    if (tail === head) return -1;
    let offset = tail & this.#mask;
    let total = this.view.getUint32(offset, true);
    if (total >= SKIP) {
      tail = (tail + (total - SKIP)) | 0;
      offset = tail & this.#mask;
      total = this.view.getUint32(offset, true);
    }
    this.#pending = (tail + total) | 0;
    return offset;
  }

  /** Gives the space of the record at hand back. */
  release(): void {
    Atomics.store(this.#words, TAIL, this.#pending);
  }

  /** True when the producer waits for space; resets the wish. */
  takeSpaceWish(): boolean {
    return Atomics.load(this.#words, WANTS_SPACE) === 1 && Atomics.exchange(this.#words, WANTS_SPACE, 0) === 1;
  }

  /** Takes the announcement back, so that the producer need not wake. */
  wakeUp(): void {
    Atomics.store(this.#words, SLEEPING, 0);
  }

  /** Announces sleep; false (and awake again) when a record or a wish for space came in the meantime. */
  sleepUnlessFilled(): boolean {
    Atomics.store(this.#words, SLEEPING, 1);
    const isEmpty = Atomics.load(this.#words, HEAD) === this.#words[TAIL]!;
    // Who wishes for space that is there already would wait for a word that nobody says.
    if (isEmpty && Atomics.load(this.#words, WANTS_SPACE) === 0) return true;
    Atomics.store(this.#words, SLEEPING, 0);
    return false;
  }
}
