import type { networkInterfaces } from "node:os";
import type { Clock, Millis } from "#base/time.ts";

/** What was read is taken as true for so long, unless a change is told before. */
const AGE_MAX: Millis = 250;

/**
 * The machine's interfaces for whoever asks often: each ICE agent that opens, and each check that is answered. Reading them takes
 * a fifth of a millisecond of system calls; with two thousand connected peers it would be asked for a thousand times a second. Hands out the
 * same object until it reads anew.
 */
export class RecentInterfaces {
  readonly #clock: Clock;
  readonly #read: typeof networkInterfaces;
  #last: { readonly at: Millis; readonly interfaces: ReturnType<typeof networkInterfaces> } | undefined;

  constructor(clock: Clock, read: typeof networkInterfaces) {
    this.#clock = clock;
    this.#read = read;
  }

  read(): ReturnType<typeof networkInterfaces> {
    const now = this.#clock.now();
    if (!this.#last || now - this.#last.at >= AGE_MAX) this.#last = { at: now, interfaces: this.#read() };
    return this.#last.interfaces;
  }

  /** They changed. */
  forget(): void {
    this.#last = undefined;
  }
}
