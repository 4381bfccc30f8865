import type { PublicKey } from "#base/keys.ts";
import type { Millis } from "#base/time.ts";
import { type WakeKind, wakeKind } from "../connections/wake-cause.ts";
import type { TimelineEntry } from "../control.ts";

/** Upper bounds in seconds: a wake on a LAN takes some 10 ms, a handshake that is tried again 5 s. */
export const WAKE_BUCKETS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 90] as const;

export interface WakeTotals {
  readonly byKind: ReadonlyMap<WakeKind, number>;
  /** Wakes that took no longer than the bound of the same index; not summed up. One more for those that took longer. */
  readonly buckets: readonly number[];
  /** Of all proven wakes. */
  readonly sum: Millis;
  readonly proven: number;
}

/**
 * Counts wakes by cause, and how long each took until a handshake proved it, over all sessions of the agent. Costs what happens,
 * and an entry for each peer whose wake is not proven yet.
 */
export class WakeMeter {
  readonly #byKind = new Map<WakeKind, number>();
  readonly #buckets: number[] = new Array<number>(WAKE_BUCKETS.length + 1).fill(0);
  readonly #open = new Set<PublicKey>();
  #sum: Millis = 0;
  #proven = 0;

  get totals(): WakeTotals {
    return { byKind: this.#byKind, buckets: this.#buckets, sum: this.#sum, proven: this.#proven };
  }

  /** Something was written in a peer's story. */
  note(key: PublicKey, { event, detail, sinceWake }: TimelineEntry): void {
    if (event === "wake") {
      const kind = wakeKind(detail);
      this.#byKind.set(kind, (this.#byKind.get(kind) ?? 0) + 1);
      this.#open.add(key);
    } else if (event === "sleep") this.#open.delete(key);
    else if (event === "connected" && this.#open.delete(key) && sinceWake !== undefined) {
      const index = WAKE_BUCKETS.findIndex((bound) => sinceWake <= bound * 1000);
      this.#buckets[index < 0 ? WAKE_BUCKETS.length : index]!++;
      this.#sum += sinceWake;
      this.#proven++;
    }
  }
}
