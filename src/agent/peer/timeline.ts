import type { Clock, Millis } from "#base/time.ts";
import type { TimelineEntry } from "../control.ts";

/** Entries kept per peer; the oldest go first. */
export const TIMELINE_MAX = 48;

/** The story of one peer: causes, stages with their milliseconds since the wake, path changes, why it slept. */
export class Timeline {
  readonly #clock: Clock;
  readonly #entries: TimelineEntry[] = [];
  #wokeAt: Millis | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  note(event: string, detail: string): void {
    const now = this.#clock.now();
    if (event === "wake") this.#wokeAt = now;
    this.#entries.push({
      at: this.#clock.wall(),
      event,
      detail,
      ...(this.#wokeAt === undefined ? {} : { sinceWake: now - this.#wokeAt }),
    });
    if (this.#entries.length > TIMELINE_MAX) this.#entries.shift();
    if (event === "sleep") this.#wokeAt = undefined;
  }

  entries(): readonly TimelineEntry[] {
    return this.#entries;
  }
}
