import type { Emitter } from "#base/emitter.ts";
import type { Endpoint } from "#base/ip.ts";
import type { Clock, Millis } from "#base/time.ts";
import { KEEPALIVE_TIMEOUT, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER } from "../constants.ts";
import type { DeviceEvents, DevicePath, PacketSource, WakeCause } from "../device.ts";
import { TRANSIENT_ERRORS } from "../device-error.ts";
import { samePath } from "../device-path.ts";
import { MessageType, MIN_TRANSPORT_BYTES } from "../messages.ts";
import type { DeviceTeller, Prompt } from "./device-teller.ts";
import {
  type ExternalPeer,
  FIRST_RETURN_PAUSE,
  freshInitiation,
  hasSession,
  isRepetition,
  NO_PATH,
  NO_PATHS,
  type PeerUse,
  useOf,
} from "./external-peer.ts";
import type { LocalEnds, SharedPort } from "./parts.ts";
import { forgetLife, type ReadingFacts, type ReadingTime } from "./peer-reading.ts";
import type { ReadingLoop } from "./reading-loop.ts";

export interface PeerDriverDeps {
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
/** A peer with a session that is asked for a handshake has to be heard within this time, or begins anew. */
const QUESTION_PATIENCE: Millis = 500;
/** Or when it is asked again after this, by a caller that knows how long an answer takes: an embedded device has ended the session. */
const QUESTION_AGAIN: Millis = 100;
/** An initiation younger than this is worth sending again as it is over a path that came up meanwhile. */
const WORTH_REPEATING: Millis = 1_000;
/** The device ends sessions a little earlier than the reading that showed their handshake lets us think. */
const SESSION_MARGIN: Millis = 5_000;
/** A device begins a handshake so long after data that nothing answered. */
const NEW_HANDSHAKE_TIME: Millis = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + 2 * REKEY_TIMEOUT_JITTER;
/** A peer that fell asleep is looked at for so long at least: what crossed with its sleep makes the device roam. */
const SETTLING: Millis = 5_000;
/** A handshake that woke a peer proves it when it is awake so soon after. */
const PROOF_KEPT: Millis = 5_000;
/** An initiation of ours goes on before one of the peer for so long, or steps back: there and back through a slow relay. */
const CROSSING: Millis = 1_000;
/** A direct peer whose initiation was to be caught is direct again after this. */
const LONGEST_DETOUR: Millis = 2_000;
const LONGEST_RETURN_PAUSE: Millis = 1_000;

/**
 * What happens to each peer of an external device. What the device sends to a sleeping or relayed peer comes to us by the
 * peer's local end; what it sends to a direct one we never see, and learn from its counters.
 *
 *   asleep       device sends to the local end: kept, `wake`
 *   path none    the same: kept
 *   path relay   the same: `relay-out`
 *   path udp     the device sends by itself
 *
 * A handshake on demand is a copy of the initiation that the device made last, which stays good for 5 s, or a keepalive that
 * makes the device begin one. A device with a session makes none: whatever it hears from the peer then is the proof, and if
 * it hears nothing, it is made to forget the peer and begins anew.
 */
export class PeerDriver {
  readonly #deps: PeerDriverDeps;

  constructor(deps: PeerDriverDeps) {
    this.#deps = deps;
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
    use.unansweredSince = undefined;
    use.detour = false;
    this.#deps.watch(peer);
    if (mode === "asleep") return this.#fallAsleep(peer, use, path);
    if (heard) this.#adopt(peer, use, heard);
    if (this.#deps.clock.now() - use.provenAsleepAt < PROOF_KEPT) this.#deps.readings.look();
  }

  #fallAsleep(peer: ExternalPeer, use: PeerUse, path: DevicePath): void {
    const now = this.#deps.clock.now();
    use.asleepSince = now;
    use.provenAsleepAt = Number.NEGATIVE_INFINITY;
    this.#deps.teller.keepalive(peer, 0);
    // A handshake that goes unanswered would go on for 90 s and be taken for a wish to talk.
    const isTrying = use.initiation !== undefined || use.tryingSince !== undefined;
    this.#dropHeld(use);
    if (isTrying && !hasSession(use, now)) this.#deps.teller.reset(peer, undefined);
    else if (path.kind === "udp" || use.told !== "local") this.#deps.teller.endpoint(peer, "local");
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

  // Paths

  /** Of an awake peer. */
  setPath(peer: ExternalPeer, path: DevicePath): void {
    const use = useOf(peer);
    const before = use.path;
    use.path = path;
    const { adopted } = use;
    if (path.kind !== "none") use.adopted = undefined;
    if (!samePath(before, path)) {
      use.hinted = undefined;
      use.detour = false;
      use.returnTimer?.cancel();
      use.returnTimer = undefined;
      use.returnPause = FIRST_RETURN_PAUSE;
      if (path.kind === "udp") this.#deps.teller.endpoint(peer, path.endpoint);
      else if (use.told !== "local") this.#deps.teller.endpoint(peer, "local");
    }
    if (path.kind === "none") return;
    for (const datagram of use.held.take()) this.#send(peer, path, datagram);
    const initiation = freshInitiation(use, this.#deps.clock.now());
    if (!initiation || initiation.sentOver.some((sent) => samePath(sent, path))) return;
    const isFirst = before.kind === "none" && !adopted && initiation.byUser;
    const { sentAt } = initiation;
    const isUnderWay = sentAt !== undefined && this.#deps.clock.now() - sentAt < WORTH_REPEATING;
    if (isFirst || isUnderWay) this.#sendCopies(peer, use, [path]);
  }

  /** Sends what the device gave us for the peer, and is not meant to be seen. */
  #send(peer: ExternalPeer, path: DevicePath, datagram: Uint8Array): void {
    switch (path.kind) {
      case "relay":
        this.#deps.events.emit("relay-out", { key: peer.key, datagram });
        return;
      case "udp": {
        const { endpoint } = path;
        const code = this.#deps.sharedPort.send(datagram, endpoint);
        if (code !== undefined && !TRANSIENT_ERRORS.has(code))
          this.#deps.events.emit("path-error", { key: peer.key, endpoint, code });
        return;
      }
      case "none":
        this.#deps.count("drop-staged-bytes", useOf(peer).held.push(datagram));
    }
  }

  /** Where a handshake or data just worked is good enough for data until the caller chooses. */
  #adopt(peer: ExternalPeer, use: PeerUse, source: PacketSource): void {
    if (peer.mode === "asleep") {
      use.heard = source;
      return;
    }
    if (use.path.kind !== "none" || (use.adopted && samePath(use.adopted, source))) return;
    use.adopted = source;
    for (const datagram of use.held.take()) this.#send(peer, source, datagram);
    this.#hint(peer, use, source);
  }

  #hint(peer: ExternalPeer, use: PeerUse, source: PacketSource): void {
    if (peer.mode !== "awake" || samePath(use.path, source)) return;
    use.hinted = source;
    this.#deps.events.emit("path-hint", { key: peer.key, source });
  }

  // Handshakes on demand

  /** Of an awake peer. */
  initiate(peer: ExternalPeer, paths: readonly DevicePath[]): void {
    const use = useOf(peer);
    const now = this.#deps.clock.now();
    use.initiatePaths = worthwhilePaths(use, paths);
    use.tryingSince ??= now;
    if (freshInitiation(use, now)) this.#sendCopies(peer, use, use.initiatePaths);
    else if (!use.question) this.#askForInitiation(peer, use, now);
    else if (now - use.question.since >= QUESTION_AGAIN) this.#beginAnew(peer, use, now);
  }

  #askForInitiation(peer: ExternalPeer, use: PeerUse, now: Millis): void {
    const prompt = promptOf(use);
    use.askedAt = now;
    use.detour = use.path.kind === "udp" && !prompt.direct;
    this.#deps.teller.prompt(peer, prompt);
    this.#deps.readings.look();
    if (!hasSession(use, now)) return;
    const { clock } = this.#deps;
    const timer = clock.after(QUESTION_PATIENCE, () => this.#beginAnew(peer, use, clock.now()));
    use.question = { since: now, timer };
  }

  /** The device forgets the session that nobody answered in, and makes an initiation. */
  #beginAnew(peer: ExternalPeer, use: PeerUse, now: Millis): void {
    const prompt = promptOf(use);
    endQuestion(use);
    use.askedAt = now;
    use.detour = use.path.kind === "udp" && !prompt.direct;
    this.#deps.count("sessions-begun-anew");
    this.#deps.teller.reset(peer, prompt);
    this.#deps.readings.look();
  }

  #sendCopies(peer: ExternalPeer, use: PeerUse, paths: readonly DevicePath[]): void {
    const { initiation } = use;
    const now = this.#deps.clock.now();
    if (!initiation || paths.length === 0) return;
    use.tryingSince ??= now;
    const sentOver = [...initiation.sentOver, ...paths.filter((path) => !initiation.sentOver.includes(path))];
    use.initiation = { ...initiation, sentOver, sentAt: initiation.sentAt ?? now };
    for (const path of paths) this.#send(peer, path, initiation.message);
    this.#deps.count("initiation-copies-sent", paths.length);
  }

  // What the device sends to a peer's local end

  takeOutgoing(peer: ExternalPeer, type: MessageType, datagram: Uint8Array): void {
    const use = useOf(peer);
    switch (type) {
      case MessageType.initiation:
        return this.#takeInitiation(peer, use, datagram);
      case MessageType.response:
      case MessageType.cookieReply:
        // They answer what came by the relay: everything else comes to the device directly, and so does its answer.
        return this.#send(peer, { kind: "relay" }, datagram);
      case MessageType.transport:
        return this.#takeData(peer, use, datagram);
    }
  }

  #takeInitiation(peer: ExternalPeer, use: PeerUse, message: Uint8Array): void {
    const now = this.#deps.clock.now();
    const isAsked = now - use.askedAt < WORTH_REPEATING;
    const byUser = isRepetition(use, now) ? use.initiation!.byUser : !isAsked;
    const isOfTimer = peer.mode === "asleep" && isOfDeviceTimer(use, now);
    use.initiation = { message, at: now, byUser: byUser && !isOfTimer, sentOver: NO_PATHS, sentAt: undefined };
    // With a session, packets come as data first: this is the device wondering why nothing answered before the sleep.
    if (isOfTimer) return this.#deps.count("initiations-of-timers");
    if (peer.mode === "asleep") return this.#wake(peer, use, { kind: "activity" });
    use.tryingSince ??= now;
    const { path, adopted, initiatePaths } = use;
    const chosen = path.kind !== "none" ? [path] : adopted ? [adopted] : [];
    this.#sendCopies(peer, use, isAsked || chosen.length === 0 ? initiatePaths : chosen);
    if (use.detour && path.kind === "udp") this.#returnToPath(peer, use, path.endpoint);
  }

  #takeData(peer: ExternalPeer, use: PeerUse, datagram: Uint8Array): void {
    const isKeepalive = datagram.length === MIN_TRANSPORT_BYTES;
    if (!isKeepalive) use.lastDataTx = this.#deps.clock.now();
    if (peer.mode === "awake") {
      const path = use.path.kind === "none" ? (use.adopted ?? NO_PATH) : use.path;
      if (path.kind !== "none" || !isKeepalive) this.#send(peer, path, datagram);
      return;
    }
    if (isKeepalive) return;
    use.wantedData = true;
    this.#send(peer, NO_PATH, datagram);
    this.#wake(peer, use, { kind: "activity" });
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
    if (use.path.kind === "udp") this.#returnSoon(peer, use);
  }

  /** The peer itself sent an initiation, which the device has or gets as well. */
  noteInitiation(peer: ExternalPeer, source: PacketSource): void {
    const use = useOf(peer);
    use.calledAt = this.#deps.clock.now();
    this.#adopt(peer, use, source);
    this.#wake(peer, use, { kind: "handshake", source });
    this.#hint(peer, use, source);
    // The device took it, and forgot its own.
    if (source.kind === "udp") use.initiation = undefined;
    this.#deps.readings.look();
  }

  /**
   * Whether the peer's initiation, which came by the relay, is to be kept from the device, because ours is on its way. A device that
   * takes an initiation forgets its own; where two do that with each other's, neither answer is worth anything, and both wait
   * for 5 s. So the senior end goes on and the other one steps back.
   */
  insists(peer: ExternalPeer, isSenior: boolean): boolean {
    const use = useOf(peer);
    const now = this.#deps.clock.now();
    const sentAt = use.initiation?.sentAt;
    if (isSenior && sentAt !== undefined && now - sentAt < CROSSING) return true;
    use.initiation = undefined;
    return false;
  }

  /** Data that the relay brings makes the device send its answers to the local end: soon it goes back to its path. */
  #returnSoon(peer: ExternalPeer, use: PeerUse): void {
    if (use.returnTimer || use.detour) return;
    use.returnTimer = this.#deps.clock.after(use.returnPause, () => {
      use.returnTimer = undefined;
      use.returnPause = Math.min(LONGEST_RETURN_PAUSE, use.returnPause * 2);
      if (use.path.kind === "udp") this.#returnToPath(peer, use, use.path.endpoint);
    });
  }

  #returnToPath(peer: ExternalPeer, use: PeerUse, endpoint: Endpoint): void {
    use.detour = false;
    this.#deps.teller.endpoint(peer, endpoint);
  }

  // What readings say

  judge(peer: ExternalPeer, use: PeerUse, facts: ReadingFacts, time: ReadingTime): void {
    if (peer.mode === "asleep") this.#judgeAsleep(peer, use, facts, time.now);
    else this.#judgeAwake(peer, use, facts, time);
  }

  #judgeAsleep(peer: ExternalPeer, use: PeerUse, facts: ReadingFacts, now: Millis): void {
    const { activity, handshake, source = { kind: "relay" }, strayed, since } = facts;
    if (handshake) {
      use.calledAt = Number.NEGATIVE_INFINITY;
      use.provenAsleepAt = now;
    }
    // What the reading before did not know may have come before the sleep.
    const isSince = since >= use.asleepSince || use.relayedDataAt >= use.asleepSince;
    if (isSince && (handshake || activity.rxData)) {
      this.#adopt(peer, use, source);
      this.#wake(peer, use, { kind: handshake ? "handshake" : "data", source });
    }
    if (peer.mode !== "asleep" || use.woken) return;
    if (strayed) this.#deps.teller.endpoint(peer, "local");
    const isSettled = now - use.asleepSince >= SETTLING && !isAwaited(use, now) && !hasSession(use, now);
    if (isSettled) this.#deps.unwatch(peer);
  }

  #judgeAwake(peer: ExternalPeer, use: PeerUse, facts: ReadingFacts, time: ReadingTime): void {
    const { activity, handshake, source } = facts;
    const isAnswer = use.question !== undefined && activity.rx && time.start > use.question.since;
    if (source && activity.rx) this.#adopt(peer, use, source);
    const wasProven = time.now - use.provenAsleepAt < PROOF_KEPT;
    if (handshake) this.#deps.count("handshake-completed");
    if (handshake || isAnswer || wasProven) this.#establish(peer, use, source ?? { kind: "relay" });
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
    if (strayed && path.kind === "udp") this.#returnToPath(peer, use, path.endpoint);
    this.#deps.events.emit("silent", { key: peer.key });
  }

  #establish(peer: ExternalPeer, use: PeerUse, source: PacketSource): void {
    const role = use.initiation || use.tryingSince !== undefined ? "initiator" : "responder";
    endQuestion(use);
    use.provenAsleepAt = Number.NEGATIVE_INFINITY;
    use.initiation = undefined;
    use.tryingSince = undefined;
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
      return this.#returnToPath(peer, use, path.endpoint);
    if (path.kind === "udp" && activity.rx && use.relayedDataAt >= since) this.#hint(peer, use, { kind: "relay" });
    if (!source || !strayed || use.detour || path.kind === "none") return;
    if (source.kind === "udp" && (activity.rx || !use.hinted || !samePath(use.hinted, source)))
      this.#hint(peer, use, source);
    if (use.path !== path || peer.mode !== "awake") return;
    // From a direct path to another it is right more often than we are: an address of the peer changed.
    if (path.kind === "relay") this.#deps.teller.endpoint(peer, "local");
    else if (source.kind === "relay" && !use.returnTimer) this.#returnToPath(peer, use, path.endpoint);
  }
}

/**
 * An initiation for a sleeping peer that no packet caused. With a session packets come as data first; without any, it is the
 * device that wonders why nothing answered what it sent before the sleep, or its repetition.
 */
function isOfDeviceTimer(use: PeerUse, now: Millis): boolean {
  if (use.wantedData || !hasSession(use, now + SESSION_MARGIN)) return false;
  return now - use.asleepSince < NEW_HANDSHAKE_TIME || (isRepetition(use, now) && !use.initiation!.byUser);
}

/** A handshake is under way, or was called for: what comes next may be its proof. */
function isAwaited(use: PeerUse, now: Millis): boolean {
  return use.tryingSince !== undefined || now - use.calledAt < REKEY_TIMEOUT;
}

/** Whether the device may send its initiation by itself, or it is to be caught. */
function promptOf({ path, initiatePaths }: PeerUse): Prompt {
  return { direct: path.kind === "udp" && initiatePaths.every((each) => samePath(each, path)) };
}

/**
 * A path that nobody chose may work one way only. The answer would be lost then, and the same message over the relay, coming
 * later, refused as a replay: the device has no other for 5 s.
 */
function worthwhilePaths({ path }: PeerUse, paths: readonly DevicePath[]): readonly DevicePath[] {
  const hasRelay = paths.some(({ kind }) => kind === "relay");
  return paths.filter((each) => each.kind === "relay" || (each.kind === "udp" && (!hasRelay || samePath(each, path))));
}

/** The device is another one: what it is to be told of the peer, and what it will do then. */
export function beginAnew(peer: ExternalPeer, use: PeerUse, now: Millis): void {
  forgetLife(use);
  endQuestion(use);
  use.detour = false;
  use.toldKeepalive = 0;
  if (peer.mode === "asleep" || (use.path.kind === "none" && !use.adopted)) return;
  // A device that is told of a keepalive for a new peer begins a handshake with it.
  use.toldKeepalive = peer.keepalive;
  use.askedAt = now;
  use.tryingSince = now;
  use.initiatePaths = [use.path.kind === "none" ? use.adopted! : use.path];
}

function endQuestion(use: PeerUse): void {
  use.question?.timer.cancel();
  use.question = undefined;
}

/** Ends what would happen by itself. */
export function endUse(use: PeerUse): void {
  endQuestion(use);
  use.returnTimer?.cancel();
  use.returnTimer = undefined;
}
