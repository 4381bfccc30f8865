import { DeadlineTimer } from "#base/deadline-timer.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import type { MessageBudget } from "./message-budget.ts";

/**
 * What a wake is for, most urgent first. `interactive`: somebody waits for it now. `router`: a peer that serves a network.
 * `fan-out`: one of very many that the same program wants. `background`: start-up, permanent peers.
 */
export const WAKE_PRIORITIES = ["interactive", "router", "fan-out", "background"] as const;
export type WakePriority = (typeof WAKE_PRIORITIES)[number];

/** Peers that may negotiate at the same moment; further wakes wait in order, urgent ones first. */
export const MAX_NEGOTIATING = 64;

/**
 * A wake is most of a millisecond of work (keys, a handshake message, a sealed OFFER), and its retries come together as the
 * wakes did: so many begin without a pause of TURN, that everybody else gets a turn in between.
 */
export const WAKES_PER_TURN = 5;
const TURN: Millis = 10;

/** A negotiation that proved nothing by then gives its place to the next; it goes on by itself. */
export const NEGOTIATION_PATIENCE: Millis = 3000;

/** Wakes that somebody waits for and that may wait at the same moment; further ones are refused. */
export const WAITING_MAX = 8192;
/** Whoever wanted a wake has given up, or asks again, when it waited for this long. Permanent peers wait for ever. */
export const WAITING_PATIENCE: Millis = 60_000;

export interface WakeQueueDeps<Key> {
  readonly clock: Clock;
  /** Wakes cost messages: while there are none left, they wait. Those that can keep some for those that cannot. */
  readonly budget: Pick<MessageBudget, "timeUntil">;
  readonly start: (key: Key) => void;
  /** The wake does not take place; it may be requested again. */
  readonly turnAway: (key: Key, why: "refused" | "expired") => void;
}

export interface WakeQueueLimits {
  readonly negotiating?: number;
  readonly waiting?: number;
}

/**
 * Admission of wakes: at most so many peers negotiate at once, as fast as the budget of messages allows. A place is taken by
 * `request` and given back by `release` (connected, or asleep again) or after NEGOTIATION_PATIENCE. Requests are remembered
 * once per key; one that waits becomes more urgent when somebody asks for it.
 */
export class WakeQueue<Key> {
  readonly #deps: WakeQueueDeps<Key>;
  readonly #maxNegotiating: number;
  readonly #maxWaiting: number;
  readonly #running = new Map<Key, Timer>();
  /** When each was requested, in that order. */
  readonly #waiting = new Map<WakePriority, Map<Key, Millis>>(WAKE_PRIORITIES.map((each) => [each, new Map()]));
  /** For all that wait: the next that has waited for too long, or the budget. */
  readonly #timer: DeadlineTimer;
  #admitting = false;
  #turnAt: Millis = Number.NEGATIVE_INFINITY;
  #begunInTurn = 0;

  constructor(deps: WakeQueueDeps<Key>, limits: WakeQueueLimits = {}) {
    this.#deps = deps;
    this.#maxNegotiating = limits.negotiating ?? MAX_NEGOTIATING;
    this.#maxWaiting = limits.waiting ?? WAITING_MAX;
    this.#timer = new DeadlineTimer(deps.clock, () => {
      this.#expire();
      this.#admit();
    });
  }

  get waiting(): number {
    let sum = 0;
    for (const keys of this.#waiting.values()) sum += keys.size;
    return sum;
  }

  get negotiating(): number {
    return this.#running.size;
  }

  /** Starts the wake now when there is a place, else later. */
  request(key: Key, priority: WakePriority): void {
    if (this.#running.has(key)) return;
    const now = this.#deps.clock.now();
    for (const each of WAKE_PRIORITIES) {
      const keys = this.#waiting.get(each)!;
      if (!keys.has(key)) continue;
      if (isMoreUrgent(priority, each)) keys.delete(key);
      else return this.#admit();
    }
    this.#waiting.get(priority)!.set(key, now);
    this.#admit();
    const isWaiting = this.#waiting.get(priority)!.has(key);
    if (isWaiting && isForSomebody(priority) && this.#waitingForSomebody() > this.#maxWaiting)
      this.#turnAway(key, "refused");
  }

  /** Nobody waits for `key`, and it need not be awake after all: unless its turn has come, it is forgotten. True then. */
  withdraw(key: Key): boolean {
    const isWithdrawn = [this.#waiting.get("router")!, this.#waiting.get("background")!].some((keys) =>
      keys.delete(key),
    );
    this.#arm();
    return isWithdrawn;
  }

  /** The negotiation of `key` is over, or it is not wanted any more. */
  release(key: Key): void {
    for (const keys of this.#waiting.values()) keys.delete(key);
    this.#running.get(key)?.cancel();
    if (this.#running.delete(key)) this.#admit();
    else this.#arm();
  }

  close(): void {
    for (const timer of this.#running.values()) timer.cancel();
    this.#running.clear();
    for (const keys of this.#waiting.values()) keys.clear();
    this.#arm();
  }

  #waitingForSomebody(): number {
    return this.#waiting.get("interactive")!.size + this.#waiting.get("fan-out")!.size;
  }

  #admit(): void {
    // A wake may wake others, which then only join the queue: its order holds.
    if (this.#admitting) return;
    this.#admitting = true;
    try {
      for (const priority of WAKE_PRIORITIES) {
        const keys = this.#waiting.get(priority)!;
        for (const key of keys.keys()) {
          if (this.#running.size >= this.#maxNegotiating || this.#timeUntilStart(priority) > 0) return;
          keys.delete(key);
          this.#begin(key);
        }
      }
    } finally {
      this.#admitting = false;
      this.#arm();
    }
  }

  /** Until this turn is over, or the budget has something left again. */
  #timeUntilStart(priority: WakePriority): Millis {
    const { clock, budget } = this.#deps;
    const turn = this.#begunInTurn < WAKES_PER_TURN ? 0 : Math.max(0, this.#turnAt + TURN - clock.now());
    return Math.max(turn, budget.timeUntil(isPatient(priority)));
  }

  #begin(key: Key): void {
    const { clock, start } = this.#deps;
    if (clock.now() - this.#turnAt >= TURN) this.#begunInTurn = 0;
    this.#begunInTurn++;
    this.#running.set(
      key,
      clock.after(NEGOTIATION_PATIENCE, () => this.release(key)),
    );
    start(key);
    // From its end: on a busy machine it may take longer than a turn.
    this.#turnAt = clock.now();
  }

  #turnAway(key: Key, why: "refused" | "expired"): void {
    for (const keys of this.#waiting.values()) keys.delete(key);
    this.#deps.turnAway(key, why);
  }

  #expire(): void {
    const now = this.#deps.clock.now();
    for (const priority of WAKE_PRIORITIES) {
      if (!isForSomebody(priority)) continue;
      for (const [key, since] of this.#waiting.get(priority)!) {
        if (since + WAITING_PATIENCE > now) break;
        this.#turnAway(key, "expired");
      }
    }
  }

  #arm(): void {
    this.#timer.set(this.#nextAt());
  }

  #nextAt(): Millis | undefined {
    const { clock } = this.#deps;
    let next: Millis | undefined;
    for (const [priority, keys] of this.#waiting) {
      const oldest = keys.values().next().value;
      if (oldest === undefined) continue;
      const until: Millis[] = [];
      if (isForSomebody(priority)) until.push(oldest + WAITING_PATIENCE);
      if (this.#running.size < this.#maxNegotiating) until.push(clock.now() + this.#timeUntilStart(priority));
      for (const at of until) next = next === undefined ? at : Math.min(next, at);
    }
    return next;
  }
}

function isMoreUrgent(one: WakePriority, other: WakePriority): boolean {
  return WAKE_PRIORITIES.indexOf(one) < WAKE_PRIORITIES.indexOf(other);
}

/** Somebody waits for it, and gives up or asks again; the others are to be awake whoever asks. */
function isForSomebody(priority: WakePriority): boolean {
  return priority === "interactive" || priority === "fan-out";
}

/** Many of a kind leave a part of the budget to the single ones. */
function isPatient(priority: WakePriority): boolean {
  return priority === "fan-out" || priority === "background";
}
