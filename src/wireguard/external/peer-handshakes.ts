import type { Clock, Millis } from "#base/time.ts";
import { REKEY_TIMEOUT } from "../constants.ts";
import type { DevicePath, PacketSource } from "../device.ts";
import { samePath } from "../device-path.ts";
import type { DeviceTeller, Prompt } from "./device-teller.ts";
import {
  type ExternalPeer,
  freshInitiation,
  hasSession,
  isRepetition,
  NO_PATHS,
  type PeerUse,
  useOf,
} from "./external-peer.ts";
import type { PeerPaths } from "./peer-paths.ts";
import { forgetLife } from "./peer-reading.ts";
import type { ReadingLoop } from "./reading-loop.ts";

export interface PeerHandshakesDeps {
  readonly clock: Clock;
  readonly teller: DeviceTeller;
  readonly paths: PeerPaths;
  readonly readings: Pick<ReadingLoop, "look" | "want">;
  readonly count: (name: string, by?: number) => void;
}

/** A peer with a session that is asked for a handshake has to be heard within this time, or begins anew: a reading tells. */
const QUESTION_PATIENCE: Millis = 500;
/** Or when it is asked again after this, by a caller that knows how long an answer takes: an embedded device has ended the session. */
const QUESTION_AGAIN: Millis = 100;
/** An initiation younger than this is worth sending again as it is over a path that came up meanwhile. */
const WORTH_REPEATING: Millis = 1_000;
/**
 * An initiation of ours goes on before one of the peer for so long, or steps back: there and back through a slow relay. After
 * as long one of two that crossed has come to something, or neither does.
 */
const CROSSING: Millis = 1_000;

/**
 * Handshakes with the peers of an external device when we want them: a copy of the initiation that the device made last,
 * which stays good for 5 s, or a keepalive that makes the device begin one. A device with a session makes none: whatever it
 * hears from the peer then is the proof, and if it hears nothing, it is made to forget the peer and begins anew.
 *
 * A device that takes an initiation forgets its own. Where two do that with each other's, neither answer is worth anything,
 * and both wait for 5 s. So the senior end, whose key is the greater one, goes on and the other one steps back:
 *
 *   the peer's came by the relay   the senior end keeps it from its device
 *   it came directly               the device has it; when nothing came of it, the senior end has its device begin anew
 */
export class PeerHandshakes {
  readonly #deps: PeerHandshakesDeps;

  constructor(deps: PeerHandshakesDeps) {
    this.#deps = deps;
  }

  /** Of an awake peer. */
  initiate(peer: ExternalPeer, paths: readonly DevicePath[]): void {
    const use = useOf(peer);
    const now = this.#deps.clock.now();
    use.initiatePaths = worthwhilePaths(use, paths);
    for (const path of paths)
      if (path.kind === "udp" && !use.initiatePaths.includes(path)) this.#deps.paths.invite(path.endpoint);
    use.tryingSince ??= now;
    if (freshInitiation(use, now)) this.#sendCopies(peer, use, use.initiatePaths);
    else if (!use.question) this.#ask(peer, use, now);
    else if (now - use.question.since >= QUESTION_AGAIN) this.#doubt(use);
  }

  #ask(peer: ExternalPeer, use: PeerUse, now: Millis): void {
    const { clock, teller, readings } = this.#deps;
    teller.prompt(peer, noteAsked(use, now));
    readings.look();
    if (!hasSession(use, now)) return;
    const timer = clock.after(QUESTION_PATIENCE, () => this.#doubt(use));
    use.question = { since: now, timer, doubtedAt: undefined };
  }

  /** Its time is over, as far as we know: what the device has read since shows when it is looked at. */
  #doubt(use: PeerUse): void {
    const { question } = use;
    if (!question || question.doubtedAt !== undefined) return;
    question.doubtedAt = this.#deps.clock.now();
    this.#deps.readings.want(question.doubtedAt);
  }

  /** Of an awake peer, after a reading that began at `start` and showed neither a handshake nor an answer. */
  noteNothing(peer: ExternalPeer, use: PeerUse, isSenior: boolean, start: Millis): void {
    const doubtedAt = use.question?.doubtedAt;
    if (doubtedAt !== undefined && start >= doubtedAt) this.#beginAnew(peer, use, this.#deps.clock.now());
    else this.#resolveCrossing(peer, use, isSenior, start);
  }

  /** The device forgets the session or the handshake that nobody answered, and makes an initiation. */
  #beginAnew(peer: ExternalPeer, use: PeerUse, now: Millis): void {
    const { teller, readings, count } = this.#deps;
    endQuestion(use);
    use.crossedAt = undefined;
    count("sessions-begun-anew");
    teller.reset(peer, noteAsked(use, now));
    readings.look();
  }

  /** A path was chosen: what is under way may be quicker there. `wasNone`: no place to send to was known before. */
  repeatOver(peer: ExternalPeer, use: PeerUse, path: DevicePath, wasNone: boolean): void {
    const now = this.#deps.clock.now();
    const initiation = freshInitiation(use, now);
    if (!initiation || initiation.sentOver.some((sent) => samePath(sent, path))) return;
    const { sentAt, byUser } = initiation;
    const isUnderWay = sentAt !== undefined && now - sentAt < WORTH_REPEATING;
    if ((wasNone && byUser) || isUnderWay) this.#sendCopies(peer, use, [path]);
  }

  #sendCopies(peer: ExternalPeer, use: PeerUse, paths: readonly DevicePath[]): void {
    const { initiation } = use;
    const now = this.#deps.clock.now();
    if (!initiation || paths.length === 0) return;
    use.tryingSince ??= now;
    const sentOver = [...initiation.sentOver, ...paths.filter((path) => !initiation.sentOver.includes(path))];
    use.initiation = { ...initiation, sentOver, sentAt: initiation.sentAt ?? now };
    for (const path of paths) this.#deps.paths.send(peer, path, initiation.message);
    this.#deps.count("initiation-copies-sent", paths.length);
  }

  /** The device sent an initiation to the peer's local end. `isOfTimer`: nothing but the device's own timers made it. */
  capture(peer: ExternalPeer, use: PeerUse, message: Uint8Array, isOfTimer: boolean): void {
    const now = this.#deps.clock.now();
    const isAsked = now - use.askedAt < WORTH_REPEATING;
    const byUser = isRepetition(use, now) ? use.initiation!.byUser : !isAsked;
    use.initiation = { message, at: now, byUser: byUser && !isOfTimer, sentOver: NO_PATHS, sentAt: undefined };
    if (peer.mode === "asleep") return;
    use.tryingSince ??= now;
    const { path, adopted, initiatePaths } = use;
    const chosen = path.kind !== "none" ? [path] : adopted ? [adopted] : [];
    const isAskedFor = isAsked && initiatePaths.length > 0;
    this.#sendCopies(peer, use, isAskedFor || chosen.length === 0 ? initiatePaths : chosen);
    if (use.detour && path.kind === "udp") this.#deps.paths.returnTo(peer, use, path.endpoint);
  }

  // Two that cross

  /** Whether the peer's initiation, which came by the relay, is to be kept from the device, because ours is on its way. */
  insists(peer: ExternalPeer, isSenior: boolean): boolean {
    const use = useOf(peer);
    const sentAt = use.initiation?.sentAt;
    if (isSenior && sentAt !== undefined && this.#deps.clock.now() - sentAt < CROSSING) return true;
    this.stepBack(use);
    return false;
  }

  /** The device takes the peer's initiation, and forgets its own. */
  stepBack(use: PeerUse): void {
    const { clock, readings } = this.#deps;
    use.initiation = undefined;
    if (use.tryingSince === undefined) return;
    use.crossedAt = clock.now();
    readings.want(use.crossedAt + CROSSING);
  }

  #resolveCrossing(peer: ExternalPeer, use: PeerUse, isSenior: boolean, start: Millis): void {
    const { crossedAt } = use;
    if (crossedAt === undefined || start - crossedAt < CROSSING) return;
    use.crossedAt = undefined;
    if (!isSenior || use.question || use.tryingSince === undefined) return;
    this.#deps.count("handshakes-crossed");
    this.#beginAnew(peer, use, this.#deps.clock.now());
  }
}

/** The device is asked for an initiation. */
function noteAsked(use: PeerUse, now: Millis): Prompt {
  const { path, initiatePaths } = use;
  // Whether it may send that by itself, or it is to be caught.
  const prompt = { direct: path.kind === "udp" && initiatePaths.every((each) => samePath(each, path)) };
  use.askedAt = now;
  use.detour = path.kind === "udp" && !prompt.direct;
  return prompt;
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
  use.crossedAt = undefined;
  use.toldKeepalive = 0;
  const place: PacketSource | undefined = use.path.kind === "none" ? use.adopted : use.path;
  if (peer.mode === "asleep" || !place) return;
  // A device that is told of a keepalive for a new peer begins a handshake with it.
  use.toldKeepalive = peer.keepalive;
  use.askedAt = now;
  use.tryingSince = now;
  use.initiatePaths = [place];
}

/** A handshake is under way, or was called for: what comes next may be its proof. */
export function isAwaited(use: PeerUse, now: Millis): boolean {
  return use.tryingSince !== undefined || use.unheardSince !== undefined || now - use.calledAt < REKEY_TIMEOUT;
}

export function endQuestion(use: PeerUse): void {
  use.question?.timer.cancel();
  use.question = undefined;
}
