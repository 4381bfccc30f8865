import type { Clock, Millis } from "#base/time.ts";
import type { TimelineEntry } from "../control.ts";

/** Entries kept per peer; the oldest go first. */
export const TIMELINE_MAX = 48;

/** The story of one peer: causes, stages with their milliseconds since the wake, path changes, why it slept. */
export class Timeline {
  readonly #clock: Clock;
  readonly #noted: ((entry: TimelineEntry) => void) | undefined;
  #entries: readonly TimelineEntry[] = [];
  #wokeAt: Millis | undefined;

  /** `noted` hears of each entry. */
  constructor(clock: Clock, noted?: (entry: TimelineEntry) => void) {
    this.#clock = clock;
    this.#noted = noted;
  }

  note(event: string, detail: string): void {
    const now = this.#clock.now();
    if (event === "wake") this.#wokeAt = now;
    const entry = {
      at: this.#clock.wall(),
      event,
      detail,
      ...(this.#wokeAt === undefined ? {} : { sinceWake: now - this.#wokeAt }),
    };
    // A new list each time: who has an older one sees by the list itself that something happened.
    this.#entries = [...this.#entries.slice(1 - TIMELINE_MAX), entry];
    if (event === "sleep") this.#wokeAt = undefined;
    this.#noted?.(entry);
  }

  entries(): readonly TimelineEntry[] {
    return this.#entries;
  }
}
