import type { Millis } from "./time.ts";

/** `jitter` j spreads each delay evenly over [1-j, 1+j] times its nominal value. */
export interface BackoffOptions {
  readonly start: Millis;
  readonly factor: number;
  readonly ceiling: Millis;
  readonly jitter: number;
  /** Source of randomness in [0, 1); default Math.random. */
  readonly random?: () => number;
}

/** Delays between attempts: start, start*factor, ... up to the ceiling, each with jitter. */
export class Backoff {
  readonly #options: BackoffOptions;
  #nominal: Millis;

  constructor(options: BackoffOptions) {
    this.#options = options;
    this.#nominal = options.start;
  }

  /** The delay before the next attempt. */
  next(): Millis {
    const { factor, ceiling, jitter, random = Math.random } = this.#options;
    const delay = this.#nominal * (1 + jitter * (2 * random() - 1));
    this.#nominal = Math.min(ceiling, this.#nominal * factor);
    return delay;
  }

  /** Called after a success: the next failure starts from the beginning. */
  reset(): void {
    this.#nominal = this.#options.start;
  }
}
