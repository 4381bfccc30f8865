import type { Millis } from "#base/time.ts";
import type { Random } from "./random.ts";

/** What one direction of a link does to packets. Without any option it passes them on at once. */
export interface LinkOptions {
  /** One-way delay. Default 0. */
  readonly latencyMs?: Millis;
  /** Each packet takes up to this much longer, evenly distributed; the order is kept. Default 0. */
  readonly jitterMs?: Millis;
  /** Share of packets that are lost, 0 to 1. Default 0. */
  readonly loss?: number;
  /** Share of packets that are held back by `reorderMs` and overtaken meanwhile. Default 0. */
  readonly reorder?: number;
  /** Default 5 ms. */
  readonly reorderMs?: Millis;
  /** Share of packets that arrive twice. Default 0. */
  readonly duplicate?: number;
  /** In million bits of IP packets a second. Default "unlimited". */
  readonly bandwidthMbps?: number | "unlimited";
  /** What waits for its turn on a limited link, in bytes; more is dropped from the tail. Default 256 KiB. */
  readonly queueBytes?: number;
}

const DEFAULT_QUEUE_BYTES = 256 * 1024;
const DEFAULT_REORDER_MS: Millis = 5;

/** Totals since the start. `bytes` and `packets` are what was let through. */
export interface LinkCounters {
  packets: number;
  bytes: number;
  lost: number;
  queueFull: number;
  cut: number;
  duplicated: number;
  reordered: number;
}

/**
 * One direction of a link: says when a packet arrives at the other end. Holds no packets and has no clock; order and
 * storage are the caller's. What is under way keeps the delay it entered with.
 */
export class Link {
  readonly counters: LinkCounters = {
    packets: 0,
    bytes: 0,
    lost: 0,
    queueFull: 0,
    cut: 0,
    duplicated: 0,
    reordered: 0,
  };
  readonly #random: Random;
  #options: Required<LinkOptions>;
  #isCut = false;
  /** When the sender has put its last packet on the wire. */
  #busyUntil: Millis = 0;
  /** The latest arrival that was promised; jitter does not fall behind it. */
  #lastArrival: Millis = 0;

  constructor(options: LinkOptions, random: Random) {
    this.#random = random;
    this.#options = completeOptions(options);
  }

  get isCut(): boolean {
    return this.#isCut;
  }

  get options(): LinkOptions {
    return this.#options;
  }

  /** Changes the named options; packets under way are not affected, and later ones do not overtake them. */
  change(options: LinkOptions): void {
    this.#options = completeOptions({ ...this.#options, ...options });
  }

  cut(): void {
    this.#isCut = true;
  }

  restore(): void {
    this.#isCut = false;
  }

  /** When a packet of `bytes` that enters at `now` arrives, or undefined: it is lost. */
  admit(bytes: number, now: Millis): Millis | undefined {
    const { loss, jitterMs, latencyMs, reorder, reorderMs, bandwidthMbps, queueBytes } = this.#options;
    if (this.#isCut) {
      this.counters.cut++;
      return undefined;
    }
    if (loss > 0 && this.#random() < loss) {
      this.counters.lost++;
      return undefined;
    }
    let sent = now;
    if (bandwidthMbps !== "unlimited") {
      const bytesPerMs = bandwidthMbps * 125;
      const waiting = Math.max(0, this.#busyUntil - now) * bytesPerMs;
      if (waiting + bytes > queueBytes) {
        this.counters.queueFull++;
        return undefined;
      }
      sent = Math.max(now, this.#busyUntil) + bytes / bytesPerMs;
      this.#busyUntil = sent;
    }
    this.counters.packets++;
    this.counters.bytes += bytes;
    const arrival = sent + latencyMs + (jitterMs > 0 ? this.#random() * jitterMs : 0);
    if (reorder > 0 && this.#random() < reorder) {
      this.counters.reordered++;
      return Math.max(arrival, this.#lastArrival) + reorderMs;
    }
    this.#lastArrival = Math.max(arrival, this.#lastArrival);
    return this.#lastArrival;
  }

  /** Asked once for each admitted packet: does it arrive a second time, right after the first? */
  wantDuplicate(): boolean {
    if (this.#options.duplicate === 0 || this.#random() >= this.#options.duplicate) return false;
    this.counters.duplicated++;
    return true;
  }

  /** Asked when a packet arrives: a cut takes what is on the wire with it. */
  arrives(): boolean {
    if (this.#isCut) this.counters.cut++;
    return !this.#isCut;
  }
}

function completeOptions(options: LinkOptions): Required<LinkOptions> {
  return {
    latencyMs: 0,
    jitterMs: 0,
    loss: 0,
    reorder: 0,
    reorderMs: DEFAULT_REORDER_MS,
    duplicate: 0,
    bandwidthMbps: "unlimited",
    queueBytes: DEFAULT_QUEUE_BYTES,
    ...options,
  };
}
