import type { PublicKey } from "#base/keys.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import type { SendResult } from "./signal-connection.ts";
import { SignalError } from "./signal-error.ts";

/** What the sender of a message learns. It never rejects. */
export interface SendOutcome {
  /**
   * True: the server wrote it to the recipient's stream. False: the server says the recipient is not there. Undefined: the
   * server does not tell (stock), or the message did not reach it (`failure`).
   */
  readonly delivered: boolean | undefined;
  readonly failure?: SignalError;
}

/** Hands one message to the connection; see SignalConnection.send. */
export type Transmit = (frame: Uint8Array, timeoutMs: Millis, done: (result: SendResult) => void) => () => void;

export interface SendQueueOptions {
  /** From `push` to giving up. */
  readonly deadlineMs: Millis;
  /** Messages waiting for one recipient; the oldest waiting one gives way. */
  readonly laneMaxMessages: number;
  /** Bytes waiting and under way altogether; a message beyond is refused. */
  readonly maxBytes: number;
  /** Sends under way at the same time. */
  readonly maxInFlight: number;
}

/** Above this size a message may span frames and be overtaken by a later small one, bytes. */
const LARGE_BYTES = 8 * 1024;

interface Outgoing {
  readonly frame: Uint8Array;
  /** May be under way together with its like: candidates have no order among themselves. */
  readonly unordered: boolean;
  readonly large: boolean;
  readonly expiresAt: Millis;
  readonly expiry: Timer;
  readonly resolve: (outcome: SendOutcome) => void;
  abort: (() => void) | undefined;
}

interface Lane {
  readonly waiting: Outgoing[];
  readonly inFlight: Set<Outgoing>;
}

/**
 * Messages on their way to the signal server, a lane per recipient: order is kept inside a lane, lanes do not wait for each
 * other. While there is no connection messages wait; those under way when it breaks are sent again over the next one.
 *
 *   push ──> waiting ──(connected, allowed)──> in flight ──> outcome
 *               ^                                  │
 *               '───────── connection lost ────────'
 *
 * Allowed: to a server that keeps the order, everything at once but large messages; to another, one message at a time,
 * except that candidates, which are unordered, go side by side.
 */
export class SendQueue {
  readonly #clock: Clock;
  readonly #options: SendQueueOptions;
  readonly #lanes = new Map<PublicKey, Lane>();
  #transmit: Transmit | undefined;
  #ordered = false;
  #bytes = 0;
  #inFlight = 0;

  constructor(deps: { readonly clock: Clock }, options: SendQueueOptions) {
    this.#clock = deps.clock;
    this.#options = options;
  }

  /** Bytes waiting and under way. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Takes a message; when connected and allowed it leaves before this returns. */
  push(to: PublicKey, frame: Uint8Array, unordered: boolean): Promise<SendOutcome> {
    const { deadlineMs, laneMaxMessages, maxBytes } = this.#options;
    if (this.#bytes + frame.length > maxBytes) {
      const text = `${this.#bytes} bytes wait for the signal server, limit ${maxBytes}`;
      return Promise.resolve(failed("signal-queue-full", text));
    }
    return new Promise((resolve) => {
      const lane = this.#lanes.get(to) ?? { waiting: [], inFlight: new Set() };
      this.#lanes.set(to, lane);
      const outgoing: Outgoing = {
        frame,
        unordered,
        large: frame.length > LARGE_BYTES,
        expiresAt: this.#clock.now() + deadlineMs,
        expiry: this.#clock.after(deadlineMs, () =>
          this.#settle(to, lane, outgoing, failed("signal-send-timeout", `not sent within ${deadlineMs} ms`)),
        ),
        resolve,
        abort: undefined,
      };
      this.#bytes += frame.length;
      lane.waiting.push(outgoing);
      if (lane.waiting.length > laneMaxMessages)
        this.#settle(
          to,
          lane,
          lane.waiting[0]!,
          failed("signal-queue-full", `${laneMaxMessages} messages wait for one peer`),
        );
      this.#pump(to, lane);
    });
  }

  /** A connection is there; `ordered` as the server says. */
  open(transmit: Transmit, ordered: boolean): void {
    this.#transmit = transmit;
    this.#ordered = ordered;
    for (const [to, lane] of this.#lanes) this.#pump(to, lane);
  }

  /** The connection is gone: what was under way waits again, in its old order. */
  pause(): void {
    this.#transmit = undefined;
    this.#inFlight = 0;
    for (const lane of this.#lanes.values()) {
      const again = [...lane.inFlight];
      lane.inFlight.clear();
      for (const outgoing of again) {
        outgoing.abort?.();
        outgoing.abort = undefined;
      }
      lane.waiting.unshift(...again);
    }
  }

  /** Gives up everything. */
  clear(code: "signal-closed"): void {
    this.pause();
    for (const [to, lane] of [...this.#lanes])
      for (const outgoing of [...lane.waiting]) this.#settle(to, lane, outgoing, failed(code, "client closed"));
  }

  #pump(to: PublicKey, lane: Lane): void {
    for (;;) {
      const next = lane.waiting[0];
      if (!next || !this.#transmit || this.#inFlight >= this.#options.maxInFlight) return;
      if (!this.#allowed(lane, next)) return;
      lane.waiting.shift();
      lane.inFlight.add(next);
      this.#inFlight++;
      next.abort = this.#transmit(next.frame, Math.max(1, next.expiresAt - this.#clock.now()), (result) =>
        this.#done(to, lane, next, result),
      );
    }
  }

  #allowed(lane: Lane, next: Outgoing): boolean {
    if (lane.inFlight.size === 0) return true;
    for (const other of lane.inFlight) {
      const together = this.#ordered ? !other.large && !next.large : other.unordered && next.unordered;
      if (!together) return false;
    }
    return true;
  }

  #done(to: PublicKey, lane: Lane, outgoing: Outgoing, result: SendResult): void {
    if (!lane.inFlight.has(outgoing)) return;
    outgoing.abort = undefined;
    if (result.kind === "passed") {
      this.#settle(to, lane, outgoing, { delivered: result.delivered });
    } else if (result.retry) {
      // The connection is breaking; `pause` would put it back, but the answer may come first.
      lane.inFlight.delete(outgoing);
      this.#release();
      const at = lane.waiting.findIndex((other) => other.expiresAt > outgoing.expiresAt);
      lane.waiting.splice(at < 0 ? lane.waiting.length : at, 0, outgoing);
      this.#stall(to, lane);
    } else {
      this.#settle(to, lane, outgoing, { delivered: undefined, failure: result.error });
    }
  }

  /** A Send failed while the connection stands: try again in a moment, not in a tight circle. */
  #stall(to: PublicKey, lane: Lane): void {
    this.#clock.after(RETRY_PAUSE_MS, () => this.#pump(to, lane));
  }

  #settle(to: PublicKey, lane: Lane, outgoing: Outgoing, outcome: SendOutcome): void {
    const index = lane.waiting.indexOf(outgoing);
    if (index >= 0) lane.waiting.splice(index, 1);
    else if (lane.inFlight.delete(outgoing)) this.#release();
    else return;
    outgoing.expiry.cancel();
    outgoing.abort?.();
    this.#bytes -= outgoing.frame.length;
    outgoing.resolve(outcome);
    if (lane.waiting.length === 0 && lane.inFlight.size === 0) {
      if (this.#lanes.get(to) === lane) this.#lanes.delete(to);
    } else {
      this.#pump(to, lane);
    }
  }

  /** One Send less is under way. If that made room, the other lanes are asked in the next microtask. */
  #release(): void {
    if (this.#inFlight-- !== this.#options.maxInFlight) return;
    queueMicrotask(() => {
      for (const [to, lane] of this.#lanes) this.#pump(to, lane);
    });
  }
}

const RETRY_PAUSE_MS: Millis = 500;

function failed(code: "signal-queue-full" | "signal-send-timeout" | "signal-closed", message: string): SendOutcome {
  return { delivered: undefined, failure: new SignalError(code, message, { retryable: code !== "signal-closed" }) };
}
