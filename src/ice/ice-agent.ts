import { randomBytes } from "node:crypto";
import { Emitter } from "#base/emitter.ts";
import { unreachable } from "#base/errors.ts";
import { type Endpoint, type IpAddress, ipToBytes, isV6 } from "#base/ip.ts";
import { type Logger, silentLogger } from "#base/log.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import { type Candidate, candidatePriority } from "./candidate.ts";
import type { CheckEffect, FailedReason, InboundCheck, LostReason } from "./check-effect.ts";
import { CheckList } from "./check-list.ts";
import type { PairSnapshot } from "./pair.ts";
import {
  encodeStun,
  STUN_METHOD_BINDING,
  type StunFields,
  type StunMessage,
  type TransactionId,
  verifyStunIntegrity,
} from "./stun-message.ts";
import { MAX_EARLY_CHECKS, MAX_REMOTE_SIGNALLED } from "./timing.ts";

/** Sends one datagram from the WireGuard port; `from` pins the local address where the OS allows. Best effort. */
export type SendDatagram = (datagram: Uint8Array, to: Endpoint, from?: Endpoint) => void;

export interface IceAgentDeps {
  readonly clock: Clock;
  readonly send: SendDatagram;
  readonly log?: Logger;
  /** Cryptographic randomness; default node:crypto. */
  readonly random?: (bytes: number) => Uint8Array;
}

export interface IceCredentials {
  readonly ufrag: string;
  readonly pwd: string;
}

export interface IceAgentOptions {
  /** Fixed for the pair (signal-and-peer-connection.md, 2.3); the remote's claim of a role is not compared. */
  readonly role: "controlling" | "controlled";
  readonly localUfrag: string;
  readonly localPwd: string;
  /** Default random. */
  readonly tieBreaker?: bigint;
  /** Default of what `setRemoteCredentials` is told: the remote is a stock agent. Default false. */
  readonly stock?: boolean;
  /** Addresses that must not be checked and are not heard: those of the overlay. Default none. */
  readonly isForbidden?: (address: IpAddress) => boolean;
}

export interface IceAgentEvents {
  /**
   * This pair carries data from now on; may come again with another pair, never after `lost`, `failed` may be followed by
   * it. `nominated` is false while a controlled agent uses its first working pair ahead of the remote's choice.
   */
  selected: {
    readonly local: Candidate;
    readonly remote: Candidate;
    /** Where to send: the remote candidate's endpoint. */
    readonly endpoint: Endpoint;
    /** Round trip of the answered check. */
    readonly rtt: Millis;
    readonly nominated: boolean;
  };
  /** The selected path is dead and nothing replaced it; the agent checks no more. The owner restarts with a new agent. */
  lost: { readonly reason: LostReason };
  /** No path was found in 10 s; a candidate or a check that comes later starts the search again. */
  failed: { readonly reason: FailedReason };
  /** An answered check named the address at which the remote's endpoint sees us. Comes with every answer. */
  mapped: { readonly remote: Endpoint; readonly mapped: Endpoint };
}

export type IceAgentState = "waiting" | "checking" | "selected" | "failed" | "lost" | "closed";

/** Bytes at the front of every transaction id of an agent, so that answers find it without a table of transactions. */
const TRANSACTION_TAG_BYTES = 6;
/** Their hexadecimal digits. */
export const TRANSACTION_TAG_DIGITS = TRANSACTION_TAG_BYTES * 2;

interface EarlyCheck {
  readonly remoteUfrag: string;
  readonly check: InboundCheck;
}

interface Session {
  readonly credentials: IceCredentials;
  readonly list: CheckList;
}

/**
 * A full ICE agent (RFC 8445) with one component that owns no socket: datagrams are handed in by the dispatcher and out by
 * `send`. It answers the remote's checks from the start; its own begin when the remote's credentials are known, and
 * everything that came before is used then. One timer while it works, none before credentials, after `lost`, `failed` or
 * `close`. The decisions are in CheckList, the bytes in stun-message.ts; this is the part between them.
 */
export class IceAgent {
  readonly events = new Emitter<IceAgentEvents>();
  /** Front of this agent's transaction ids, hexadecimal. */
  readonly transactionTag: string;
  readonly localUfrag: string;
  readonly #clock: Clock;
  readonly #send: SendDatagram;
  readonly #log: Logger;
  readonly #random: (bytes: number) => Uint8Array;
  readonly #options: IceAgentOptions;
  readonly #tieBreaker: bigint;
  readonly #locals: Candidate[] = [];
  /** Candidates that came before the credentials they belong to, newest last. */
  #pendingRemotes: Candidate[] = [];
  #earlyChecks: EarlyCheck[] = [];
  #session: Session | undefined;
  #timer: { readonly at: Millis; readonly timer: Timer } | undefined;
  #closed = false;
  readonly #counters = new Map<string, number>();

  constructor(deps: IceAgentDeps, options: IceAgentOptions) {
    this.#clock = deps.clock;
    this.#send = deps.send;
    this.#log = deps.log ?? silentLogger;
    this.#random = deps.random ?? randomBytes;
    this.#options = options;
    this.localUfrag = options.localUfrag;
    this.#tieBreaker = options.tieBreaker ?? Buffer.from(this.#random(8)).readBigUInt64BE();
    this.transactionTag = Buffer.from(this.#random(TRANSACTION_TAG_BYTES)).toString("hex");
  }

  get state(): IceAgentState {
    if (this.#closed) return "closed";
    return this.#session?.list.state ?? "waiting";
  }

  /** Any time; host candidates open their address family for checks. */
  addLocalCandidate(candidate: Candidate): void {
    if (this.#closed) return;
    this.#locals.push(candidate);
    if (this.#session) this.#run(this.#session.list.addLocal(candidate, this.#clock.now()));
  }

  /**
   * From the remote's offer or answer. The same credentials again change nothing; others mean that the remote restarted:
   * all that was learned about it is forgotten and the search starts anew, without a `lost`. A `stock` remote gets one
   * nomination, and no pair is used before it. `quiet`: the search is as good as lost and not begun, see `probe`.
   */
  setRemoteCredentials(
    credentials: IceCredentials,
    stock: boolean = this.#options.stock ?? false,
    quiet: boolean = false,
  ): void {
    const current = this.#session?.credentials;
    if (this.#closed || (current?.ufrag === credentials.ufrag && current.pwd === credentials.pwd)) return;
    const now = this.#clock.now();
    const list = new CheckList(
      {
        role: this.#options.role,
        stock,
        quiet,
        createTransactionId: () => this.#createTransactionId(),
      },
      now,
    );
    this.#session = { credentials, list };
    for (const candidate of this.#locals) this.#run(list.addLocal(candidate, now));
    const remotes = this.#pendingRemotes;
    const checks = this.#earlyChecks;
    this.#pendingRemotes = [];
    this.#earlyChecks = [];
    // Inbound checks first: they prove that the remote's packets get here, and name the NAT's mapping.
    for (const early of checks) {
      if (early.remoteUfrag === credentials.ufrag) this.#run(list.noteRequest(early.check, now));
    }
    this.#addRemotes(remotes);
  }

  /** Any time, also before the credentials. One of another session (`ufrag` extension) is kept aside for that session. */
  addRemoteCandidate(candidate: Candidate): void {
    if (this.#closed) return;
    if (!this.#isUsable(candidate)) this.#count("candidate-unusable");
    else this.#addRemotes([candidate]);
  }

  /**
   * A STUN message of this agent: a request with its ufrag or an answer with its tag. `to` is the local address it arrived
   * at; the answer leaves from there. Anything wrong is counted and dropped. The message's buffer is not kept.
   */
  receive(message: StunMessage, from: Endpoint, to?: Endpoint): void {
    if (this.#closed) return;
    const isForbidden = this.#options.isForbidden;
    if (isForbidden?.(from.address) || (to && isForbidden?.(to.address))) return this.#count("forbidden-address");
    if (message.method !== STUN_METHOD_BINDING) return this.#count("not-binding");
    switch (message.class) {
      case "request":
        return this.#receiveRequest(message, from, to);
      case "success":
        return this.#receiveSuccess(message, from);
      case "error":
        // Roles are fixed and stock ignores errors as well; the check is repeated anyway.
        return this.#count(`error-${message.error?.code ?? 0}`);
      case "indication":
        return this.#count("indication");
      default:
        unreachable(message.class);
    }
  }

  /**
   * Other evidence (WireGuard's silence, a send error) says that the selected path may be dead: decide within 0.6 s. The
   * remote may have been heard from another place meanwhile, which is checked too.
   */
  suspect(heardFrom?: Endpoint): void {
    if (!this.#session || this.#closed) return;
    const isForbidden = heardFrom !== undefined && this.#options.isForbidden?.(heardFrom.address) === true;
    this.#run(this.#session.list.suspect(this.#clock.now(), isForbidden ? undefined : heardFrom));
  }

  /**
   * After `failed`: a few checks, for a way that may be there again; an answer resumes the search, silence changes nothing.
   * The remote may have been heard from `heardFrom`. In other states nothing happens.
   */
  probe(heardFrom?: Endpoint): void {
    if (!this.#session || this.#closed) return;
    const isForbidden = heardFrom !== undefined && this.#options.isForbidden?.(heardFrom.address) === true;
    this.#run(this.#session.list.probe(this.#clock.now(), isForbidden ? undefined : heardFrom));
  }

  pairs(): PairSnapshot[] {
    return this.#session?.list.pairs() ?? [];
  }

  /** What was dropped and why, by name. */
  counters(): ReadonlyMap<string, number> {
    return this.#counters;
  }

  /** Stops checks and answers at once; consent with the remote ends. Idempotent. */
  close(): void {
    this.#closed = true;
    this.#timer?.timer.cancel();
    this.#timer = undefined;
    this.#pendingRemotes = [];
    this.#earlyChecks = [];
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** All at once, so that the best of them is checked first. */
  #addRemotes(candidates: readonly Candidate[]): void {
    const session = this.#session;
    const mine: Candidate[] = [];
    for (const candidate of candidates) {
      if (session && (candidate.ufrag === undefined || candidate.ufrag === session.credentials.ufrag)) {
        const forwarded = staticForward(candidate);
        mine.push(candidate, ...(forwarded ? [forwarded] : []));
        continue;
      }
      if (session) this.#count("candidate-of-another-session");
      if (this.#pendingRemotes.length >= MAX_REMOTE_SIGNALLED) this.#pendingRemotes.shift();
      this.#pendingRemotes.push(candidate);
    }
    if (session) this.#run(session.list.addRemotes(mine, this.#clock.now()));
  }

  #receiveRequest(message: StunMessage, from: Endpoint, to: Endpoint | undefined): void {
    const [receiverUfrag, senderUfrag = ""] = message.username?.split(":", 2) ?? [];
    if (receiverUfrag !== this.localUfrag) return this.#count("request-wrong-ufrag");
    if (!verifyStunIntegrity(message, this.#options.localPwd)) return this.#count("request-wrong-integrity");
    const answer = { transactionId: message.transactionId };
    if (message.unknownRequired.length > 0) {
      this.#count("request-unknown-attribute");
      const error = { code: 420, reason: "Unknown Attribute" };
      return this.#answer({ ...answer, class: "error", error, unknownAttributes: message.unknownRequired }, from, to);
    }
    const [senderCid, receiverCid] = splitIds(message.candidateIds);
    const candidateIds = senderCid && receiverCid ? { candidateIds: `${receiverCid}:${senderCid}` } : {};
    this.#answer({ ...answer, class: "success", xorMappedAddress: from, ...candidateIds }, from, to);

    const check: InboundCheck = {
      from,
      priority: message.priority ?? candidatePriority("prflx"),
      useCandidate: message.useCandidate,
      senderCid,
    };
    if (this.#session?.credentials.ufrag === senderUfrag) {
      this.#run(this.#session.list.noteRequest(check, this.#clock.now()));
    } else {
      if (this.#session) this.#count("request-of-another-session");
      this.#keepEarly({ remoteUfrag: senderUfrag, check });
    }
  }

  /** One per source and session, the newest; a nomination seen once stays. */
  #keepEarly(early: EarlyCheck): void {
    const isSame = (known: EarlyCheck): boolean =>
      known.remoteUfrag === early.remoteUfrag &&
      known.check.from.address === early.check.from.address &&
      known.check.from.port === early.check.from.port;
    const useCandidate = early.check.useCandidate || (this.#earlyChecks.find(isSame)?.check.useCandidate ?? false);
    this.#earlyChecks = this.#earlyChecks.filter((known) => !isSame(known));
    if (this.#earlyChecks.length >= MAX_EARLY_CHECKS) this.#earlyChecks.shift();
    this.#earlyChecks.push({ ...early, check: { ...early.check, useCandidate } });
  }

  #receiveSuccess(message: StunMessage, from: Endpoint): void {
    const session = this.#session;
    if (!session || !verifyStunIntegrity(message, session.credentials.pwd))
      return this.#count("answer-wrong-integrity");
    const mapped = message.xorMappedAddress ?? message.mappedAddress;
    const effects = session.list.noteResponse(message.transactionId, from, mapped, this.#clock.now());
    if (!effects) return this.#count("answer-unexpected");
    if (mapped) this.events.emit("mapped", { remote: from, mapped });
    this.#run(effects);
  }

  #answer(fields: StunFields, to: Endpoint, from: Endpoint | undefined): void {
    this.#send(encodeStun(fields, { password: this.#options.localPwd }), to, from);
  }

  /** Runs effects in order, then arms the timer for what comes next. */
  #run(effects: readonly CheckEffect[]): void {
    const session = this.#session;
    for (const effect of effects) {
      // A listener may have closed or restarted the agent.
      if (this.#closed || session !== this.#session) return;
      switch (effect.kind) {
        case "check":
          this.#sendCheck(effect);
          break;
        case "selected": {
          const { local, remote, rtt, nominated } = effect;
          this.#log.debug("ice pair selected", { local: local.type, remote: remote.type, rttMs: rtt, nominated });
          this.events.emit("selected", { local, remote, endpoint: remote.endpoint, rtt, nominated });
          break;
        }
        case "lost":
          this.#log.debug("ice path lost", { reason: effect.reason });
          this.events.emit("lost", { reason: effect.reason });
          break;
        case "failed":
          this.#log.debug("ice found no path", { reason: effect.reason, pairs: this.pairs().length });
          this.events.emit("failed", { reason: effect.reason });
          break;
        default:
          unreachable(effect);
      }
    }
    this.#arm();
  }

  #sendCheck(check: Extract<CheckEffect, { kind: "check" }>): void {
    const { transactionId, local, remote, nominate } = check;
    const { ufrag, pwd } = this.#session!.credentials;
    const candidateIds = local?.cid && remote.cid ? { candidateIds: `${local.cid}:${remote.cid}` } : {};
    const request: StunFields = {
      class: "request",
      transactionId,
      username: `${ufrag}:${this.localUfrag}`,
      priority: candidatePriority("prflx"),
      useCandidate: nominate,
      ice: { role: this.#options.role, tieBreaker: this.#tieBreaker },
      ...candidateIds,
    };
    this.#send(encodeStun(request, { password: pwd }), remote.endpoint);
  }

  #arm(): void {
    const at = this.#closed ? undefined : this.#session?.list.nextDeadline();
    if (at === this.#timer?.at) return;
    this.#timer?.timer.cancel();
    this.#timer = undefined;
    if (at === undefined) return;
    const timer = this.#clock.after(Math.max(0, at - this.#clock.now()), () => {
      this.#timer = undefined;
      if (this.#session) this.#run(this.#session.list.advance(this.#clock.now()));
    });
    this.#timer = { at, timer };
  }

  #createTransactionId(): TransactionId {
    const rest = Buffer.from(this.#random(12 - TRANSACTION_TAG_BYTES)).toString("hex");
    return `${this.transactionTag}${rest}` as TransactionId;
  }

  #isUsable(candidate: Candidate): boolean {
    const { address } = candidate.endpoint;
    if (candidate.component !== 1 || this.#options.isForbidden?.(address)) return false;
    const bytes = ipToBytes(address);
    const last = bytes.at(-1)!;
    const multicast = isV6(address) ? bytes[0] === 0xff : bytes[0]! >= 224;
    const unspecified = isV6(address) ? bytes.every((byte) => byte === 0) : bytes[0] === 0;
    const loopback = isV6(address) ? last === 1 && bytes.subarray(0, 15).every((byte) => byte === 0) : bytes[0] === 127;
    // A remote that names our loopback wants a look at local services; only an agent that itself offers loopback goes there.
    if (loopback) return this.#locals.some(({ endpoint }) => /^127\.|^::1$/.test(endpoint.address));
    return !multicast && !unspecified;
  }

  #count(name: string): void {
    this.#counters.set(name, (this.#counters.get(name) ?? 0) + 1);
  }
}

/**
 * The candidate behind a static port forward on the remote's router: same public address, the remote's WireGuard port
 * (signal-and-peer-connection.md, 3.5). Only for senders that give ids; older ones send it themselves.
 */
function staticForward(candidate: Candidate): Candidate | undefined {
  const { type, cid, related, endpoint, ...rest } = candidate;
  if (type !== "srflx" || !cid || !related || related.port === endpoint.port) return undefined;
  return { ...rest, type, related, endpoint: { address: endpoint.address, port: related.port } };
}

/** `<sender cid>:<receiver cid>`. */
function splitIds(ids: string | undefined): [sender: string | undefined, receiver: string | undefined] {
  const colon = ids?.indexOf(":") ?? -1;
  if (ids === undefined || colon <= 0) return [undefined, undefined];
  return [ids.slice(0, colon), ids.slice(colon + 1) || undefined];
}
