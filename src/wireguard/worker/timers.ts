import type { SessionLimits } from "./limits.ts";
import type { Peer } from "./peers.ts";

/** Times are rounded up to this, so that many peers share a wake-up. */
const SLOT_MS = 100;

/** What a timer that fires wants done. */
export interface TimerActions {
  sendKeepalive(peer: Peer): void;
  /** Data was sent and nothing came back. */
  noAnswer(peer: Peer): void;
  /** The same much sooner: the path may be dead. Again and again while data is sent and nothing comes. */
  silent(peer: Peer): void;
  /** Sessions may have become too old. */
  expireSessions(peer: Peer): void;
}

/**
 * The timers that follow from data (paper section 6.5), for peers with a session: passive keepalive, new handshake,
 * persistent keepalive, expiry. Packets only store times; one heap holds the next time to look at each peer, so a timer
 * that is armed and cleared with every packet costs two assignments. Without sessions the heap is empty and nothing wakes.
 */
export class Timers {
  readonly #limits: SessionLimits;
  readonly #actions: TimerActions;
  /** Binary heap by `checkAt`. */
  readonly #heap: Peer[] = [];

  constructor(limits: SessionLimits, actions: TimerActions) {
    this.#limits = limits;
    this.#actions = actions;
  }

  /** Peers that have a time to be looked at. */
  get size(): number {
    return this.#heap.length;
  }

  /** When the next one is due; Infinity without any. */
  get nextAt(): number {
    return this.#heap[0]?.checkAt ?? Number.POSITIVE_INFINITY;
  }

  /** An inner packet left. */
  dataSent(peer: Peer, now: number): void {
    const { keepaliveTimeout, rekeyTimeout, jitter, silence } = this.#limits;
    if (peer.silentDue === 0) {
      peer.silentDue = now + silence;
      this.#look(peer, peer.silentDue);
    }
    if (peer.newHandshakeDue !== 0) return;
    peer.newHandshakeDue = now + keepaliveTimeout + rekeyTimeout + jitter * Math.random();
    this.#look(peer, peer.newHandshakeDue);
  }

  /** An authenticated packet with an inner packet came. */
  dataReceived(peer: Peer, now: number): void {
    if (peer.keepaliveDue !== 0) {
      peer.keepaliveAgain = true;
      return;
    }
    // An asleep peer answers nothing by itself.
    if (peer.asleep) return;
    peer.keepaliveDue = now + this.#limits.keepaliveTimeout;
    this.#look(peer, peer.keepaliveDue);
  }

  /** Anything authenticated left: data, keepalive or handshake. */
  authenticatedSent(peer: Peer, now: number): void {
    peer.keepaliveDue = 0;
    peer.keepaliveAgain = false;
    if (peer.persistentKeepalive > 0) this.#traversed(peer, now);
  }

  /** Anything authenticated came. */
  authenticatedReceived(peer: Peer, now: number): void {
    peer.newHandshakeDue = 0;
    peer.silentDue = 0;
    if (peer.persistentKeepalive > 0) this.#traversed(peer, now);
  }

  /** A session was installed: it must be dropped in time. */
  sessionInstalled(peer: Peer, createdAt: number): void {
    this.#look(peer, createdAt + this.#limits.rejectAfterTime);
  }

  /** Persistent keepalive was switched on (the caller sends the first one) or off. */
  keepaliveChanged(peer: Peer, now: number): void {
    peer.persistentDue = 0;
    if (peer.persistentKeepalive > 0 && !peer.asleep) this.#traversed(peer, now);
  }

  /** The peer went to sleep: only the expiry of its sessions stays. */
  stop(peer: Peer): void {
    peer.keepaliveDue = 0;
    peer.keepaliveAgain = false;
    peer.newHandshakeDue = 0;
    peer.silentDue = 0;
    peer.persistentDue = 0;
  }

  /** Forgets the peer. */
  remove(peer: Peer): void {
    this.stop(peer);
    if (peer.heapPlace >= 0) this.#take(peer.heapPlace);
  }

  /** Runs what is due; call when `nextAt` has come. */
  run(now: number): void {
    for (;;) {
      const peer = this.#heap[0];
      if (peer === undefined || peer.checkAt > now) return;
      this.#take(0);
      this.#check(peer, now);
    }
  }

  #check(peer: Peer, now: number): void {
    if (peer.keepaliveDue !== 0 && peer.keepaliveDue <= now) {
      peer.keepaliveDue = 0;
      const again = peer.keepaliveAgain;
      this.#actions.sendKeepalive(peer);
      peer.keepaliveAgain = false;
      if (again) peer.keepaliveDue = now + this.#limits.keepaliveTimeout;
    }
    if (peer.newHandshakeDue !== 0 && peer.newHandshakeDue <= now) {
      peer.newHandshakeDue = 0;
      this.#actions.noAnswer(peer);
    }
    if (peer.silentDue !== 0 && peer.silentDue <= now) {
      peer.silentDue = 0;
      this.#actions.silent(peer);
    }
    if (peer.persistentDue !== 0 && peer.persistentDue <= now) {
      peer.persistentDue = now + peer.persistentKeepalive;
      this.#actions.sendKeepalive(peer);
    }
    this.#actions.expireSessions(peer);
    this.#lookAgain(peer);
  }

  #traversed(peer: Peer, now: number): void {
    if (peer.asleep) return;
    const first = peer.persistentDue === 0;
    peer.persistentDue = now + peer.persistentKeepalive;
    if (first || peer.heapPlace < 0) this.#look(peer, peer.persistentDue);
  }

  #lookAgain(peer: Peer): void {
    let at = Number.POSITIVE_INFINITY;
    if (peer.keepaliveDue !== 0) at = peer.keepaliveDue;
    if (peer.newHandshakeDue !== 0) at = Math.min(at, peer.newHandshakeDue);
    if (peer.silentDue !== 0) at = Math.min(at, peer.silentDue);
    if (peer.persistentDue !== 0) at = Math.min(at, peer.persistentDue);
    for (const session of [...peer.older, peer.previous, peer.current, peer.next]) {
      if (session) at = Math.min(at, session.createdAt + this.#limits.rejectAfterTime);
    }
    if (at !== Number.POSITIVE_INFINITY) this.#look(peer, at);
  }

  /** Makes sure that the peer is looked at by `at`. Looking too early is harmless. */
  #look(peer: Peer, at: number): void {
    const slot = Math.ceil(at / SLOT_MS) * SLOT_MS;
    if (peer.heapPlace >= 0) {
      if (peer.checkAt <= slot) return;
      peer.checkAt = slot;
      this.#up(peer.heapPlace);
      return;
    }
    peer.checkAt = slot;
    peer.heapPlace = this.#heap.length;
    this.#heap.push(peer);
    this.#up(peer.heapPlace);
  }

  #take(place: number): void {
    const peer = this.#heap[place]!;
    const last = this.#heap.pop()!;
    peer.heapPlace = -1;
    if (last === peer) return;
    this.#heap[place] = last;
    last.heapPlace = place;
    this.#up(place);
    this.#down(last.heapPlace);
  }

  #up(place: number): void {
    for (let at = place; at > 0; ) {
      const above = (at - 1) >> 1;
      if (this.#heap[above]!.checkAt <= this.#heap[at]!.checkAt) return;
      this.#swap(at, above);
      at = above;
    }
  }

  #down(place: number): void {
    for (let at = place; ; ) {
      let least = at;
      for (let below = 2 * at + 1; below <= 2 * at + 2 && below < this.#heap.length; below++) {
        if (this.#heap[below]!.checkAt < this.#heap[least]!.checkAt) least = below;
      }
      if (least === at) return;
      this.#swap(at, least);
      at = least;
    }
  }

  #swap(a: number, b: number): void {
    const first = this.#heap[a]!;
    const second = this.#heap[b]!;
    this.#heap[a] = second;
    this.#heap[b] = first;
    second.heapPlace = a;
    first.heapPlace = b;
  }
}
