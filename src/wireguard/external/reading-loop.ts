import { DeadlineTimer } from "#base/deadline-timer.ts";
import { messageOf } from "#base/errors.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis } from "#base/time.ts";
import type { ChangeBatch } from "./change-batch.ts";
import type { DeviceControl, DeviceReading } from "./parts.ts";
import type { ReadingTime } from "./peer-reading.ts";
import { ReadingPace, type Watching } from "./reading-pace.ts";

export interface ReadingLoopDeps {
  readonly clock: Clock;
  readonly log: Logger;
  readonly control: () => DeviceControl;
  readonly batch: Pick<ChangeBatch, "settled">;
  readonly watching: () => Watching;
  /** Takes a reading; true when user traffic moved. */
  readonly take: (reading: DeviceReading, time: ReadingTime) => boolean;
}

/** After one that failed. */
const FAILURE_PAUSE: Millis = 1_000;

/** Reads the device's counters at the pace of ReadingPace: one at a time, none while nobody is of interest. */
export class ReadingLoop {
  readonly #deps: ReadingLoopDeps;
  readonly #pace = new ReadingPace();
  readonly #timer: DeadlineTimer;
  #reading: Promise<void> | undefined;
  #failures = 0;
  #closed = false;
  #count = 0;

  constructor(deps: ReadingLoopDeps) {
    this.#deps = deps;
    this.#timer = new DeadlineTimer(deps.clock, () => this.#begin());
  }

  /** Readings so far. */
  get count(): number {
    return this.#count;
  }

  /** Something happened that the next readings will show. */
  look(): void {
    this.#pace.look(this.#deps.clock.now());
    this.arm();
  }

  want(at: Millis): void {
    this.#pace.want(at);
    this.arm();
  }

  /** Called when somebody fell asleep or woke. */
  arm(): void {
    if (this.#closed || this.#reading) return;
    this.#timer.set(this.#pace.next(this.#deps.watching()));
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#timer.set(undefined);
    await this.#reading;
  }

  #begin(): void {
    if (this.#closed || this.#reading) return;
    this.#reading = this.#read().finally(() => {
      this.#reading = undefined;
      this.arm();
    });
  }

  async #read(): Promise<void> {
    const { clock, log, batch, take } = this.#deps;
    const control = this.#deps.control();
    const start = clock.now();
    const { settled } = batch;
    try {
      const reading = await control.read();
      if (this.#closed || control !== this.#deps.control()) return;
      this.#count++;
      this.#failures = 0;
      const busy = take(reading, { start, now: clock.now(), wall: clock.wall(), settled });
      this.#pace.note(start, clock.now(), busy);
    } catch (error) {
      if (this.#closed) return;
      // A single one is that of a device which just died, of which others tell.
      if (++this.#failures === 2) log.warn("device cannot be read", { err: messageOf(error) });
      // What was asked for is still to be shown, and what such a reading took says nothing of the next.
      this.#pace.pauseUntil(clock.now() + FAILURE_PAUSE);
    }
  }
}
