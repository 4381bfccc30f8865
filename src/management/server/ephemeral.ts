import type { PublicKey } from "#base/keys.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";

/** How long an ephemeral peer may be away (protocol/management.md, section 5.7). */
export const EPHEMERAL_LIFETIME: Millis = 600_000;
/** The clean-up comes this much after the deadline. */
export const EPHEMERAL_SLACK: Millis = 60_000;

/** Tells when ephemeral peers have been away for too long. One timer for all of them. */
export class EphemeralPeers {
  readonly #clock: Clock;
  readonly #expired: (keys: readonly PublicKey[]) => void;
  /** Deadlines; equal lifetimes keep them in order of insertion. */
  readonly #away = new Map<PublicKey, Millis>();
  #timer: Timer | undefined;

  constructor(clock: Clock, expired: (keys: readonly PublicKey[]) => void) {
    this.#clock = clock;
    this.#expired = expired;
  }

  /** The peer left, or was registered, or the server has just started. */
  left(key: PublicKey): void {
    this.#away.delete(key);
    this.#away.set(key, this.#clock.now() + EPHEMERAL_LIFETIME);
    this.#arm();
  }

  /** The peer came back, or is gone for good. */
  cancel(key: PublicKey): void {
    this.#away.delete(key);
  }

  close(): void {
    this.#away.clear();
    this.#timer?.cancel();
  }

  #arm(): void {
    if (this.#timer) return;
    const [first] = this.#away.values();
    if (first === undefined) return;
    const delay = Math.max(0, first + EPHEMERAL_SLACK - this.#clock.now());
    this.#timer = this.#clock.after(delay, () => {
      this.#timer = undefined;
      const now = this.#clock.now();
      const keys = [...this.#away].filter(([, deadline]) => deadline <= now).map(([key]) => key);
      for (const key of keys) this.#away.delete(key);
      if (keys.length > 0) this.#expired(keys);
      this.#arm();
    });
  }
}
