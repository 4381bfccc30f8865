import { libc } from "#net/libc.ts";
import { addBytes } from "./checksum.ts";
import { type VectorSum, vectorMemory } from "./checksum-simd.ts";

/**
 * One block of memory whose address never changes, cut into regions at start. Everything a system call or OpenSSL reads
 * or writes on the packet path lies in it, so that no address is looked up later: address = `base` + offset.
 *
 * The views cover all of it; offsets, not subarrays, travel through the code.
 */
export class Arena {
  readonly base: number;
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly view: DataView;
  readonly #buffer: ArrayBuffer;
  readonly #sum: VectorSum | undefined;
  #next = 0;

  /** `vectors` false leaves the checksum to JavaScript. */
  constructor(size: number, vectors = true) {
    // A buffer of its own that is neither resized nor transferred: its address holds as long as it lives. Pages that
    // are never touched cost nothing.
    const memory = vectorMemory(size);
    this.#buffer = memory.buffer;
    this.#sum = vectors ? memory.sum : undefined;
    this.bytes = new Uint8Array(this.#buffer);
    this.view = new DataView(this.#buffer);
    this.base = libc().addressOf(this.bytes);
  }

  /** Offset of a fresh region; `align` is a power of two of at most 4096. */
  take(size: number, align = 64): number {
    // Aligned by address, not by offset.
    const skew = this.base % align;
    const offset = this.#next + ((align - ((skew + this.#next) % align)) % align);
    if (offset + size > this.#buffer.byteLength)
      throw new RangeError(`arena of ${this.#buffer.byteLength} bytes has no ${size} bytes left at ${offset}`);
    this.#next = offset + size;
    return offset;
  }

  /** Stores the address of offset `target` as a pointer at offset `at`. */
  setPointer(at: number, target: number): void {
    const address = this.base + target;
    this.view.setUint32(at, address >>> 0, true);
    this.view.setUint32(at + 4, Math.floor(address / 0x100000000), true);
  }

  /** A 64-bit length or count below 2^32. */
  setSize(at: number, size: number): void {
    this.view.setUint32(at, size, true);
    this.view.setUint32(at + 4, 0, true);
  }

  /** As `addBytes` of checksum.ts, over the arena and with vectors where the engine has them; at most 64 KiB. */
  addBytes(offset: number, length: number, sum: number): number {
    if (this.#sum === undefined) return addBytes(this.view, offset, length, sum);
    const whole = length & ~15;
    const part = (this.#sum(offset, whole) >>> 0) + sum;
    return whole === length ? part : addBytes(this.view, offset + whole, length - whole, part);
  }
}
