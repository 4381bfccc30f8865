import type { Endpoint, Prefix } from "#base/ip.ts";
import type { PresharedKey, PublicKey } from "#base/keys.ts";
import type { Millis, Timer } from "#base/time.ts";
import { REJECT_AFTER_TIME, REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER } from "../constants.ts";
import type { DevicePath, DevicePeerStats, PacketSource } from "../device.ts";

/** As many as WireGuard itself keeps for a peer without session. */
const HELD_DATAGRAMS_MAX = 128;
const HELD_BYTES_MAX = HELD_DATAGRAMS_MAX * 1500;

/** One configured peer of an external device. One that was never touched has nothing but this. */
export interface ExternalPeer {
  readonly key: PublicKey;
  mode: "asleep" | "awake";
  presharedKey: PresharedKey | undefined;
  allowedIps: readonly Prefix[];
  /** Seconds, 0 = off: what the caller wants while the peer is awake. */
  keepalive: number;
  /** Its local end as it was last opened; undefined when there was none to be had. */
  local: Endpoint | undefined;
  /** Made by the first wake, handshake or packet. */
  use: PeerUse | undefined;
}

/** An initiation that the device sent to the peer's local end. It is good until the device makes the next one. */
export interface CapturedInitiation {
  readonly message: Uint8Array;
  readonly at: Millis;
  /** User traffic made the device send it, not a wish of ours. */
  readonly byUser: boolean;
  /** Copies went out over these. */
  readonly sentOver: readonly DevicePath[];
  /** When the first of them did. */
  readonly sentAt: Millis | undefined;
}

/** A handshake of a peer that has a session cannot be had: something that it sends proves it, or it loses the session. */
export interface Question {
  readonly since: Millis;
  readonly timer: Timer;
  /** A reading from then on decides; undefined: an answer may come yet. */
  doubtedAt: Millis | undefined;
}

/** What a peer has once it was awake, called or heard. */
export interface PeerUse {
  /** Chosen by the caller; `none` while asleep. */
  path: DevicePath;
  /** Stands in while `path` is `none`: where the peer was last heard. */
  adopted: PacketSource | undefined;
  /** Where it was heard while asleep; adopted when it wakes. */
  heard: PacketSource | undefined;
  /** The direct way that it had when it fell asleep; worth one response. */
  knownDirect: { readonly endpoint: Endpoint; readonly until: Millis } | undefined;
  /** Paths of the last `initiate`, for initiations that the device makes while there is no other. */
  initiatePaths: readonly DevicePath[];
  /** A wake was reported in this sleep. */
  woken: boolean;
  /** When it fell asleep. */
  asleepSince: Millis;
  /** It fell asleep while a handshake was under way: the device forgets it, unless a reading shows that it came about. */
  abandoned: boolean;
  /** Data left the device for it since it fell asleep. */
  wantedData: boolean;

  // What the device was told, and in which batch at last.
  /** Where it is to send: the peer's local end, or a remote endpoint. */
  told: "local" | Endpoint;
  toldKeepalive: number;
  toldIn: number;
  /** The device was sent to the local end for one initiation only, and goes back to its direct path after that. */
  detour: boolean;
  /** Batch in which the device lost what it knew of the peer; counters of readings before it are of no use. */
  resetIn: number;

  initiation: CapturedInitiation | undefined;
  /** A keepalive was made to begin a handshake. */
  askedAt: Millis;
  question: Question | undefined;
  /** When it woke with a session, until something comes in it. */
  unheardSince: Millis | undefined;
  /** When the peer sent an initiation of its own. */
  calledAt: Millis;
  /** When the device took that while one of ours waited for its answer; undefined: it did not, or one came to something. */
  crossedAt: Millis | undefined;
  /** When it had a handshake in its sleep, which is told when it is awake. */
  provenAsleepAt: Millis;
  /** When data of it came over the relay, authentic or not. */
  relayedDataAt: Millis;
  /** Of the handshake that nobody answered so far. */
  tryingSince: Millis | undefined;
  /** Data that the device sent to the local end while there was no path, oldest first. */
  held: HeldDatagrams;

  // What readings said.
  seenAt: Millis;
  seen: RawCounters;
  /** Counters of lives of the peer in the device that are over. */
  past: RawCounters;
  /** As the device says it, 0 = never in this life. */
  seenHandshake: number;
  /** Wall clock, ms; survives a restart of the device. */
  lastHandshake: number;
  /** Clock of the last handshake; undefined: no session. */
  sessionSince: Millis | undefined;
  lastDataRx: Millis;
  lastDataTx: Millis;
  lastRx: Millis;
  /** Data went out in the reading that began then, and nothing came since. */
  unansweredSince: Millis | undefined;
  /** The place that the last hint named; the same again is news only with packets. */
  hinted: PacketSource | undefined;
  /** Pause before the device is sent back to its direct path, while the remote goes on using the relay. */
  returnPause: Millis;
  returnTimer: Timer | undefined;
}

export interface RawCounters {
  readonly rx: number;
  readonly tx: number;
}

const NO_COUNTERS: RawCounters = { rx: 0, tx: 0 };
export const NO_PATH: DevicePath = { kind: "none" };
export const NO_PATHS: readonly DevicePath[] = [];
export const FIRST_RETURN_PAUSE: Millis = 20;

/** The peer's own, made when it has none. */
export function useOf(peer: ExternalPeer): PeerUse {
  peer.use ??= {
    path: NO_PATH,
    adopted: undefined,
    heard: undefined,
    knownDirect: undefined,
    initiatePaths: NO_PATHS,
    woken: false,
    asleepSince: Number.NEGATIVE_INFINITY,
    abandoned: false,
    wantedData: false,
    told: "local",
    toldKeepalive: 0,
    toldIn: 0,
    detour: false,
    resetIn: 0,
    initiation: undefined,
    askedAt: Number.NEGATIVE_INFINITY,
    question: undefined,
    unheardSince: undefined,
    calledAt: Number.NEGATIVE_INFINITY,
    crossedAt: undefined,
    provenAsleepAt: Number.NEGATIVE_INFINITY,
    relayedDataAt: Number.NEGATIVE_INFINITY,
    tryingSince: undefined,
    held: new HeldDatagrams(),
    seenAt: 0,
    seen: NO_COUNTERS,
    past: NO_COUNTERS,
    seenHandshake: 0,
    lastHandshake: 0,
    sessionSince: undefined,
    lastDataRx: 0,
    lastDataTx: 0,
    lastRx: 0,
    unansweredSince: undefined,
    hinted: undefined,
    returnPause: FIRST_RETURN_PAUSE,
    returnTimer: undefined,
  };
  return peer.use;
}

const NO_STATS: DevicePeerStats = Object.freeze({
  rxBytes: 0,
  txBytes: 0,
  lastHandshake: 0,
  lastDataRx: 0,
  lastDataTx: 0,
  lastRx: 0,
  stagedBytes: 0,
});

export function statsOf({ use }: ExternalPeer, now: Millis): DevicePeerStats {
  if (!use) return NO_STATS;
  // What the device keeps back itself is not told; an initiation that user traffic began says that there is something.
  const waiting = use.initiation?.byUser && !hasSession(use, now) ? use.initiation.message.length : 0;
  return {
    rxBytes: use.past.rx + use.seen.rx,
    txBytes: use.past.tx + use.seen.tx,
    lastHandshake: use.lastHandshake,
    lastDataRx: use.lastDataRx,
    lastDataTx: use.lastDataTx,
    lastRx: use.lastRx,
    stagedBytes: use.held.bytes + waiting,
  };
}

/** The device has a session that it uses for sending and receiving. */
export function hasSession(use: PeerUse, now: Millis): boolean {
  return use.sessionSince !== undefined && now - use.sessionSince < REJECT_AFTER_TIME;
}

/** The initiation that the device would take an answer to, while it cannot have made another. */
export function freshInitiation(use: PeerUse, now: Millis): CapturedInitiation | undefined {
  const { initiation } = use;
  return initiation && now - initiation.at < REKEY_TIMEOUT ? initiation : undefined;
}

/** An initiation at `now` is the device's own repetition of the one before. */
export function isRepetition(use: PeerUse, now: Millis): boolean {
  return use.initiation !== undefined && now - use.initiation.at < REKEY_TIMEOUT + 2 * REKEY_TIMEOUT_JITTER;
}

/** Datagrams of one peer that wait for a path; bounded, the oldest goes first. */
class HeldDatagrams {
  #datagrams: Uint8Array[] = [];
  #bytes = 0;

  get bytes(): number {
    return this.#bytes;
  }

  /** The bytes that went to make room. */
  push(datagram: Uint8Array): number {
    this.#datagrams.push(datagram);
    this.#bytes += datagram.length;
    let dropped = 0;
    while (this.#datagrams.length > HELD_DATAGRAMS_MAX || this.#bytes > HELD_BYTES_MAX) {
      const { length } = this.#datagrams.shift()!;
      this.#bytes -= length;
      dropped += length;
    }
    return dropped;
  }

  take(): Uint8Array[] {
    const datagrams = this.#datagrams;
    this.#datagrams = [];
    this.#bytes = 0;
    return datagrams;
  }
}
