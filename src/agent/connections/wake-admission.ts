import type { PublicKey } from "#base/keys.ts";
import type { Clock, Millis } from "#base/time.ts";
import type { PacketSummary, WireGuardDevice } from "#wireguard/device.ts";
import { Quota } from "#wireguard/quota.ts";
import { IdleClock } from "./lazy/idle-clock.ts";
import { describeProbe, HOLD_PATIENCE, SweepGuard } from "./lazy/sweep-guard.ts";
import { MessageBudget } from "./message-budget.ts";
import { describeCause } from "./wake-cause.ts";
import { type WakePriority, WakeQueue } from "./wake-queue.ts";

export interface WakeAdmissionDeps {
  readonly clock: Clock;
  readonly device: Pick<WireGuardDevice, "postponeWake" | "declineWake">;
  /** The wake begins now. */
  readonly start: (key: PublicKey, wake: WakeOrder) => void;
  /** The wake does not take place, for now. */
  readonly turnedAway: (key: PublicKey) => void;
  /** Goes to the peer's timeline. */
  readonly note: (key: PublicKey, event: string, detail: string) => void;
}

export interface WakeOrder {
  /** In words, for the timeline. */
  readonly cause: string;
  /** Our side sends the first handshake message. */
  readonly initiate: boolean;
  /** The other side is told at once all the same. */
  readonly offer?: boolean;
}

/** Wakes as status shows them. */
export interface WakeStatus {
  readonly negotiating: number;
  /** For a place, or for the message budget. */
  readonly waiting: number;
  /** Held back as part of a sweep, with packets waiting. */
  readonly held: number;
  readonly counters: ReadonlyMap<WakeCounter, number>;
}

export type WakeCounter =
  | "wakes"
  | "wakes-held"
  | "wakes-released"
  | "wakes-held-dropped"
  | "wakes-refused"
  | "wakes-expired";

/** Wakes by traffic that the device does not show: beyond so many in so long they let single ones go first. */
const ACTIVITY_BURST = 16;
const ACTIVITY_WINDOW: Millis = 10_000;

/** A peer whose packets wait while its wake is held back. */
interface Hold {
  /** Its packets are not looked at before; undefined: each is. */
  lookAt: Millis | undefined;
  dropAt: Millis;
  readonly since: Millis;
}

/**
 * Which wakes take place, and when: owns the guard against sweeps, the queue of wakes and the budget of messages. Costs
 * nothing for peers that nobody touches: one timer for all that are held back, one for all that wait.
 *
 *   packet --> SweepGuard --wake--> WakeQueue --a place, and messages left--> start
 *                  '--hold--> the device keeps what waits and reports the next packet; nothing within HOLD_PATIENCE: dropped
 *   activity, offer, handshake, command, route group ---> WakeQueue
 */
export class WakeAdmission {
  readonly #deps: WakeAdmissionDeps;
  readonly #guard = new SweepGuard<PublicKey>();
  readonly #budget: MessageBudget;
  readonly #queue: WakeQueue<PublicKey>;
  readonly #orders = new Map<PublicKey, WakeOrder>();
  readonly #holds = new Map<PublicKey, Hold>();
  readonly #holdClock: IdleClock<PublicKey>;
  readonly #activity = new Quota(ACTIVITY_BURST, ACTIVITY_WINDOW);
  readonly #counters = new Map<WakeCounter, number>();

  constructor(deps: WakeAdmissionDeps) {
    this.#deps = deps;
    this.#budget = new MessageBudget(deps.clock);
    this.#holdClock = new IdleClock(deps.clock, (key, now) => this.#lookAtHold(key, now));
    this.#queue = new WakeQueue({
      clock: deps.clock,
      budget: this.#budget,
      start: (key) => this.#start(key),
      turnAway: (key, why) => this.#turnAway(key, why),
    });
  }

  get status(): WakeStatus {
    const { negotiating, waiting } = this.#queue;
    return { negotiating, waiting, held: this.#holds.size, counters: this.#counters };
  }

  get waiting(): number {
    return this.#queue.waiting;
  }

  /** Why the peer sleeps although packets wait for it; undefined when none do, or its turn has come. */
  whyHeld(key: PublicKey): string | undefined {
    if (!this.#holds.has(key)) return undefined;
    const sweep = this.#guard.sweepOf(key);
    return sweep && `held back: part of a sweep over ${sweep.peers} peers`;
  }

  /** A packet waits for a sleeping peer. */
  requestByPacket(key: PublicKey, packet: PacketSummary): void {
    const { clock, device, note } = this.#deps;
    const now = clock.now();
    const verdict = this.#guard.judge(key, packet, now);
    if (verdict.kind === "wake") {
      const since = this.#holds.get(key)?.since;
      this.#endHold(key);
      if (since !== undefined) {
        this.#count("wakes-released");
        note(key, "released", `asked again ${((now - since) / 1000).toFixed(1)} s after the first packet`);
      }
      const order = { cause: describeCause({ kind: "packet", packet }), initiate: true };
      this.request(key, verdict.repeated ? "fan-out" : "interactive", order);
      return;
    }
    if (!verdict.remembered) {
      this.#count("wakes-held-dropped");
      device.postponeWake(key, "drop");
      return;
    }
    let hold = this.#holds.get(key);
    if (!hold) {
      hold = { lookAt: undefined, dropAt: 0, since: now };
      this.#holds.set(key, hold);
      this.#count("wakes-held");
      note(key, "held", `held back: part of a sweep over ${verdict.sweep.peers} peers (${describeProbe(packet)})`);
    }
    hold.dropAt = now + HOLD_PATIENCE;
    hold.lookAt = verdict.lookAt > now ? verdict.lookAt : undefined;
    if (hold.lookAt === undefined) device.postponeWake(key, "keep");
    this.#holdClock.watch(key, hold.lookAt ?? hold.dropAt);
  }

  /**
   * Traffic waits for a sleeping peer in a device that shows no packets. A sweep cannot be told from somebody who talks to many:
   * the device repeats for both. So nothing is held back, and only the number of wakes at once is bounded.
   */
  requestByActivity(key: PublicKey): void {
    const isOfMany = !this.#activity.take(this.#deps.clock.now());
    const order = { cause: describeCause({ kind: "activity" }), initiate: true };
    this.request(key, isOfMany ? "fan-out" : "interactive", order);
  }

  /** Somebody wants the peer, and it is not a question whether. */
  request(key: PublicKey, priority: WakePriority, order: WakeOrder): void {
    const known = this.#orders.get(key);
    if (!known || (order.initiate && !known.initiate)) this.#orders.set(key, order);
    this.#queue.request(key, priority);
  }

  /** The peer need not be awake after all; whoever waits for it has it woken nevertheless. */
  withdraw(key: PublicKey): void {
    if (this.#queue.withdraw(key)) this.#orders.delete(key);
  }

  /** The peer's negotiation is over. */
  release(key: PublicKey): void {
    this.#queue.release(key);
  }

  /** The peer is awake, by whatever: nothing is to be decided any more. */
  noteAwake(key: PublicKey): void {
    this.#orders.delete(key);
    this.#guard.forget(key);
    this.#endHold(key);
    this.#count("wakes");
  }

  /** The peer sleeps or is gone: its wake is off. */
  cancel(key: PublicKey): void {
    this.#orders.delete(key);
    this.#queue.release(key);
    this.#guard.forget(key);
    this.#endHold(key);
  }

  /** A signal message is sent. */
  noteMessage(): void {
    this.#budget.spend();
  }

  close(): void {
    this.#queue.close();
    this.#holdClock.close();
    this.#holds.clear();
    this.#orders.clear();
  }

  #start(key: PublicKey): void {
    const order = this.#orders.get(key);
    this.#orders.delete(key);
    if (order) this.#deps.start(key, order);
  }

  #turnAway(key: PublicKey, why: "refused" | "expired"): void {
    const order = this.#orders.get(key);
    this.#orders.delete(key);
    this.#count(`wakes-${why}`);
    const reason = why === "refused" ? "too many wakes wait already" : "its turn did not come within a minute";
    this.#deps.note(key, `wake-${why}`, `${reason}: ${order?.cause ?? ""}`);
    // What came just now may ask again, unless there is no room for it anyway.
    if (why === "expired") this.#deps.device.declineWake(key);
    else this.#deps.device.postponeWake(key, "drop");
    this.#deps.turnedAway(key);
  }

  #lookAtHold(key: PublicKey, now: Millis): Millis | undefined {
    const hold = this.#holds.get(key);
    if (!hold) return undefined;
    const { device, note } = this.#deps;
    if (now < hold.dropAt) {
      if (hold.lookAt !== undefined && hold.lookAt <= now) {
        hold.lookAt = undefined;
        device.postponeWake(key, "keep");
      }
      return hold.dropAt;
    }
    this.#holds.delete(key);
    this.#count("wakes-held-dropped");
    const peers = this.#guard.sweepOf(key)?.peers ?? 1;
    note(key, "held-dropped", `part of a sweep over ${peers} peers: nothing more came, what waited is dropped`);
    device.postponeWake(key, "drop");
    return undefined;
  }

  #endHold(key: PublicKey): void {
    if (this.#holds.delete(key)) this.#holdClock.unwatch(key);
  }

  #count(name: WakeCounter): void {
    this.#counters.set(name, (this.#counters.get(name) ?? 0) + 1);
  }
}
