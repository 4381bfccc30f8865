import type { Peer, StateSample, StatusHead, WakeRecord } from "../../src/gen/daemon_pb.ts";
import { makeRow, type PeerRow } from "./peer-row.ts";
import { type DaemonClient, isSessionOver } from "./session.ts";

/** Whether what is shown is live. */
export type Link =
  | { readonly kind: "connecting" }
  | { readonly kind: "live" }
  /** The daemon does not answer; what is shown is from `since` (wall clock ms). */
  | { readonly kind: "lost"; readonly since: number }
  | { readonly kind: "over" };

/** A peer's counters at a moment. */
export interface PeerSample {
  readonly at: number;
  readonly latency: number | undefined;
  readonly rxBytes: number;
  readonly txBytes: number;
}

/** One consistent picture; a new object for each change. */
export interface Picture {
  readonly link: Link;
  readonly head: StatusHead | undefined;
  readonly peers: ReadonlyMap<string, PeerRow>;
  readonly samples: readonly StateSample[];
  readonly wakes: ReadonlyMap<number, WakeRecord>;
}

const RETRY_FIRST_MS = 500;
const RETRY_MAX_MS = 5000;
/** Per peer, newest last; half an hour at a sample every two seconds. */
const PEER_SAMPLES_MAX = 900;
/** Peers whose counters are remembered; those that changed longest ago go first. */
const PEERS_SAMPLED_MAX = 500;
/** As many as the daemon keeps. */
const SAMPLES_MAX = 7200;
const WAKES_MAX = 2000;

/**
 * Follows the daemon's streams. After a loss the status is taken up where it stopped, by epoch and revision; what happened
 * in between comes as changes, not as everything again. Changes are shown once per frame.
 */
export class Store {
  readonly #client: DaemonClient;
  readonly #listeners = new Set<() => void>();
  readonly #peers = new Map<string, PeerRow>();
  readonly #history = new Map<string, PeerSample[]>();
  #wakes = new Map<number, WakeRecord>();
  #samples: StateSample[] = [];
  #link: Link = { kind: "connecting" };
  #head: StatusHead | undefined;
  #epoch = "";
  #revision = 0n;
  /** Keys not yet confirmed by the snapshot that is arriving. */
  #stale: Set<string> | undefined;
  #picture: Picture;
  #frame: number | undefined;
  #dirty = { peers: false, activity: false };

  constructor(client: DaemonClient) {
    this.#client = client;
    this.#picture = { link: this.#link, head: undefined, peers: new Map(), samples: [], wakes: new Map() };
  }

  /** Follows the status until the signal aborts or the session is over. */
  start(signal: AbortSignal): void {
    void this.#keep(signal, () => this.#followStatus(signal), true);
  }

  /**
   * Follows the activity, or one peer with its timeline, until the signal aborts. Apart from the status, because a browser
   * opens only six connections to an address, for all its tabs together.
   */
  startActivity(signal: AbortSignal): void {
    void this.#keep(signal, () => this.#followActivity(signal), false);
  }

  startPeer({ peer }: PeerRow, signal: AbortSignal, show: (peer: Peer) => void): void {
    const which = peer.addresses[0] === undefined ? { names: [peer.fqdn] } : { addresses: [peer.addresses[0]] };
    const request = { filter: { ...which, withPeers: true, withTimeline: true }, epoch: "", revision: 0n };
    const follow = async (): Promise<void> => {
      for await (const { peers } of this.#client.watchStatus(request, { signal })) {
        const found = peers.find(({ fqdn }) => fqdn === peer.fqdn);
        if (found) show(found);
      }
    };
    void this.#keep(signal, follow, false);
  }

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  };

  readonly picture = (): Picture => this.#picture;

  historyOf(key: string): readonly PeerSample[] {
    return this.#history.get(key) ?? [];
  }

  async #keep(signal: AbortSignal, follow: () => Promise<void>, tells: boolean): Promise<void> {
    let pause = RETRY_FIRST_MS;
    while (!signal.aborted && this.#link.kind !== "over") {
      const began = performance.now();
      try {
        await follow();
      } catch (reason) {
        if (isSessionOver(reason)) return this.#setLink({ kind: "over" });
      }
      if (signal.aborted) return;
      if (tells && this.#link.kind !== "lost") this.#setLink({ kind: "lost", since: Date.now() });
      if (performance.now() - began > RETRY_MAX_MS) pause = RETRY_FIRST_MS;
      await new Promise((resolve) => setTimeout(resolve, pause));
      pause = Math.min(RETRY_MAX_MS, pause * 1.6);
    }
  }

  async #followStatus(signal: AbortSignal): Promise<void> {
    this.#stale = undefined;
    const request = { filter: { withPeers: true }, epoch: this.#epoch, revision: this.#revision };
    for await (const part of this.#client.watchStatus(request, { signal })) {
      if (part.reset) this.#stale = new Set(this.#peers.keys());
      if (part.head) this.#head = part.head;
      for (const peer of part.peers) {
        const row = makeRow(peer);
        this.#peers.set(row.key, row);
        this.#stale?.delete(row.key);
        this.#remember(row);
      }
      for (const key of part.removed) this.#peers.delete(btoa(String.fromCharCode(...key)));
      // A part alone may be the middle of a change: only what is whole may be resumed from.
      if (!part.more) {
        for (const key of this.#stale ?? []) this.#peers.delete(key);
        this.#stale = undefined;
        this.#epoch = part.epoch;
        this.#revision = part.revision;
      }
      this.#dirty.peers = true;
      if (this.#link.kind !== "live") this.#setLink({ kind: "live" });
      else this.#schedule();
    }
  }

  async #followActivity(signal: AbortSignal): Promise<void> {
    for await (const part of this.#client.watchActivity({}, { signal })) {
      if (part.reset) {
        this.#samples = [];
        this.#wakes.clear();
      }
      this.#samples.push(...part.samples);
      if (this.#samples.length > SAMPLES_MAX) this.#samples = this.#samples.slice(-SAMPLES_MAX);
      for (const wake of part.wakes) this.#wakes.set(wake.id, wake);
      for (const oldest of this.#wakes.keys()) {
        if (this.#wakes.size <= WAKES_MAX) break;
        this.#wakes.delete(oldest);
      }
      this.#dirty.activity = true;
      this.#schedule();
    }
  }

  #remember({ key, peer }: PeerRow): void {
    if (peer.rxBytes + peer.txBytes === 0 && peer.latencyMs === undefined) return;
    const samples = this.#history.get(key) ?? [];
    samples.push({ at: Date.now(), latency: peer.latencyMs, rxBytes: peer.rxBytes, txBytes: peer.txBytes });
    if (samples.length > PEER_SAMPLES_MAX) samples.splice(0, samples.length - PEER_SAMPLES_MAX);
    this.#history.delete(key);
    this.#history.set(key, samples);
    for (const oldest of this.#history.keys()) {
      if (this.#history.size <= PEERS_SAMPLED_MAX) break;
      this.#history.delete(oldest);
    }
  }

  #setLink(link: Link): void {
    this.#link = link;
    this.#schedule();
  }

  #schedule(): void {
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = undefined;
      const { peers, activity } = this.#dirty;
      this.#dirty = { peers: false, activity: false };
      this.#picture = {
        link: this.#link,
        head: this.#head,
        peers: peers ? new Map(this.#peers) : this.#picture.peers,
        samples: activity ? [...this.#samples] : this.#picture.samples,
        wakes: activity ? new Map(this.#wakes) : this.#picture.wakes,
      };
      for (const listener of [...this.#listeners]) listener();
    });
  }
}
