import type { PublicKey } from "#base/keys.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import { Waiters } from "#base/waiters.ts";
import { type WakeKind, wakeKind } from "../connections/wake-cause.ts";
import type { AgentControl, ChangedPeers, PeerStatus, TimelineEntry } from "../control.ts";

/** How often the peers' states are counted. */
export const SAMPLE_INTERVAL: Millis = 2000;
/** Counts that did not change are noted again after this, so that a line over time has points. */
export const QUIET_INTERVAL: Millis = 60_000;
/** Counts kept; the oldest go first. Four hours when every one differs, days when none does. */
export const SAMPLES_MAX = 7200;
/** Wakes kept; the oldest go first. */
export const WAKES_MAX = 2000;

/** How many peers were in which state at `at` (wall clock ms). */
export interface StateSample {
  readonly at: number;
  readonly idle: number;
  readonly connecting: number;
  readonly connected: number;
}

export interface WakeRecord {
  readonly id: number;
  /** Wall clock ms. */
  readonly at: number;
  readonly fqdn: string;
  readonly kind: WakeKind;
  readonly detail: string;
  /** From the wake to the handshake that proved it; undefined: not proven (yet). */
  readonly took?: Millis | undefined;
}

/** What is new after a position. */
export interface ActivityChange {
  readonly position: number;
  readonly samples: readonly StateSample[];
  readonly wakes: readonly WakeRecord[];
}

/** What the log reads. */
export type ActivitySource = Pick<AgentControl, "status" | "peers" | "peerStatus" | "onChange">;

/** The last seen entry of a peer's timeline, and the wake whose proof is awaited. */
interface Follower {
  readonly seen: TimelineEntry;
  readonly open: number | undefined;
}

/**
 * What the web page's overview is made of: counts of states over time, and each wake with its cause and how long it took.
 * Runs only while the page is served. It begins with the wakes that the peers' timelines remember.
 */
export class ActivityLog {
  readonly #agent: ActivitySource;
  readonly #clock: Clock;
  readonly #pulse: () => void;
  readonly #followers = new Map<PublicKey, Follower>();
  readonly #waiters = new Waiters();
  /** Both in the order of their positions. */
  #samples: (StateSample & { readonly position: number })[] = [];
  readonly #wakes = new Map<number, WakeRecord & { readonly position: number }>();
  #position = 0;
  #wakesSeen = 0;
  #timer: Timer | undefined;
  #unsubscribe: (() => void) | undefined;

  /** `pulse` is called with every count: nobody else tells watchers that the counters of awake peers run on. */
  constructor(agent: ActivitySource, clock: Clock, pulse: () => void = () => {}) {
    this.#agent = agent;
    this.#clock = clock;
    this.#pulse = pulse;
  }

  /** Idempotent. */
  start(): void {
    if (this.#unsubscribe) return;
    this.#unsubscribe = this.#agent.onChange((peers) => this.#read(peers));
    this.#read("all");
    this.#sample();
  }

  /** Stops looking; what was seen stays. Idempotent. */
  stop(): void {
    this.#unsubscribe?.();
    this.#unsubscribe = undefined;
    this.#timer?.cancel();
    this.#timer = undefined;
  }

  /** What is new after `position`; everything that is kept after 0. */
  since(position: number): ActivityChange {
    const isNew = (each: { readonly position: number }): boolean => each.position > position;
    return {
      position: this.#position,
      samples: this.#samples.filter(isNew),
      wakes: [...this.#wakes.values()].filter(isNew),
    };
  }

  /** Resolves true when there is something after `position`, false when the signal aborts. */
  changed(position: number, signal: AbortSignal): Promise<boolean> {
    if (signal.aborted) return Promise.resolve(false);
    if (this.#position > position) return Promise.resolve(true);
    return this.#waiters.wait(signal);
  }

  #sample(): void {
    const { idle, connecting, connected } = this.#agent.status().counts;
    const at = this.#clock.wall();
    const last = this.#samples.at(-1);
    const isSame = last?.idle === idle && last.connecting === connecting && last.connected === connected;
    if (!last || !isSame || at - last.at >= QUIET_INTERVAL) {
      if (this.#samples.length >= SAMPLES_MAX) this.#samples = this.#samples.slice(-SAMPLES_MAX / 2);
      this.#samples.push({ at, idle, connecting, connected, position: ++this.#position });
      this.#waiters.wake();
    }
    this.#pulse();
    this.#timer = this.#clock.after(SAMPLE_INTERVAL, () => this.#sample());
  }

  #read(peers: ChangedPeers): void {
    const before = this.#position;
    if (peers === "all") {
      const present = new Set<PublicKey>();
      for (const peer of this.#agent.peers()) {
        present.add(peer.key);
        this.#follow(peer);
      }
      for (const key of this.#followers.keys()) if (!present.has(key)) this.#followers.delete(key);
    } else {
      for (const key of peers) {
        const peer = this.#agent.peerStatus(key);
        if (peer) this.#follow(peer);
        else this.#followers.delete(key);
      }
    }
    if (this.#position > before) this.#waiters.wake();
  }

  /** Takes what is new in a peer's timeline. Entries are never changed, so the last one seen is found by identity. */
  #follow(peer: PeerStatus): void {
    const seen = peer.timeline.at(-1);
    const follower = this.#followers.get(peer.key);
    if (!seen || follower?.seen === seen) return;
    let { open } = follower ?? {};
    const from = follower ? peer.timeline.lastIndexOf(follower.seen) + 1 : 0;
    for (const entry of peer.timeline.slice(from)) {
      if (entry.event === "wake") open = this.#noteWake(peer.fqdn, entry);
      else if (entry.event === "sleep") open = undefined;
      else if (entry.event === "connected" && open !== undefined) {
        this.#noteProof(open, entry.sinceWake);
        open = undefined;
      }
    }
    this.#followers.set(peer.key, { seen, open });
  }

  #noteWake(fqdn: string, { at, detail }: TimelineEntry): number {
    const id = ++this.#wakesSeen;
    this.#wakes.set(id, { id, at, fqdn, kind: wakeKind(detail), detail, position: ++this.#position });
    for (const oldest of this.#wakes.keys()) {
      if (this.#wakes.size <= WAKES_MAX) break;
      this.#wakes.delete(oldest);
    }
    return id;
  }

  #noteProof(id: number, took: Millis | undefined): void {
    const wake = this.#wakes.get(id);
    if (wake) this.#wakes.set(id, { ...wake, took, position: ++this.#position });
  }
}
