import type { HandshakeReason } from "./records.ts";
import type { Session } from "./sessions.ts";

/** Where a peer's packets go: nowhere yet, a UDP endpoint of one family, or the relay. */
export const PathKind = { none: 0, v4: 4, v6: 6, relay: 255 } as const;
export type PathKind = (typeof PathKind)[keyof typeof PathKind];

const EXISTS = 1;
const ASLEEP = 2;
const NO_SESSIONS: readonly Session[] = [];

/** Words of a socket address: `sockaddr_in6` is the longest with 28 bytes. */
export const SOCKADDR_WORDS = 7;

/**
 * A peer that is awake, has a session or has packets waiting. An asleep peer without any of these has no such object, only
 * its two bytes in `Peers`.
 */
export class Peer {
  readonly slot: number;
  asleep: boolean;
  /** Persistent keepalive in ms, 0 = off. */
  persistentKeepalive = 0;

  path: PathKind = PathKind.none;
  /** The path's socket address as the kernel wants it. */
  readonly sockaddr = new Uint32Array(SOCKADDR_WORDS);
  /** The path takes many datagrams in one send. */
  gso = true;

  /** Sessions from the oldest to the newest, but `older`, which begins with the newest; only `current` sends. */
  older: readonly Session[] = NO_SESSIONS;
  previous: Session | undefined;
  current: Session | undefined;
  next: Session | undefined;

  /** Staged packets: first and last block in the pool (-1: none), and what they hold. */
  stagedFirst = -1;
  stagedLast = -1;
  stagedBytes = 0;
  stagedBlocks = 0;
  stagedPackets = 0;
  stagedAt = 0;

  /** A wake was reported and not yet answered by waking or sleeping. */
  wakeReported = false;
  /** Times of the last reports that are limited to one a second. */
  askedAt = Number.NEGATIVE_INFINITY;
  askedReason: HandshakeReason | undefined;
  pathErrorAt = Number.NEGATIVE_INFINITY;
  pathHintAt = Number.NEGATIVE_INFINITY;
  /** Source of the last hint; another source is reported at once. */
  pathHintSource = 0;

  /** Timers (timers.ts): when each is due, 0 = not armed. */
  keepaliveDue = 0;
  keepaliveAgain = false;
  newHandshakeDue = 0;
  silentDue = 0;
  persistentDue = 0;
  /** When the timers look at this peer next, and its place in their heap (-1: not in it). */
  checkAt = 0;
  heapPlace = -1;

  constructor(slot: number, asleep: boolean) {
    this.slot = slot;
    this.asleep = asleep;
  }

  get hasSession(): boolean {
    return (this.previous ?? this.current ?? this.next ?? this.older[0]) !== undefined;
  }
}

/** All peers by slot. */
export class Peers {
  readonly #flags: Uint8Array;
  readonly #keepalive: Uint16Array;
  readonly #active: (Peer | undefined)[] = [];

  constructor(capacity: number) {
    this.#flags = new Uint8Array(capacity);
    this.#keepalive = new Uint16Array(capacity);
  }

  exists(slot: number): boolean {
    return (this.#flags[slot]! & EXISTS) !== 0;
  }

  isAsleep(slot: number): boolean {
    return (this.#flags[slot]! & ASLEEP) !== 0;
  }

  /** A slot beyond the capacity stays one that does not exist. */
  add(slot: number, asleep: boolean, keepaliveSeconds: number): void {
    if (slot >= this.#flags.length) return;
    this.#flags[slot] = EXISTS | (asleep ? ASLEEP : 0);
    this.#keepalive[slot] = keepaliveSeconds;
    this.#active[slot] = undefined;
    if (!asleep) this.activate(slot);
  }

  remove(slot: number): void {
    this.#flags[slot] = 0;
    this.#active[slot] = undefined;
  }

  /** The peer's object when it has one. */
  active(slot: number): Peer | undefined {
    return this.#active[slot];
  }

  /** The peer's object, made when it has none. The slot must exist. */
  activate(slot: number): Peer {
    let peer = this.#active[slot];
    if (peer === undefined) {
      peer = new Peer(slot, this.isAsleep(slot));
      peer.persistentKeepalive = this.#keepalive[slot]! * 1000;
      // Holes up to here are filled, so that the array stays a plain one.
      while (this.#active.length < slot) this.#active.push(undefined);
      this.#active[slot] = peer;
    }
    return peer;
  }

  setAsleep(slot: number, asleep: boolean): void {
    this.#flags[slot] = EXISTS | (asleep ? ASLEEP : 0);
    const peer = this.#active[slot];
    if (peer) peer.asleep = asleep;
  }

  setKeepalive(slot: number, seconds: number): void {
    this.#keepalive[slot] = seconds;
    const peer = this.#active[slot];
    if (peer) peer.persistentKeepalive = seconds * 1000;
  }

  /**
   * Lets go of the object of an asleep peer that has nothing left: neither session nor staged packet. A timer may still look
   * at an object that was let go before; the one that took its place stays.
   */
  releaseIfIdle(peer: Peer): void {
    if (this.#active[peer.slot] !== peer) return;
    if (peer.asleep && !peer.hasSession && peer.stagedPackets === 0 && !peer.wakeReported)
      this.#active[peer.slot] = undefined;
  }

  /** Visits every peer that has an object. */
  *[Symbol.iterator](): IterableIterator<Peer> {
    for (const peer of this.#active) if (peer) yield peer;
  }
}
