import type { Millis } from "#base/time.ts";

/**
 * Remembers, from one life of the device to the next, which timestamps of initiations may have been sent. A responder takes
 * only later ones, so a clock that was set back between two lives would lock us out of every peer until it catches up.
 */
export interface TimestampMark {
  /** Wall clock ms before which all timestamps were that were ever sent; 0 when none was. Read once. */
  load(): number;
  /**
   * Called when a timestamp is about to go out that is not before the mark; at most every ten minutes. The handshake does not
   * wait until it is stored. Must not throw.
   */
  store(wall: number): void;
}

/** How far ahead of the clock the mark is put: so rarely it is written, and so far timestamps run ahead after a crash. */
const AHEAD: Millis = 600_000;
/** The same while the clock is behind the mark: timestamps go on in nanoseconds then. */
const AHEAD_WHILE_BEHIND: Millis = 1_000;

/**
 * The wall clock for timestamps: never before the mark. Marks are whole seconds, which the blurring of timestamps leaves as
 * they are.
 */
export function wallAfter(mark: TimestampMark, wall: () => number): () => number {
  const floor = mark.load();
  let promised = floor;
  return () => {
    const now = Math.max(wall(), floor);
    if (now >= promised) {
      promised = Math.ceil((now + (now > floor ? AHEAD : AHEAD_WHILE_BEHIND)) / 1000) * 1000;
      mark.store(promised);
    }
    return now;
  };
}
