import type { Clock, Millis, Timer } from "#base/time.ts";
import { UpdateGate } from "./update-gate.ts";

/** Where a stream gets its messages from, encoded; each is made at the moment it is sent. */
export interface SyncSource {
  /** The first map, with the infrastructure, in one or more messages. */
  first(): Iterator<Uint8Array, void>;
  map(): Iterator<Uint8Array, void>;
  /** Fresh relay credentials alone; undefined: there is no relay. */
  credentials(): Uint8Array | undefined;
  /** Waits for this stream's turn to make a map. */
  turn(): Promise<void>;
}

/**
 * What one connected peer has yet to be told. It holds no messages but the fact that there is something to say: a slow reader
 * gets the newest map when it comes round to reading, and costs no memory until then. One reader calls `next` again and again.
 */
export class SyncStream {
  readonly #source: SyncSource;
  readonly #gate: UpdateGate;
  readonly #clock: Clock;
  readonly #refreshAfter: Millis;
  #refresh: Timer | undefined;
  #firstDue = true;
  #mapDue = false;
  #credentialsDue = false;
  /** What is left of the map that is being sent. */
  #parts: Iterator<Uint8Array, void> | undefined;
  #notice: Uint8Array | undefined;
  #ended = false;
  #wake: () => void = () => {};

  /** `refreshAfter`: when relay credentials are renewed, again and again, in ms. */
  constructor(clock: Clock, refreshAfter: Millis, source: SyncSource) {
    this.#clock = clock;
    this.#refreshAfter = refreshAfter;
    this.#source = source;
    this.#gate = new UpdateGate(clock, () => {
      this.#mapDue = true;
      this.#wake();
    });
    this.#armRefresh();
  }

  /** Something in this peer's map changed. */
  update(): void {
    if (!this.#ended) this.#gate.note();
  }

  /** No more messages but `notice`; the stream then ends in order. Idempotent. */
  end(notice?: Uint8Array): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#notice = notice;
    this.#gate.close();
    this.#refresh?.cancel();
    this.#wake();
  }

  /** The next message, when there is one; undefined when the stream ended or `signal` is aborted. */
  async next(signal: AbortSignal): Promise<Uint8Array | undefined> {
    for (;;) {
      if (signal.aborted) return undefined;
      if (this.#ended) {
        const notice = this.#notice;
        this.#notice = undefined;
        return notice;
      }
      if (this.#parts || this.#firstDue || this.#mapDue) {
        await this.#source.turn();
        if (this.#ended || signal.aborted) continue;
        this.#parts ??= this.#beginMap();
        const { value, done } = this.#parts.next();
        if (!done) return value;
        this.#parts = undefined;
        continue;
      }
      if (this.#credentialsDue) {
        this.#credentialsDue = false;
        const credentials = this.#source.credentials();
        if (credentials) return credentials;
        continue;
      }
      await this.#woken(signal);
    }
  }

  /** What is noted from here on is not in this map, so it is due again. */
  #beginMap(): Iterator<Uint8Array, void> {
    this.#mapDue = false;
    if (!this.#firstDue) return this.#source.map();
    this.#firstDue = false;
    this.#credentialsDue = false;
    return this.#source.first();
  }

  #woken(signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const wake = (): void => {
        this.#wake = () => {};
        signal.removeEventListener("abort", wake);
        resolve();
      };
      this.#wake = wake;
      signal.addEventListener("abort", wake, { once: true });
    });
  }

  #armRefresh(): void {
    this.#refresh = this.#clock.after(this.#refreshAfter, () => {
      this.#armRefresh();
      this.#credentialsDue = true;
      this.#wake();
    });
  }
}

/** Gives out turns one per round of the event loop, so that a thousand maps do not keep other requests waiting. */
export class TurnQueue {
  readonly #waiting: (() => void)[] = [];

  turn(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#waiting.push(resolve) === 1) setImmediate(() => this.#next());
    });
  }

  #next(): void {
    this.#waiting.shift()?.();
    if (this.#waiting.length > 0) setImmediate(() => this.#next());
  }
}
