import type { Emitter } from "#base/emitter.ts";
import type { PublicKey } from "#base/keys.ts";
import type { Clock, Millis } from "#base/time.ts";
import { KEEPALIVE_TIMEOUT, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER } from "../constants.ts";
import type { DeviceEvents, DevicePath, PacketSource, WakeCause } from "../device.ts";
import { samePath } from "../device-path.ts";
import { MessageType, MIN_TRANSPORT_BYTES } from "../messages.ts";
import type { DeviceTeller } from "./device-teller.ts";
import {
  type ExternalPeer,
  hasSession,
  isRepetition,
  NO_PATH,
  NO_PATHS,
  type PeerUse,
  useOf,
} from "./external-peer.ts";
import type { LocalEnds, SharedPort } from "./parts.ts";
import { endQuestion, isAwaited, PeerHandshakes } from "./peer-handshakes.ts";
import { PeerPaths } from "./peer-paths.ts";
import type { ReadingFacts, ReadingTime } from "./peer-reading.ts";
import type { ReadingLoop } from "./reading-loop.ts";

export interface PeerDriverDeps {
  /** Of the device. */
  readonly ownKey: PublicKey;
  readonly clock: Clock;
  readonly events: Emitter<DeviceEvents>;
  readonly teller: DeviceTeller;
  readonly localEnds: LocalEnds;
  readonly sharedPort: SharedPort;
  readonly readings: Pick<ReadingLoop, "look" | "want">;
  /** Readings are to cover this peer. */
  readonly watch: (peer: ExternalPeer) => void;
  /** And need not any more. */
  readonly unwatch: (peer: ExternalPeer) => void;
  readonly count: (name: string, by?: number) => void;
}

/** Data that nothing authenticated answers for this long: `silent`. */
const SILENCE: Millis = 400;
/** The device ends sessions a little earlier than the reading that showed their handshake lets us think. */
const SESSION_MARGIN: Millis = 5_000;
/** A device begins a handshake so long after data that nothing answered. */
const NEW_HANDSHAKE_TIME: Millis = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + 2 * REKEY_TIMEOUT_JITTER;
/** A peer that fell asleep is looked at for so long at least: what crossed with its sleep makes the device roam. */
const SETTLING: Millis = 5_000;
/** What the device sends to a sleeper so soon after data of it answers that: it is the peer that wants to talk. */
const ANSWER: Millis = 100;
/** A handshake that woke a peer proves it when it is awake so soon after. */
const PROOF_KEPT: Millis = 5_000;
/** A direct peer whose initiation was to be caught is direct again after this. */
const LONGEST_DETOUR: Millis = 2_000;

/**
 * What happens to each peer of an external device. What the device sends to a sleeping or relayed peer comes to us by the
 * peer's local end; what it sends to a direct one we never see, and learn from its counters.
 *
 *   asleep       device sends to the local end: kept, `wake`
 *   path none    the same: kept
 *   path relay   the same: `relay-out`
 *   path udp     the device sends by itself
 *
 * Where packets go is PeerPaths', handshakes that somebody wants are PeerHandshakes'.
 */
export class PeerDriver {
  readonly #deps: PeerDriverDeps;
  readonly #paths: PeerPaths;
  readonly #handshakes: PeerHandshakes;

  constructor(deps: PeerDriverDeps) {
    this.#deps = deps;
    this.#paths = new PeerPaths(deps);
    this.#handshakes = new PeerHandshakes({ ...deps, paths: this.#paths });
  }

  // Modes

  enterMode(peer: ExternalPeer, mode: ExternalPeer["mode"]): void {
    const use = useOf(peer);
    const { heard, path } = use;
    peer.mode = mode;
    endUse(use);
    use.woken = false;
    use.path = NO_PATH;
    use.adopted = undefined;
    use.heard = undefined;
    use.hinted = undefined;
    use.initiatePaths = NO_PATHS;
    use.crossedAt = undefined;
    use.unansweredSince = undefined;
    use.detour = false;
    this.#deps.watch(peer);
    use.unheardSince = undefined;
    use.abandoned = false;
    if (mode === "asleep") return this.#fallAsleep(peer, use, path);
    const now = this.#deps.clock.now();
    if (heard) this.#paths.adopt(peer, use, heard);
    // The other end makes no handshake while it has the session: what it sends in it is the proof.
    if (hasSession(use, now)) use.unheardSince = now;
    if (use.unheardSince !== undefined || now - use.provenAsleepAt < PROOF_KEPT) this.#deps.readings.look();
  }

  #fallAsleep(peer: ExternalPeer, use: PeerUse, path: DevicePath): void {
    const now = this.#deps.clock.now();
    use.asleepSince = now;
    use.provenAsleepAt = Number.NEGATIVE_INFINITY;
    this.#paths.remember(use, path);
    this.#deps.teller.keepalive(peer, 0);
    const isTrying = use.initiation !== undefined || use.tryingSince !== undefined;
    this.#dropHeld(use);
    use.abandoned = isTrying && !hasSession(use, now);
    if (path.kind === "udp" || use.told !== "local") this.#deps.teller.endpoint(peer, "local");
    this.#deps.readings.look();
  }

  postponeWake(peer: ExternalPeer, staged: "keep" | "drop"): void {
    const use = useOf(peer);
    use.woken = false;
    if (staged === "drop") this.#dropWaiting(peer, use);
  }

  /** What waits in the device goes with what it knows of the peer, and with it the repetitions that would ask again. */
  #dropWaiting(peer: ExternalPeer, use: PeerUse): void {
    this.#dropHeld(use);
    if (use.initiation && !hasSession(use, this.#deps.clock.now())) this.#deps.teller.reset(peer, undefined);
  }

  #dropHeld(use: PeerUse): void {
    for (const { length } of use.held.take()) this.#deps.count("drop-staged-bytes", length);
    use.wantedData = false;
    use.tryingSince = undefined;
  }

  // Paths and handshakes on demand, of an awake peer

  setPath(peer: ExternalPeer, path: DevicePath): void {
    const use = useOf(peer);
    const wasNone = use.path.kind === "none" && !use.adopted;
    this.#paths.choose(peer, use, path);
    if (path.kind !== "none") this.#handshakes.repeatOver(peer, use, path, wasNone);
  }

  initiate(peer: ExternalPeer, paths: readonly DevicePath[]): void {
    this.#handshakes.initiate(peer, paths);
  }

  // What the device sends to a peer's local end

  takeOutgoing(peer: ExternalPeer, type: MessageType, datagram: Uint8Array): void {
    const use = useOf(peer);
    switch (type) {
      case MessageType.initiation:
        return this.#takeInitiation(peer, use, datagram);
      case MessageType.response:
        // It answers what came by the relay: everything else comes to the device directly, and so does its answer.
        return this.#paths.respond(peer, use, datagram);
      case MessageType.cookieReply:
        return this.#paths.send(peer, { kind: "relay" }, datagram);
      case MessageType.transport:
        return this.#takeData(peer, use, datagram);
    }
  }

  #takeInitiation(peer: ExternalPeer, use: PeerUse, message: Uint8Array): void {
    const isOfTimer = peer.mode === "asleep" && isOfDeviceTimer(use, this.#deps.clock.now());
    this.#handshakes.capture(peer, use, message, isOfTimer);
    // With a session, packets come as data first: this is the device wondering why nothing answered before the sleep.
    if (isOfTimer) this.#deps.count("initiations-of-timers");
    else this.#wake(peer, use, { kind: "activity" });
  }

  #takeData(peer: ExternalPeer, use: PeerUse, datagram: Uint8Array): void {
    const isKeepalive = datagram.length === MIN_TRANSPORT_BYTES;
    if (!isKeepalive) use.lastDataTx = this.#deps.clock.now();
    if (peer.mode === "awake") {
      const path = use.path.kind === "none" ? (use.adopted ?? NO_PATH) : use.path;
      if (path.kind !== "none" || !isKeepalive) this.#paths.send(peer, path, datagram);
      return;
    }
    if (isKeepalive) return;
    use.wantedData = true;
    this.#paths.send(peer, NO_PATH, datagram);
    const isAnswer = this.#deps.clock.now() - use.relayedDataAt < ANSWER;
    this.#wake(peer, use, isAnswer ? { kind: "data", source: { kind: "relay" } } : { kind: "activity" });
  }

  #wake(peer: ExternalPeer, use: PeerUse, cause: WakeCause): void {
    if (peer.mode !== "asleep" || use.woken) return;
    use.woken = true;
    this.#deps.watch(peer);
    this.#deps.events.emit("wake", { key: peer.key, cause });
  }

  // Datagrams that come for the device

  /** `type`: of a message that is not the initiation of somebody else. */
  injectRelayed(peer: ExternalPeer, type: MessageType, datagram: Uint8Array): void {
    const { clock, localEnds, readings, watch, count } = this.#deps;
    const use = useOf(peer);
    const now = clock.now();
    const isAsleep = peer.mode === "asleep";
    const isData = type === MessageType.transport;
    if (isData && isAsleep && !use.woken && !hasSession(use, now)) return count("drop-relayed-session");
    if (!localEnds.deliver(peer.key, datagram)) return count("drop-relayed-full");
    if (isData) use.relayedDataAt = now;
    if (isAsleep) watch(peer);
    // Whether it was authentic a reading tells, where that matters.
    if (!isData || isAsleep || isAwaited(use, now)) readings.look();
    if (use.path.kind === "udp") this.#paths.returnSoon(peer, use);
  }

  /** The peer itself sent an initiation, which the device has or gets as well. */
  noteInitiation(peer: ExternalPeer, source: PacketSource): void {
    const use = useOf(peer);
    use.calledAt = this.#deps.clock.now();
    this.#paths.adopt(peer, use, source);
    this.#wake(peer, use, { kind: "handshake", source });
    this.#paths.hint(peer, use, source);
    if (source.kind === "udp") this.#handshakes.stepBack(use);
    this.#deps.readings.look();
  }

  /** Whether the peer's initiation, which came by the relay, is to be kept from the device. */
  insists(peer: ExternalPeer): boolean {
    return this.#handshakes.insists(peer, this.#isSenior(peer));
  }

  /** Both ends agree about the order of their keys. */
  #isSenior({ key }: ExternalPeer): boolean {
    return this.#deps.ownKey > key;
  }

  // What readings say

  judge(peer: ExternalPeer, use: PeerUse, facts: ReadingFacts, time: ReadingTime): void {
    if (peer.mode === "asleep") this.#judgeAsleep(peer, use, facts, time);
    else this.#judgeAwake(peer, use, facts, time);
  }

  #judgeAsleep(peer: ExternalPeer, use: PeerUse, facts: ReadingFacts, { start, now }: ReadingTime): void {
    const { activity, handshake, source = { kind: "relay" }, strayed, since } = facts;
    if (use.abandoned && start >= use.asleepSince) {
      use.abandoned = false;
      // Unanswered it would go on for 90 s and be taken for a wish to talk.
      if (!hasSession(use, now)) return this.#deps.teller.reset(peer, undefined);
    }
    if (handshake) {
      use.calledAt = Number.NEGATIVE_INFINITY;
      use.provenAsleepAt = now;
    }
    // What the reading before did not know may have come before the sleep.
    const isSince = since >= use.asleepSince || use.relayedDataAt >= use.asleepSince;
    if (isSince && (handshake || activity.rxData)) {
      this.#paths.adopt(peer, use, source);
      this.#wake(peer, use, { kind: handshake ? "handshake" : "data", source });
    }
    if (peer.mode !== "asleep" || use.woken) return;
    if (strayed) this.#deps.teller.endpoint(peer, "local");
    const isSettled = now - use.asleepSince >= SETTLING && !isAwaited(use, now) && !hasSession(use, now);
    if (isSettled) this.#deps.unwatch(peer);
  }

  #judgeAwake(peer: ExternalPeer, use: PeerUse, facts: ReadingFacts, time: ReadingTime): void {
    const { activity, handshake, source, since } = facts;
    const isAnswer = use.question !== undefined && activity.rx && time.start > use.question.since;
    const isHeard = use.unheardSince !== undefined && activity.rx && since >= use.unheardSince;
    if (source && activity.rx) this.#paths.adopt(peer, use, source);
    const wasProven = time.now - use.provenAsleepAt < PROOF_KEPT;
    if (handshake) this.#deps.count("handshake-completed");
    if (handshake || isAnswer || isHeard || wasProven) this.#establish(peer, use, source ?? { kind: "relay" });
    else this.#handshakes.noteNothing(peer, use, this.#isSenior(peer), time.start);
    const { now } = time;
    if (peer.mode === "awake") this.#judgePath(peer, use, facts, now);
    if (peer.mode === "awake") this.#judgeSilence(peer, use, facts, now);
    if (use.tryingSince !== undefined && now - use.tryingSince >= REKEY_ATTEMPT_TIME) {
      use.tryingSince = undefined;
      use.initiation = undefined;
      const droppedBytes = use.held.take().reduce((sum, { length }) => sum + length, 0);
      this.#deps.count("handshake-given-up");
      this.#deps.events.emit("handshake-failed", { key: peer.key, droppedBytes });
    }
  }

  #judgeSilence(peer: ExternalPeer, use: PeerUse, { strayed }: ReadingFacts, now: Millis): void {
    const { path, adopted, unansweredSince } = use;
    if (unansweredSince === undefined || (path.kind === "none" && !adopted)) return;
    if (now - unansweredSince < SILENCE) return this.#deps.readings.want(unansweredSince + SILENCE);
    use.unansweredSince = undefined;
    // Where it roamed to is worth no more than the path.
    if (strayed && path.kind === "udp") this.#paths.returnTo(peer, use, path.endpoint);
    this.#deps.events.emit("silent", { key: peer.key });
  }

  #establish(peer: ExternalPeer, use: PeerUse, source: PacketSource): void {
    const role = use.initiation || use.tryingSince !== undefined ? "initiator" : "responder";
    endQuestion(use);
    use.provenAsleepAt = Number.NEGATIVE_INFINITY;
    use.unheardSince = undefined;
    use.initiation = undefined;
    use.tryingSince = undefined;
    use.crossedAt = undefined;
    use.calledAt = Number.NEGATIVE_INFINITY;
    use.initiatePaths = NO_PATHS;
    this.#deps.teller.keepalive(peer, peer.keepalive);
    this.#deps.events.emit("established", { key: peer.key, role, source });
  }

  /** The device follows the peer wherever it sends from. Whether that is to stay the caller says. */
  #judgePath(peer: ExternalPeer, use: PeerUse, facts: ReadingFacts, now: Millis): void {
    const { activity, source, strayed, since } = facts;
    const { path } = use;
    // No initiation came of it: the device made one lately, which went directly.
    if (use.detour && path.kind === "udp" && now - use.askedAt >= LONGEST_DETOUR)
      return this.#paths.returnTo(peer, use, path.endpoint);
    if (path.kind === "udp" && activity.rx && use.relayedDataAt >= since)
      this.#paths.hint(peer, use, { kind: "relay" });
    if (!source || !strayed || use.detour || path.kind === "none") return;
    if (source.kind === "udp" && (activity.rx || !use.hinted || !samePath(use.hinted, source)))
      this.#paths.hint(peer, use, source);
    if (use.path !== path || peer.mode !== "awake") return;
    // From a direct path to another it is right more often than we are: an address of the peer changed.
    if (path.kind === "relay") this.#deps.teller.endpoint(peer, "local");
    else if (source.kind === "relay" && !use.returnTimer) this.#paths.returnTo(peer, use, path.endpoint);
  }
}

/**
 * An initiation for a sleeping peer that no packet caused. With a session packets come as data first; without any, it is the
 * device that wonders why nothing answered what it sent before the sleep, or its repetition.
 */
function isOfDeviceTimer(use: PeerUse, now: Millis): boolean {
  if (use.abandoned) return true;
  if (use.wantedData || !hasSession(use, now + SESSION_MARGIN)) return false;
  return now - use.asleepSince < NEW_HANDSHAKE_TIME || (isRepetition(use, now) && !use.initiation!.byUser);
}

/** Ends what would happen by itself. */
export function endUse(use: PeerUse): void {
  endQuestion(use);
  use.returnTimer?.cancel();
  use.returnTimer = undefined;
}
