import type { Millis } from "#base/time.ts";

/**
 * A message that waited longer than this, or was one of more bytes that came at once, says that the queue is long. Half a
 * gigabit per second needs so much on its way where programs wait a few milliseconds for a processor: on two busy cores 128 KiB
 * left a sender with Cubic 0.13 MB on its way and cost it a third of its rate and more; 512 KiB leave it 0.8 MB.
 */
const LONG_WAIT_MS: Millis = 10;
export const LONG_BURST_BYTES = 512 * 1024;
/** A queue stands when it was seen long for this time, and never longer than the gap apart. */
const INTERVAL_MS: Millis = 100;
const GAP_MS: Millis = 50;
/** So many bytes pass before, whatever the time they take: what waited for a peer to wake (1 MiB) arrives complete. */
export const ALLOWANCE_BYTES = 1280 * 1024;
/** A queue that stands again so soon after a drop has no such allowance, and is treated as it was then. */
const MEMORY_MS: Millis = 1_000;

/**
 * Decides when senders should be told to slow down, which is done by dropping one message: TCP inside the tunnel halves
 * what it has on its way. Without that it fills whatever there is to be filled, and everything else waits behind it.
 *
 *   short ──long for INTERVAL_MS and ALLOWANCE_BYTES──> standing: one drop at once, then one per INTERVAL_MS / sqrt(n)
 *     ^                                                   │      (the control law of CoDel: RFC 8289, 3.2)
 *     '────────────── not long for GAP_MS ────────────────'
 *
 * CoDel asks for the shortest wait of an interval. Here it is the longest of each GAP_MS: where programs take turns on few
 * processors, every queue is empty now and then, and what stands moves from one to the next. Messages are dropped when they
 * come, not when they go, so a burst that ends within the interval passes untouched however long it takes to leave.
 *
 * Pure: no clock.
 */
export class QueueControl {
  /** The queue was seen long from then ... */
  #longSince: Millis = Number.NEGATIVE_INFINITY;
  /** ... until then. */
  #longAt: Millis = Number.NEGATIVE_INFINITY;
  /** What came since it is long. */
  #bytes = 0;
  #dropping = false;
  #droppedAt: Millis = Number.NEGATIVE_INFINITY;
  /** Drops since it became standing. */
  #drops = 0;

  /** A message left that had waited for `waited`. */
  noteWait(waited: Millis, now: Millis): void {
    if (waited > LONG_WAIT_MS) this.#noteLong(now);
  }

  /** `bytes` of one sender came at once. */
  noteBurst(bytes: number, now: Millis): void {
    if (bytes > LONG_BURST_BYTES) this.#noteLong(now);
  }

  /** Whether the message of so many bytes that comes now should be dropped; counts it as dropped. */
  decideDrop(bytes: number, now: Millis): boolean {
    this.#bytes += bytes;
    if (!this.#isStanding(now)) {
      this.#dropping = false;
      return false;
    }
    if (!this.#dropping) {
      this.#dropping = true;
      this.#drops = this.#remembers(now) ? Math.max(1, this.#drops - 2) : 1;
    } else if (now - this.#droppedAt >= INTERVAL_MS / Math.sqrt(this.#drops)) {
      this.#drops++;
    } else {
      return false;
    }
    this.#droppedAt = now;
    return true;
  }

  #isStanding(now: Millis): boolean {
    if (now - this.#longAt > GAP_MS || this.#longAt - this.#longSince < INTERVAL_MS) return false;
    return this.#dropping || this.#bytes > ALLOWANCE_BYTES || this.#remembers(now);
  }

  #remembers(now: Millis): boolean {
    return now - this.#droppedAt < MEMORY_MS;
  }

  #noteLong(now: Millis): void {
    if (now - this.#longAt > GAP_MS) {
      this.#longSince = now;
      this.#bytes = 0;
    }
    this.#longAt = now;
  }
}
