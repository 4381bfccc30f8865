import { randomBytes } from "node:crypto";
import { setImmediate as nextTurn } from "node:timers/promises";
import { sameEndpoint } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import { Waiters } from "#base/waiters.ts";
import type { AgentControl, AgentStatus, ChangedPeers, PeerPath, PeerStatus } from "../control.ts";

/** Keys of removed peers that are remembered; a watcher that missed more starts again with a snapshot. */
const TOMBSTONES_MAX = 4096;

/** Changed rows that are found without looking at all; a watcher that missed more costs a look at all. */
const RECENT_MAX = 8192;

/** Peers read in one turn of the event loop. */
const READS_PER_TURN = 256;

/** What changed after a revision. */
export interface StatusChange {
  readonly revision: bigint;
  /** The peers are all there are, not only the changed ones. */
  readonly reset: boolean;
  readonly status: AgentStatus;
  readonly peers: readonly PeerStatus[];
  readonly removed: readonly PublicKey[];
}

interface Row {
  readonly peer: PeerStatus;
  readonly revision: bigint;
}

/**
 * Numbers the changes of the agent's status, so that any number of watchers, each at its own pace, get what changed since
 * the revision they have seen: a slow one skips intermediate states and never makes anything wait. Works only while it is
 * watched; of the agent's peers only those are read that changed, and those that are awake, whose counters run. Many are read
 * over several turns of the event loop.
 */
export class StatusFeed {
  readonly epoch: string = randomBytes(8).toString("hex");
  readonly #agent: StatusSource;
  readonly #rows = new Map<PublicKey, Row>();
  readonly #tombstones = new Map<PublicKey, bigint>();
  readonly #waiters = new Waiters();
  /** Peers that were not idle when they were last read. */
  readonly #live = new Set<PublicKey>();
  /** Rows as they changed, oldest first; all after `#recentAfter`. */
  #recent: { readonly key: PublicKey; readonly revision: bigint }[] = [];
  #recentAfter = 0n;
  /** Peers to read again. */
  #changed: Set<PublicKey> | "all" = "all";
  #forgottenBefore = 0n;
  #revision = 0n;
  #status: AgentStatus | undefined;
  #stale = true;
  /** Under way over several turns. */
  #reading: Promise<void> | undefined;
  #watchers = 0;
  #unsubscribe: (() => void) | undefined;

  constructor(agent: StatusSource) {
    this.#agent = agent;
  }

  /** Counts a watcher in; the returned function counts it out again and is idempotent. */
  watch(): () => void {
    if (this.#watchers++ === 0) {
      this.#stale = true;
      this.#changed = "all";
      this.#unsubscribe = this.#agent.onChange((peers) => this.noteChange(peers));
    }
    let left = false;
    return () => {
      if (left) return;
      left = true;
      if (--this.#watchers === 0) {
        this.#unsubscribe?.();
        this.#unsubscribe = undefined;
      }
    };
  }

  /** Something in the head changed that the agent does not know of (log level, settings), or the agent said so. */
  noteChange(peers: ChangedPeers = NO_PEERS): void {
    this.#stale = true;
    if (peers === "all") this.#changed = "all";
    else if (this.#changed !== "all") for (const key of peers) this.#changed.add(key);
    this.#waiters.wake();
  }

  /** What changed after `revision` of `epoch`; everything when that is unknown. */
  async since(epoch: string, revision: bigint): Promise<StatusChange> {
    // One that is under way may have passed by what changed just now.
    await this.#reading;
    if (this.#stale || this.#reading) await this.#read();
    const reset =
      epoch !== this.epoch || revision < this.#forgottenBefore || revision > this.#revision || revision === 0n;
    const peers = reset ? Array.from(this.#rows.values(), ({ peer }) => peer) : this.#changedAfter(revision);
    const removed: PublicKey[] = [];
    if (!reset) for (const [key, at] of this.#tombstones) if (at > revision) removed.push(key);
    return { revision: this.#revision, reset, status: this.#status!, peers, removed };
  }

  /** Resolves true when something may have changed, false when the signal aborts. */
  changed(signal: AbortSignal): Promise<boolean> {
    if (signal.aborted) return Promise.resolve(false);
    if (this.#stale) return Promise.resolve(true);
    return this.#waiters.wait(signal);
  }

  /** Whoever asks for it while it is under way shares it. */
  #read(): Promise<void> {
    this.#reading ??= this.#refresh().finally(() => {
      this.#reading = undefined;
    });
    return this.#reading;
  }

  async #refresh(): Promise<void> {
    this.#stale = false;
    const next = this.#revision + 1n;
    const changed = this.#changed;
    this.#changed = new Set();
    let read = 0;
    for (const _ of changed === "all" ? this.#putAll(next) : this.#putSome([...changed, ...this.#live], next))
      if (++read % READS_PER_TURN === 0) await nextTurn();
    for (const [key, at] of this.#tombstones) {
      if (this.#tombstones.size <= TOMBSTONES_MAX) break;
      this.#tombstones.delete(key);
      this.#forgottenBefore = at;
    }
    // The head has no revision of its own: it is sent with every part, so a change of it alone is a revision too.
    this.#revision = next;
    this.#status = this.#agent.status();
  }

  /** Yields after each peer. Who comes or goes between two of them is told as a change, and read next time. */
  *#putAll(revision: bigint): Generator<void> {
    const seen = new Set<PublicKey>();
    for (const peer of this.#agent.peers()) {
      seen.add(peer.key);
      yield this.#put(peer.key, peer, revision);
    }
    for (const key of this.#rows.keys()) if (!seen.has(key)) yield this.#put(key, undefined, revision);
  }

  *#putSome(keys: readonly PublicKey[], revision: bigint): Generator<void> {
    for (const key of new Set(keys)) yield this.#put(key, this.#agent.peerStatus(key), revision);
  }

  /** Undefined: the peer is gone. */
  #put(key: PublicKey, peer: PeerStatus | undefined, revision: bigint): void {
    if (peer && peer.state !== "idle") this.#live.add(key);
    else this.#live.delete(key);
    const row = this.#rows.get(key);
    if (!peer) {
      if (this.#rows.delete(key)) this.#tombstones.set(key, revision);
      return;
    }
    if (row && samePeer(row.peer, peer)) return;
    this.#rows.set(key, { peer, revision });
    this.#tombstones.delete(key);
    if (this.#recent.length >= 2 * RECENT_MAX) {
      this.#recentAfter = this.#recent[RECENT_MAX - 1]!.revision;
      this.#recent = this.#recent.slice(RECENT_MAX);
    }
    this.#recent.push({ key, revision });
  }

  #changedAfter(revision: bigint): PeerStatus[] {
    if (revision < this.#recentAfter) {
      return [...this.#rows.values()].filter((row) => row.revision > revision).map(({ peer }) => peer);
    }
    const keys = new Set<PublicKey>();
    for (let at = this.#recent.length - 1; at >= 0 && this.#recent[at]!.revision > revision; at--) {
      keys.add(this.#recent[at]!.key);
    }
    return [...keys].reverse().flatMap((key) => this.#rows.get(key)?.peer ?? []);
  }
}

/** What the feed reads. */
export type StatusSource = Pick<AgentControl, "status" | "peers" | "peerStatus" | "onChange">;

const NO_PEERS: ReadonlySet<PublicKey> = new Set();

/** Everything of a peer that is shown. Compared by value: the recorder may or may not reuse its objects. */
function samePeer(a: PeerStatus, b: PeerStatus): boolean {
  return (
    a === b ||
    (a.state === b.state &&
      a.since === b.since &&
      a.reason === b.reason &&
      a.rxBytes === b.rxBytes &&
      a.txBytes === b.txBytes &&
      a.lastHandshake === b.lastHandshake &&
      a.latencyMs === b.latencyMs &&
      a.pinned === b.pinned &&
      a.lazy.lazy === b.lazy.lazy &&
      a.lazy.why === b.lazy.why &&
      a.fqdn === b.fqdn &&
      a.agentVersion === b.agentVersion &&
      a.relayServer === b.relayServer &&
      samePath(a.path, b.path) &&
      a.pathSince === b.pathSince &&
      a.timeline.length === b.timeline.length &&
      a.timeline.at(-1)?.at === b.timeline.at(-1)?.at &&
      a.addresses.length === b.addresses.length &&
      a.addresses.every((address, index) => address === b.addresses[index]) &&
      a.routes.length === b.routes.length &&
      a.routes.every(
        (route, index) => route.address === b.routes[index]!.address && route.bits === b.routes[index]!.bits,
      ))
  );
}

function samePath(a: PeerPath, b: PeerPath): boolean {
  if (a === b) return true;
  switch (a.kind) {
    case "none":
      return b.kind === "none";
    case "relay":
      return b.kind === "relay" && a.server === b.server;
    case "direct":
      return (
        b.kind === "direct" &&
        sameEndpoint(a.endpoint, b.endpoint) &&
        sameEndpoint(a.local, b.local) &&
        a.localKind === b.localKind &&
        a.remoteKind === b.remoteKind
      );
    default:
      return a satisfies never;
  }
}
