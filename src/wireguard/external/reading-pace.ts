import type { Millis } from "#base/time.ts";

/** Between readings while somebody is awake, and while user traffic flows: silence is noticed at the second. */
const QUIET_INTERVAL: Millis = 1_000;
const BUSY_INTERVAL: Millis = 250;
/** While nobody is awake, but somebody fell asleep with a session that still receives. */
const SETTLING_INTERVAL: Millis = 5_000;
/** Something just happened that a reading will show: so long after it. */
const LOOKS: readonly Millis[] = [3, 10, 30, 80, 200, 450];
/** Readings asked for that are remembered. */
const ASKED_MAX = 64;
/** A reading costs what all peers cost: it is followed by so many times its length without one, less when asked for. */
const REST_FACTOR = { regular: 50, asked: 5 } as const;
/** A program that was held up for once must not blind us for long. */
const LONGEST_REST = { regular: 15_000, asked: 2_000 } as const;

/** Who is looked at: nobody, those who fell asleep lately, or awake peers. */
export type Watching = "nobody" | "settling" | "awake";

/** Decides when the device's counters are read. Pure; the caller passes the time. */
export class ReadingPace {
  #lastEnd: Millis = Number.NEGATIVE_INFINITY;
  #length: Millis = 0;
  #isBusy = false;
  #notBefore: Millis = Number.NEGATIVE_INFINITY;
  /** Readings asked for, ascending. */
  #asked: Millis[] = [];

  /** A reading will show something new soon: several, ever later, until one of them began late enough. */
  look(now: Millis): void {
    for (const delay of LOOKS) this.want(now + delay);
  }

  /** A reading that begins at `at` or later is of interest. */
  want(at: Millis): void {
    const index = this.#asked.findIndex((other) => other >= at);
    if (index < 0) this.#asked.push(at);
    else if (this.#asked[index] !== at) this.#asked.splice(index, 0, at);
    if (this.#asked.length > ASKED_MAX) this.#asked.splice(1, 1);
  }

  /** A reading took place; `busy`: user traffic moved since the one before. */
  note(start: Millis, end: Millis, busy: boolean): void {
    this.#lastEnd = end;
    this.#length = end - start;
    this.#isBusy = busy;
    this.#asked = this.#asked.filter((at) => at > start);
  }

  /** There is no reading before `at`. */
  pauseUntil(at: Millis): void {
    this.#notBefore = at;
  }

  /** When the next begins; undefined: not before something happens. */
  next(watching: Watching): Millis | undefined {
    const asked = this.#asked[0];
    const wanted =
      asked === undefined ? undefined : Math.max(asked, this.#notBefore, this.#lastEnd + this.#rest("asked"));
    if (watching === "nobody") return wanted;
    const rest = Math.max(this.#interval(watching), this.#rest("regular"));
    const regular = Math.max(this.#notBefore, this.#lastEnd + rest);
    return wanted === undefined ? regular : Math.min(wanted, regular);
  }

  #rest(kind: keyof typeof REST_FACTOR): Millis {
    return Math.min(LONGEST_REST[kind], this.#length * REST_FACTOR[kind]);
  }

  #interval(watching: "settling" | "awake"): Millis {
    if (watching === "settling") return SETTLING_INTERVAL;
    return this.#isBusy ? BUSY_INTERVAL : QUIET_INTERVAL;
  }
}
