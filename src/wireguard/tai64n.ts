import { TIMESTAMP_BYTES } from "./messages.ts";

/** TAI64 label of the Unix epoch: 2^62 plus the ten seconds TAI was ahead in 1970. Leap seconds are not counted. */
const EPOCH_HIGH = 0x40000000;
const EPOCH_LOW_OFFSET = 10;
const NANOS_PER_SECOND = 1_000_000_000;
/** Low bits of the nanoseconds that are not told to the network (16.8 ms), as wireguard-go does. */
const BLUR_BITS = 24;

/**
 * Timestamps for initiations: 8 bytes of seconds and 4 of nanoseconds, big-endian. Each is greater than the one before,
 * whatever the wall clock does: a responder ignores initiations that are not newer than the last one it accepted, so
 * after a step back the clock goes on from the last timestamp in steps of a nanosecond until the time catches up.
 */
export class Tai64nClock {
  readonly #wall: () => number;
  #seconds = 0;
  #nanos = 0;

  /** `wall` gives milliseconds since the Unix epoch. */
  constructor(wall: () => number) {
    this.#wall = wall;
  }

  next(): Uint8Array {
    const wall = Math.max(0, this.#wall());
    const seconds = Math.floor(wall / 1000);
    const exact = Math.floor((wall - seconds * 1000) * 1_000_000);
    const nanos = Math.floor(exact / 2 ** BLUR_BITS) * 2 ** BLUR_BITS;
    if (seconds > this.#seconds || (seconds === this.#seconds && nanos > this.#nanos)) {
      this.#seconds = seconds;
      this.#nanos = nanos;
    } else if (++this.#nanos === NANOS_PER_SECOND) {
      this.#seconds++;
      this.#nanos = 0;
    }
    return encodeTai64n(this.#seconds, this.#nanos);
  }
}

/** `seconds` since the Unix epoch. */
export function encodeTai64n(seconds: number, nanos: number): Uint8Array {
  const bytes = new Uint8Array(TIMESTAMP_BYTES);
  const view = new DataView(bytes.buffer);
  const shifted = seconds + EPOCH_LOW_OFFSET;
  view.setUint32(0, EPOCH_HIGH + Math.floor(shifted / 2 ** 32));
  view.setUint32(4, shifted % 2 ** 32);
  view.setUint32(8, nanos);
  return bytes;
}

/** True when `a` is strictly later than `b`. Timestamps are public once the message was authenticated. */
export function isLaterTai64n(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) > 0;
}
