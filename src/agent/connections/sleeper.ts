import { unreachable } from "#base/errors.ts";
import type { PublicKey } from "#base/keys.ts";
import type { Clock, Millis } from "#base/time.ts";
import type { Body } from "#gen/signal_pb.ts";
import { parseSleepBody } from "#signal/protocol/sleep-message.ts";
import type { WireGuardDevice } from "#wireguard/device.ts";
import type { PeerConnection } from "../peer/peer-connection.ts";
import type { PeerEvent } from "../peer/peer-state.ts";
import { IdleClock } from "./lazy/idle-clock.ts";
import {
  comeDue,
  describeDuration,
  propose,
  receive,
  SILENT,
  type SleepEffect,
  type SleepFacts,
  type SleepStep,
  type SleepTalk,
} from "./sleep-agreement.ts";

/**
 * A GO_IDLE without agreement that finds us this soon after a wake or after traffic of ours crossed with it: the remote is
 * wanted. It comes back at once, instead of when our packet or the loss of its paths is noticed.
 */
const IDLE_CROSSING: Millis = 2_000;
/** Packets that wait for a session are given up after this long; until then their peer does not sleep by itself. */
const WAITING_PATIENCE: Millis = 90_000;
/** How often such a peer is looked at. */
const WAITING_LOOK: Millis = 5_000;
/** After our GO_IDLE a peer that is back within this time keeps the connection alive itself (signal document, W6). */
const BOUNCE_WINDOW: Millis = 60_000;
const MAX_BACKOFF: Millis = 24 * 3_600_000;

export interface SleeperDeps {
  readonly clock: Clock;
  readonly device: Pick<WireGuardDevice, "peerStats">;
  readonly find: (key: PublicKey) => PeerConnection | undefined;
  readonly isLazy: (key: PublicKey) => boolean;
  /** Who sleeps only together with this peer. */
  readonly matesOf: (key: PublicKey) => readonly PeerConnection[];
  /** Puts an awake peer to sleep; `noteAsleep` comes back. */
  readonly sleep: (key: PublicKey, reason: string) => void;
  readonly post: (key: PublicKey, event: PeerEvent) => void;
}

/** What is remembered of a peer that was awake once. */
interface SleepRecord {
  talk: SleepTalk;
  /** When we last slept without agreement, and so told it GO_IDLE. */
  sentIdleAt: Millis | undefined;
  /** Added to the threshold since the other end wants the connection. */
  backoff: Millis;
}

/**
 * Decides when a peer sleeps: watches the idle clock, agrees with Perch agents (sleep-agreement.ts), tells and follows
 * stock ones by GO_IDLE. An idle peer has no timer; one that proposes has its place in the idle clock's queue.
 */
export class Sleeper {
  readonly #deps: SleeperDeps;
  readonly #threshold: Millis;
  readonly #idle: IdleClock<PublicKey>;
  readonly #records = new Map<PublicKey, SleepRecord>();
  /** Asleep without agreement, and signal took no GO_IDLE: they are told when it is back. */
  readonly #untold = new Set<PublicKey>();

  constructor(deps: SleeperDeps, threshold: Millis) {
    this.#deps = deps;
    this.#threshold = threshold;
    this.#idle = new IdleClock(deps.clock, (key, now) => this.#look(key, now));
  }

  /** An awake peer may sleep from now on. An open proposal has its own times. */
  watch(key: PublicKey): void {
    if (this.isProposing(key)) return;
    this.#idle.watch(key, this.#deps.clock.now() + this.#threshold + (this.#records.get(key)?.backoff ?? 0));
  }

  /** It stays connected from now on; an open proposal is taken back when its time comes. */
  unwatch(key: PublicKey): void {
    if (!this.isProposing(key)) this.#idle.unwatch(key);
  }

  noteAwake(key: PublicKey): void {
    this.#untold.delete(key);
  }

  /** However that came. */
  noteAsleep(key: PublicKey): void {
    this.#idle.unwatch(key);
    const record = this.#records.get(key);
    if (record) {
      record.talk = SILENT;
      record.sentIdleAt = undefined;
    }
  }

  /** The peer left the map. */
  forget(key: PublicKey): void {
    this.#idle.unwatch(key);
    this.#records.delete(key);
    this.#untold.delete(key);
  }

  /** A user wants this awake peer to sleep. */
  ask(connection: PeerConnection, reason: string): void {
    this.#begin(connection, reason, 0);
  }

  /** A GO_IDLE of the peer. */
  receive(connection: PeerConnection, body: Body): void {
    const { key } = connection;
    const message = parseSleepBody(body);
    if (message === undefined) return;
    if (message !== "asleep") {
      const { talk } = this.#recordOf(key);
      return this.#run(connection, receive(talk, message, createEpoch, this.#factsOf(connection)));
    }
    if (!connection.awake) return;
    if (!this.#deps.isLazy(key) || this.#isWanted(connection)) return this.#deps.post(key, { kind: "remote-idle" });
    if (!this.#canAgree(connection)) return this.#deps.sleep(key, "the other side went idle");
    // It slept alone, may have woken since and have its message held up somewhere: it agrees if it still sleeps.
    if (this.isProposing(key)) return;
    const facts = this.#factsOf(connection);
    this.#run(connection, propose("it went idle", facts.now - facts.lastActivity, createEpoch(), facts));
  }

  /** An OFFER of a sleeping peer. After our GO_IDLE without traffic: it wants the connection; try again ever later. */
  noteOffer(connection: PeerConnection): void {
    const record = this.#records.get(connection.key);
    if (!record) return;
    const { sentIdleAt } = record;
    if (sentIdleAt === undefined || this.#deps.clock.now() - sentIdleAt >= BOUNCE_WINDOW) record.backoff = 0;
    else this.#noteKept(connection, record, "the other side reconnects after every sleep");
  }

  /** Our GO_IDLE may still be on its way. */
  hasJustSentIdle(key: PublicKey): boolean {
    const at = this.#records.get(key)?.sentIdleAt;
    return at !== undefined && this.#deps.clock.now() - at < IDLE_CROSSING;
  }

  /** A proposal is open: the peer is about to answer whether it is there. */
  isProposing(key: PublicKey): boolean {
    return this.#records.get(key)?.talk.kind === "proposed";
  }

  signalReturned(): void {
    const untold = [...this.#untold];
    this.#untold.clear();
    for (const key of untold) {
      const connection = this.#deps.find(key);
      if (connection && !connection.awake) this.#announce(connection);
    }
  }

  close(): void {
    this.#idle.close();
    this.#records.clear();
    this.#untold.clear();
  }

  #recordOf(key: PublicKey): SleepRecord {
    const known = this.#records.get(key);
    if (known) return known;
    const record: SleepRecord = { talk: SILENT, sentIdleAt: undefined, backoff: 0 };
    this.#records.set(key, record);
    return record;
  }

  /** Looks whether an awake peer has been idle for long enough; the next instant worth looking otherwise. */
  #look(key: PublicKey, now: Millis): Millis | undefined {
    const connection = this.#deps.find(key);
    if (!connection?.awake) return undefined;
    const { talk, backoff } = this.#recordOf(key);
    const facts = this.#factsOf(connection);
    if (talk.kind === "proposed") {
      if (now < talk.repeatAt) return talk.repeatAt;
      this.#run(connection, comeDue(talk, facts));
      return undefined;
    }
    if (!facts.lazy) return undefined;
    const { waiting, lastActivity } = facts;
    const idleFor = Math.max(this.#threshold + backoff, waiting ? WAITING_PATIENCE : 0);
    // What waits may leave at any moment; then the threshold counts.
    if (lastActivity + idleFor > now)
      return waiting ? Math.min(lastActivity + idleFor, now + WAITING_LOOK) : lastActivity + idleFor;
    const idle = now - lastActivity;
    this.#begin(connection, `no traffic for ${describeDuration(idle)}`, idle);
    return undefined;
  }

  /** An agent that agrees on sleep, and is known to be there. */
  #canAgree({ agreesOnSleep, status }: PeerConnection): boolean {
    return agreesOnSleep && status === "connected";
  }

  /** Who cannot be asked is told. */
  #begin(connection: PeerConnection, reason: string, idle: Millis): void {
    if (!this.#canAgree(connection)) return this.#sleepAlone(connection, reason);
    this.#run(connection, propose(reason, idle, createEpoch(), this.#factsOf(connection)));
  }

  #sleepAlone(connection: PeerConnection, reason: string): void {
    this.#deps.sleep(connection.key, reason);
    this.#announce(connection);
  }

  #announce(connection: PeerConnection): void {
    const { key } = connection;
    this.#recordOf(key).sentIdleAt = this.#deps.clock.now();
    void connection.sayGoIdle().then((isPassedOn) => {
      if (!isPassedOn && !connection.awake && this.#deps.find(key) === connection) this.#untold.add(key);
    });
  }

  #run(connection: PeerConnection, { talk, effects }: SleepStep): void {
    this.#recordOf(connection.key).talk = talk;
    for (const effect of effects) this.#runEffect(connection, effect);
  }

  #runEffect(connection: PeerConnection, effect: SleepEffect): void {
    const { key } = connection;
    switch (effect.kind) {
      case "say":
        return void connection.saySleep(effect.message);
      case "sleep":
        this.#recordOf(key).backoff = 0;
        return this.#deps.sleep(key, effect.reason);
      case "sleep-alone":
        return this.#sleepAlone(connection, effect.reason);
      case "call-back":
        return this.#deps.post(key, { kind: "remote-idle" });
      case "prove":
        return this.#deps.post(key, { kind: "signal-back" });
      case "kept":
        this.#noteKept(connection, this.#recordOf(key), "the other side stays connected");
        return this.watch(key);
      case "look-at":
        return this.#idle.watch(key, effect.at);
      case "note":
        return connection.note(effect.event, effect.detail);
      default:
        return unreachable(effect);
    }
  }

  #noteKept(connection: PeerConnection, record: SleepRecord, detail: string): void {
    record.backoff = Math.min(MAX_BACKOFF, Math.max(this.#threshold, record.backoff * 2));
    connection.note("kept-alive", detail);
  }

  #factsOf(connection: PeerConnection): SleepFacts {
    const { key } = connection;
    const { lastDataRx = 0, lastDataTx = 0, stagedBytes = 0 } = this.#deps.device.peerStats(key) ?? {};
    const others = this.#deps.matesOf(key).map((mate) => this.#lastActivity(mate));
    return {
      now: this.#deps.clock.now(),
      awake: connection.awake,
      lazy: this.#deps.isLazy(key),
      threshold: this.#threshold,
      lastActivity: Math.max(this.#lastActivity(connection), ...others),
      lastSent: lastDataTx,
      lastReceived: lastDataRx,
      waiting: stagedBytes > 0,
      lastProven: connection.provenAt ?? 0,
      lastOffered: connection.offeredAt ?? 0,
    };
  }

  /** User traffic in either direction; the wake itself counts, so that a peer stays for one threshold at least (W8). */
  #lastActivity(connection: PeerConnection): Millis {
    if (!connection.awake) return 0;
    const stats = this.#deps.device.peerStats(connection.key);
    return Math.max(connection.wokeAt ?? 0, stats?.lastDataRx ?? 0, stats?.lastDataTx ?? 0);
  }

  #isWanted(connection: PeerConnection): boolean {
    const { lastDataTx = 0, stagedBytes = 0 } = this.#deps.device.peerStats(connection.key) ?? {};
    if (stagedBytes > 0) return true;
    return this.#deps.clock.now() - Math.max(connection.wokeAt ?? 0, lastDataTx) < IDLE_CROSSING;
  }
}

/** 32 bits: only an answer that was under way during the proposal before could be confused. */
function createEpoch(): number {
  return Math.floor(Math.random() * 2 ** 32);
}
