import type { RemoteInfo } from "node:dgram";
import { Emitter } from "#base/emitter.ts";
import type { Endpoint } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import { REJECT_AFTER_TIME } from "../../constants.ts";
import type { LocalEnds, LocalEndsEvents } from "../parts.ts";
import { InitiationScan } from "./initiation-scan.ts";
import { isDevice } from "./loopback-sockets.ts";
import { PeerSocket, SocketAddress } from "./peer-socket.ts";

/** Keys tried in a second for handshakes of peers that were not found lately: a fifth of a core or so. */
export const TRIES_PER_SECOND = 500_000;
/** Of these at once, or one search where that takes more: it keeps the main thread for 10 to 30 ms. */
export const TRIES_AT_ONCE = 50_000;
/** Handshakes that wait for their turn; of a device that wakes more at once the rest is made again by WireGuard after 5 s. */
export const WAITING_MAX = 256;
/** A socket on which nothing passed for longer than any session lasts is not needed to tell what data is for. */
export const SOCKET_REST: Millis = REJECT_AFTER_TIME + 20_000;
export const REST_CHECK_INTERVAL: Millis = 60_000;
/** What the device sends to an endpoint that it is told to leave still arrives for so long. */
export const MOVE_GRACE: Millis = 5000;

interface OwnSocket {
  readonly socket: PeerSocket;
  usedAt: Millis;
  /** The device is told to leave it. */
  leaving: Timer | undefined;
}

export interface LoopbackMac1Deps {
  readonly clock: Clock;
}

export interface LoopbackMac1Options {
  /** 0: not known yet, nothing is accepted. */
  readonly devicePort: number;
  /** Most peers with a socket of their own, default any number; others stay with the shared one, where only handshakes are told. */
  readonly socketsMax?: number;
}

/**
 * Local ends without system calls of our own: all peers that sleep share one socket of Node's, and the peer is found by mac1 of
 * the initiation that the device sends there. Data names nobody, so a peer that may have a session has a socket of its own:
 *
 *   shared --initiation found, `deliver`, `open` again--> own --nothing passed for 200 s--> shared
 *
 * Each of these moves the peer's endpoint in the device (`moved`; of `open` it is the result).
 */
export class LoopbackMac1 implements LocalEnds {
  readonly name = "loopback-mac1";
  readonly events = new Emitter<LocalEndsEvents>();
  readonly #clock: Clock;
  readonly #address = new SocketAddress();
  readonly #shared: PeerSocket;
  readonly #scan = new InitiationScan();
  readonly #peers = new Map<PublicKey, OwnSocket | undefined>();
  readonly #socketsMax: number;
  /** Open, of peers that have one. */
  #sockets = 0;
  readonly #closing = new Set<Promise<void>>();
  readonly #waiting: Uint8Array[] = [];
  #tries = TRIES_AT_ONCE;
  #triesAt: Millis;
  #waitTimer: Timer | undefined;
  #restTimer: Timer | undefined;
  #devicePort: number;
  #wrongSender = 0;
  #unnamed = 0;
  #unknown = 0;
  #overload = 0;
  #undelivered = 0;
  #isClosed = false;

  /** Throws NetError when there is no socket to be had. */
  constructor(deps: LoopbackMac1Deps, options: LoopbackMac1Options) {
    this.#clock = deps.clock;
    this.#triesAt = deps.clock.now();
    this.#devicePort = options.devicePort;
    this.#socketsMax = options.socketsMax ?? Number.POSITIVE_INFINITY;
    this.#shared = new PeerSocket(
      this.#address,
      (datagram, from) => this.#receiveShared(datagram, from),
      () => this.#undelivered++,
    );
  }

  open(key: PublicKey): Endpoint {
    if (this.#peers.has(key)) return (this.#own(key)?.socket ?? this.#shared).endpoint;
    this.#peers.set(key, undefined);
    this.#scan.add(key);
    return this.#shared.endpoint;
  }

  close(key: PublicKey): void {
    const own = this.#peers.get(key);
    this.#peers.delete(key);
    this.#scan.remove(key);
    if (own) this.#closeOwn(own);
  }

  deliver(key: PublicKey, datagram: Uint8Array): boolean {
    if (!this.#peers.has(key) || this.#devicePort === 0) return false;
    // Without a socket of its own the device answers to the shared one, where handshakes at least are recognised.
    (this.#moveToOwn(key)?.socket ?? this.#shared).send(datagram, this.#devicePort);
    return true;
  }

  setDevicePort(port: number): void {
    this.#devicePort = port;
  }

  counters(): ReadonlyMap<string, number> {
    return new Map([
      ["drop-wrong-sender", this.#wrongSender],
      ["drop-unnamed", this.#unnamed],
      ["drop-unknown-end", this.#unknown],
      ["drop-scan-overload", this.#overload],
      ["drop-deliver", this.#undelivered],
    ]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true;
    this.#waitTimer?.cancel();
    this.#restTimer?.cancel();
    this.#waiting.length = 0;
    for (const key of [...this.#peers.keys()]) this.close(key);
    await Promise.all([...this.#closing, this.#shared.close()]);
  }

  #receiveShared(datagram: Uint8Array, from: RemoteInfo): void {
    if (!isDevice(from, this.#devicePort)) {
      this.#wrongSender++;
      return;
    }
    if (!this.#scan.isNamed(datagram)) {
      this.#unnamed++;
      return;
    }
    const recent = this.#scan.findRecent(datagram);
    if (recent !== undefined) return this.#found(recent, datagram);
    if (this.#waiting.length === WAITING_MAX) {
      this.#overload++;
      return;
    }
    this.#waiting.push(datagram);
    this.#scanWaiting();
  }

  /** As many as the budget of tries allows; the rest when there is more of it. */
  #scanWaiting(): void {
    if (this.#waitTimer) return;
    const now = this.#clock.now();
    const cost = this.#scan.size;
    const most = Math.max(TRIES_AT_ONCE, cost);
    this.#tries = Math.min(most, this.#tries + ((now - this.#triesAt) * TRIES_PER_SECOND) / 1000);
    this.#triesAt = now;
    while (this.#waiting.length > 0 && this.#tries >= cost && !this.#isClosed) {
      const datagram = this.#waiting.shift()!;
      const { key, tries } = this.#scan.find(datagram);
      this.#tries -= tries;
      if (key === undefined) this.#unknown++;
      else this.#found(key, datagram);
    }
    if (this.#waiting.length === 0) return;
    const missing = ((cost - this.#tries) * 1000) / TRIES_PER_SECOND;
    this.#waitTimer = this.#clock.after(Math.max(1, missing), () => {
      this.#waitTimer = undefined;
      this.#scanWaiting();
    });
  }

  #found(key: PublicKey, datagram: Uint8Array): void {
    this.#moveToOwn(key);
    this.events.emit("datagram", { key, datagram });
  }

  #receiveOwn(key: PublicKey, datagram: Uint8Array, from: RemoteInfo): void {
    const own = this.#peers.get(key);
    if (!isDevice(from, this.#devicePort)) this.#wrongSender++;
    else if (own) {
      own.usedAt = this.#clock.now();
      this.events.emit("datagram", { key, datagram });
    }
  }

  /** Tells when the endpoint is another one than before. */
  #moveToOwn(key: PublicKey): OwnSocket | undefined {
    const before = this.#peers.get(key);
    const wasShared = before === undefined || before.leaving !== undefined;
    const own = this.#own(key);
    if (own && wasShared) this.events.emit("moved", { key, endpoint: own.socket.endpoint });
    return own;
  }

  /** The peer's own socket, opened if need be; undefined when there is none to be had. */
  #own(key: PublicKey): OwnSocket | undefined {
    const now = this.#clock.now();
    let own = this.#peers.get(key);
    if (own) {
      own.leaving?.cancel();
      own.leaving = undefined;
      own.usedAt = now;
      return own;
    }
    if (this.#sockets >= this.#socketsMax) return undefined;
    try {
      const socket = new PeerSocket(
        this.#address,
        (datagram, from) => this.#receiveOwn(key, datagram, from),
        () => this.#undelivered++,
      );
      own = { socket, usedAt: now, leaving: undefined };
    } catch {
      // No descriptors left: the shared socket has to do.
      return undefined;
    }
    this.#sockets++;
    this.#peers.set(key, own);
    this.#restTimer ??= this.#clock.after(REST_CHECK_INTERVAL, () => this.#checkRest());
    return own;
  }

  #checkRest(): void {
    this.#restTimer = undefined;
    const before = this.#clock.now() - SOCKET_REST;
    let owns = 0;
    for (const [key, own] of this.#peers) {
      if (!own) continue;
      owns++;
      if (own.leaving || own.usedAt > before) continue;
      own.leaving = this.#clock.after(MOVE_GRACE, () => {
        this.#peers.set(key, undefined);
        this.#closeOwn(own);
      });
      this.events.emit("moved", { key, endpoint: this.#shared.endpoint });
    }
    if (owns > 0 && !this.#isClosed) this.#restTimer = this.#clock.after(REST_CHECK_INTERVAL, () => this.#checkRest());
  }

  #closeOwn(own: OwnSocket): void {
    this.#sockets--;
    own.leaving?.cancel();
    const closed = own.socket.close().finally(() => this.#closing.delete(closed));
    this.#closing.add(closed);
  }
}
