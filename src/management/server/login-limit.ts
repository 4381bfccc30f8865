import type { Clock, Millis } from "#base/time.ts";

/** Logins a key may make at once, and then one per interval. Starting an agent takes four (section 4.2), ten a minute must pass. */
export const LOGIN_BURST = 60;
export const LOGIN_INTERVAL: Millis = 1_000;

/** Keys remembered; the one that was quiet longest is forgotten first. */
const MAX_KEYS = 10_000;

/** Holds back an agent that logs in over and over. One bucket of tokens per key. */
export class LoginLimit {
  readonly #clock: Clock;
  readonly #buckets = new Map<string, { tokens: number; at: Millis }>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Whether this login may go on. */
  admits(key: string): boolean {
    const now = this.#clock.now();
    const before = this.#buckets.get(key) ?? { tokens: LOGIN_BURST, at: now };
    const tokens = Math.min(LOGIN_BURST, before.tokens + (now - before.at) / LOGIN_INTERVAL);
    this.#buckets.delete(key);
    this.#buckets.set(key, { tokens: tokens >= 1 ? tokens - 1 : tokens, at: now });
    if (this.#buckets.size > MAX_KEYS)
      for (const oldest of this.#buckets.keys()) if (this.#buckets.delete(oldest)) break;
    return tokens >= 1;
  }
}
