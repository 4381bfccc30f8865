/** A duration or a point on a monotonic clock, in milliseconds; fractions are allowed. */
export type Millis = number;

/** A pending timer; `cancel` is idempotent and harmless after it fired. */
export interface Timer {
  cancel(): void;
}

/**
 * Time as a dependency, so that tests and the simulation can move it.
 * `now` is monotonic and has no meaning outside the process; `wall` is milliseconds since the Unix epoch and may jump.
 */
export interface Clock {
  now(): Millis;
  wall(): number;
  /** Runs `callback` once after `delay`; the timer does not keep the process alive. */
  after(delay: Millis, callback: () => void): Timer;
}

/** Longest delay setTimeout takes; above it Node fires at once. */
const MAX_TIMEOUT: Millis = 2 ** 31 - 1;

/** The machine's clock. Delays above 2^31-1 ms are waited for in pieces. */
export const systemClock: Clock = {
  now: () => performance.now(),
  wall: () => Date.now(),
  after(delay, callback) {
    let handle: NodeJS.Timeout;
    const arm = (left: Millis): void => {
      handle = setTimeout(
        () => (left > MAX_TIMEOUT ? arm(left - MAX_TIMEOUT) : callback()),
        Math.min(left, MAX_TIMEOUT),
      );
      handle.unref();
    };
    arm(delay);
    return { cancel: () => clearTimeout(handle) };
  },
};

interface ManualTimer {
  readonly at: Millis;
  readonly sequence: number;
  readonly callback: () => void;
}

/** A clock that moves only when told to; timers fire in order of their time, ties in order of arming. */
export class ManualClock implements Clock {
  #now: Millis;
  #wallOffset: number;
  #sequence = 0;
  readonly #timers: ManualTimer[] = [];

  constructor(start: Millis = 0, wall = 1_800_000_000_000) {
    this.#now = start;
    this.#wallOffset = wall - start;
  }

  now(): Millis {
    return this.#now;
  }

  wall(): number {
    return this.#now + this.#wallOffset;
  }

  /** Moves the wall clock alone, as an administrator or NTP does. */
  stepWall(by: number): void {
    this.#wallOffset += by;
  }

  /** Number of armed timers; "an idle peer has no timer" is a test on this. */
  get pending(): number {
    return this.#timers.length;
  }

  after(delay: Millis, callback: () => void): Timer {
    const timer = { at: this.#now + Math.max(0, delay), sequence: this.#sequence++, callback };
    this.#timers.push(timer);
    return {
      cancel: () => {
        const index = this.#timers.indexOf(timer);
        if (index >= 0) this.#timers.splice(index, 1);
      },
    };
  }

  /** Moves time forward by `by`, firing every timer that becomes due, including ones armed on the way. */
  advance(by: Millis): void {
    const end = this.#now + by;
    for (;;) {
      let next: ManualTimer | undefined;
      for (const timer of this.#timers) {
        if (timer.at > end) continue;
        if (!next || timer.at < next.at || (timer.at === next.at && timer.sequence < next.sequence)) next = timer;
      }
      if (!next) break;
      this.#timers.splice(this.#timers.indexOf(next), 1);
      this.#now = Math.max(this.#now, next.at);
      next.callback();
    }
    this.#now = end;
  }
}
