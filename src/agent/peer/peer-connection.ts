import { supportsGoIdle } from "#base/agent-version.ts";
import { unreachable } from "#base/errors.ts";
import type { Endpoint, IpAddress, Prefix } from "#base/ip.ts";
import type { PresharedKey, PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis } from "#base/time.ts";
import { type Body, Body_Type } from "#gen/signal_pb.ts";
import { type Candidate, formatCandidate, parseCandidate } from "#ice/candidate.ts";
import {
  createCandidateBody,
  createGoIdleBody,
  createOfferBody,
  type IceCredentials,
  type NatReport,
  parseOfferBody,
  type RelayAddress,
} from "#signal/protocol/offer.ts";
import { createSleepBody, type SleepMessage } from "#signal/protocol/sleep-message.ts";
import type { WireGuardDevice } from "#wireguard/device.ts";
import type { PeerPath, PeerState, TimelineEntry } from "../control.ts";
import type { NegotiationView } from "./negotiation-view.ts";
import { NO_RECORD, PeerRecord } from "./peer-record.ts";
import {
  createPeerState,
  type DirectPath,
  type LocalSession,
  nextDeadline,
  type PeerConnectionState,
  type PeerContext,
  type PeerEffect,
  type PeerEvent,
  step,
} from "./peer-state.ts";
import type { SearchHold } from "./search-memory.ts";
import { Timeline } from "./timeline.ts";

/** What an awake peer needs of the ICE side; made by `DirectPaths`. */
export interface IceSession {
  /** Gives it the remote's half. `network`: where the remote is, for the memory; `quiet`: no checks before `probe`. */
  check(credentials: IceCredentials, stock: boolean, network: string, quiet: boolean): void;
  addRemoteCandidate(candidate: Candidate): void;
  /** The direct way may be dead: probe now, and the place where the remote sends from instead. */
  suspect(heardFrom: Endpoint | undefined): void;
  /** After a failed search: a few checks, and whether our own mapping is still the same. */
  probe(heardFrom: Endpoint | undefined): void;
  close(): void;
}

export interface IceSessionHandlers {
  /** A local candidate to tell the remote about; those known already come before `open` returns. */
  readonly candidate: (candidate: Candidate) => void;
  readonly selected: (direct: DirectPath) => void;
  readonly lost: (reason: string, failed: boolean) => void;
}

/** What a connection needs of the agent around it. All of it is shared by all peers. */
export interface PeerDeps {
  readonly clock: Clock;
  readonly log: Logger;
  readonly device: Pick<WireGuardDevice, "setPeer" | "setPath" | "initiate" | "peerStats">;
  readonly signal: {
    /** `failure`: the message did not reach the server. */
    send(to: PublicKey, body: Body): Promise<{ readonly delivered: boolean | undefined; readonly failure?: Error }>;
    /** The network may be broken: asks for a sign of life; costs nothing when called often. */
    probe(): void;
  };
  readonly relay: {
    /** Packets for this peer go through that relay from now on (the home relay when undefined). */
    useServer(peer: PublicKey, relay: RelayAddress | undefined): void;
    /** Something can be sent to the peer over a relay now. */
    isUp(peer: PublicKey): boolean;
    /** The relay the peer's packets take, for status. */
    serverOf(peer: PublicKey): string;
    readonly home: RelayAddress | undefined;
    readonly rtt: Millis | undefined;
    /** As that of signal. */
    probe(): void;
  };
  readonly ice: {
    readonly allowed: boolean;
    freshSession(): LocalSession;
    /** Told to the remote for its diagnosis. */
    readonly nat: NatReport;
    /** Searches between the remote's network and ours failed so often that the next is put off. */
    holdOf(peer: PublicKey, network: string): SearchHold | undefined;
    open(peer: PublicKey, controlling: boolean, local: LocalSession, handlers: IceSessionHandlers): IceSession;
  };
  readonly ownKey: PublicKey;
  readonly version: string;
  readonly wireguardPort: number;
  readonly presharedKey: PresharedKey | undefined;
  /** Called after every change of what status shows. */
  readonly changed: (peer: PeerConnection) => void;
  /** Called with every entry of a peer's story. */
  readonly noted?: ((peer: PublicKey, entry: TimelineEntry) => void) | undefined;
}

/** What the network map says of a peer. */
export interface PeerInfo {
  readonly key: PublicKey;
  readonly fqdn: string;
  readonly addresses: readonly IpAddress[];
  /** Overlay addresses and the networks routed through it. */
  readonly allowedIps: readonly Prefix[];
  readonly routes: readonly Prefix[];
  readonly agentVersion: string;
}

/** A direct endpoint that worked is worth one handshake message for this long after it was last used. */
const KNOWN_DIRECT_LIFETIME: Millis = 10 * 60_000;
/** Keepalive of an awake peer, in seconds, as stock agents set it. */
const KEEPALIVE_SECONDS = 25;
/** An OFFER is answered at most this often (signal document, section 9). */
const ANSWER_INTERVAL: Millis = 200;

const NO_ENTRIES: readonly TimelineEntry[] = [];
/** Numbers below 2^31 take no memory of their own: so are, for 24 days, times since about the start of the process. */
const EPOCH = Date.now();

/**
 * One remote peer: runs the effects of its state machine against device, signal, relay and ICE, and keeps its timeline.
 * Used again and again: awake and asleep are states of the one object. It never decides to be lazy.
 */
export class PeerConnection {
  info: PeerInfo;
  readonly #deps: PeerDeps;
  #state: PeerConnectionState;
  /** Wall clock ms after EPOCH. */
  #since: number;
  /** To read; `#own` is to write. */
  #record: Readonly<PeerRecord> = NO_RECORD;

  constructor(deps: PeerDeps, info: PeerInfo, reason: string) {
    this.#deps = deps;
    this.info = info;
    this.#since = deps.clock.wall() - EPOCH;
    this.#state = createPeerState(reason);
    deps.device.setPeer(info.key, { mode: "asleep", allowedIps: info.allowedIps });
  }

  get key(): PublicKey {
    return this.info.key;
  }

  get awake(): boolean {
    return this.#state.kind === "awake";
  }

  /** The public state; derived, never stored beside the machine's. */
  get status(): PeerState {
    if (this.#state.kind === "idle") return "idle";
    return this.#state.proven === undefined ? "connecting" : "connected";
  }

  get reason(): string {
    if (this.#state.kind === "idle") return this.#state.reason;
    return this.timeline.findLast((entry) => entry.event === "wake")?.detail ?? "";
  }

  /** Wall clock ms of the last change of `status`. */
  get since(): number {
    return EPOCH + this.#since;
  }

  /** It agrees with us before it sleeps, as far as its last OFFER or ANSWER said. */
  get agreesOnSleep(): boolean {
    return this.#record.agreesOnSleep;
  }

  /** Clock of our last OFFER. */
  get offeredAt(): Millis | undefined {
    return this.#record.offeredAt;
  }

  /** Clock of the last handshake; undefined while idle or Connecting. */
  get provenAt(): Millis | undefined {
    return this.#state.kind === "awake" ? this.#state.proven : undefined;
  }

  /** Clock of the last wake; undefined while idle. */
  get wokeAt(): Millis | undefined {
    return this.#state.kind === "awake" ? this.#state.since : undefined;
  }

  get timeline(): readonly TimelineEntry[] {
    return this.#record.timeline?.entries() ?? NO_ENTRIES;
  }

  get path(): PeerPath {
    const state = this.#state;
    if (state.kind === "idle") return { kind: "none" };
    if (state.direct) {
      const { endpoint, localKind, remoteKind, local } = state.direct;
      return { kind: "direct", endpoint, localKind, remoteKind, ...(local ? { local } : {}) };
    }
    return state.relay ? { kind: "relay", server: this.#deps.relay.serverOf(this.key) } : { kind: "none" };
  }

  get latencyMs(): Millis | undefined {
    return this.#state.kind === "awake" ? this.#state.direct?.rtt : undefined;
  }

  get negotiation(): NegotiationView {
    const initiations = this.#state.kind === "awake" ? this.#state.initiations : 0;
    return { remote: this.#record.remoteHalf, delivered: this.#record.delivered, initiations };
  }

  /** The signal server says that the remote is not connected to it, and the remote did not speak in this wake. */
  get isRemoteAway(): boolean {
    return this.#state.kind === "awake" && this.#state.remote === undefined && this.#record.delivered === false;
  }

  /** In this wake the remote answered, or the signal server passed our OFFER or ANSWER on to it. */
  get isRemoteThere(): boolean {
    return this.#state.kind === "awake" && (this.#state.remote !== undefined || this.#record.delivered === true);
  }

  /** The map changed what it says of this peer; allowed IPs are replaced without touching session or path. */
  update(info: PeerInfo): void {
    this.info = info;
    this.#setDevicePeer();
    this.#deps.changed(this);
  }

  post(event: PeerEvent): void {
    const before = this.status;
    // Up to now the direct path was in use: it is worth trying first for a while from now on.
    this.#rememberDirect();
    const { state, effects } = step(this.#state, event, this.#context());
    this.#state = state;
    for (const effect of effects) this.#run(effect);
    this.#arm();
    if (this.status !== before) this.#since = this.#deps.clock.wall() - EPOCH;
    if (effects.length > 0 || this.status !== before) this.#deps.changed(this);
  }

  /** A decrypted message of this peer; GO_IDLE is the manager's business. */
  receive(body: Body): void {
    if (body.perch) this.#own.remoteIsPerch = true;
    switch (body.type) {
      case Body_Type.OFFER:
      case Body_Type.ANSWER: {
        const remote = parseOfferBody(body);
        if (!remote) return;
        const { perch, credentials, relay } = remote;
        this.#own.agreesOnSleep = perch?.agreesOnSleep ?? false;
        this.#own.remoteHalf = {
          perch: perch !== undefined,
          ice: credentials !== undefined,
          relay: relay !== undefined,
          nat: perch?.nat,
        };
        this.post({ kind: body.type === Body_Type.OFFER ? "offer" : "answer", remote });
        for (const text of remote.perch?.candidates ?? []) this.#addRemoteCandidate(text);
        return;
      }
      case Body_Type.CANDIDATE:
        this.#addRemoteCandidate(body.payload);
        return;
      default:
        return;
    }
  }

  /** Takes everything down without a word to the remote; the peer left the map or the agent stops. */
  close(): void {
    const { timer, answerTimer, ice } = this.#record;
    timer?.cancel();
    answerTimer?.cancel();
    ice?.close();
    if (ice) this.#own.ice = undefined;
    this.#state = { kind: "idle", generation: this.#state.generation, reason: "removed" };
  }

  /**
   * Tells the remote that we close until somebody talks again; resolves when the message is out, to false when the signal
   * server did not get it. An agent older than GO_IDLE is not told: it could take the message for a reason to wake (signal
   * document, section 9).
   */
  async sayGoIdle(): Promise<boolean> {
    return !supportsGoIdle(this.info.agentVersion) || this.#send(createGoIdleBody());
  }

  /** Says a step of an agreement about sleep. */
  saySleep(message: SleepMessage): void {
    void this.#send(createSleepBody(message));
  }

  note(event: string, detail: string): void {
    this.#story.note(event, detail);
    this.#deps.changed(this);
  }

  /** Its own record, made when it has none. */
  get #own(): PeerRecord {
    if (this.#record === NO_RECORD) this.#record = new PeerRecord();
    return this.#record;
  }

  get #story(): Timeline {
    const record = this.#own;
    const { clock, noted } = this.#deps;
    record.timeline ??= new Timeline(clock, noted && ((entry) => noted(this.key, entry)));
    return record.timeline;
  }

  /** Roles compare the base64 texts byte by byte (signal document, section 2.3). */
  get #controlling(): boolean {
    return this.#deps.ownKey > this.key;
  }

  #context(): PeerContext {
    const { clock, relay, ice, device } = this.#deps;
    const now = clock.now();
    const known = this.#record.knownDirect;
    return {
      now,
      relayUp: relay.isUp(this.key),
      relayRtt: relay.rtt,
      iceAllowed: ice.allowed,
      knownDirect: known && known.until > now ? known.endpoint : undefined,
      lastUserData: () => {
        const stats = device.peerStats(this.key);
        return Math.max(stats?.lastDataRx ?? 0, stats?.lastDataTx ?? 0);
      },
      holdOf: (network) => ice.holdOf(this.key, network),
      freshSession: () => ice.freshSession(),
    };
  }

  #run(effect: PeerEffect): void {
    const { device, relay } = this.#deps;
    switch (effect.kind) {
      case "device-awake":
        this.#own.delivered = undefined;
        return this.#setDevicePeer();
      case "device-asleep":
        // A connection to another agent's relay is not kept for a peer that sleeps; its next OFFER names the relay again.
        relay.useServer(this.key, undefined);
        return this.#setDevicePeer();
      case "use-path":
        return device.setPath(this.key, effect.path);
      case "forget-direct":
        this.#own.knownDirect = undefined;
        return;
      case "initiate":
        device.initiate(this.key, effect.paths);
        return;
      case "send-offer":
        return this.#sendHalf("offer");
      case "send-answer":
        return this.#answer();
      case "use-relay-server":
        // Both sides use the relay of the controller (relay document, section 7.5).
        return this.#controlling ? undefined : relay.useServer(this.key, effect.relay);
      case "open-ice":
        return this.#openIce(effect.ice);
      case "check-ice":
        return this.#record.ice?.check(effect.credentials, effect.stock, effect.network, effect.quiet);
      case "close-ice":
        this.#record.ice?.close();
        this.#own.ice = undefined;
        // Candidates of a life that is over are told to nobody: they could wake a stock peer.
        this.#own.candidates = [];
        return;
      case "suspect-ice":
        return this.#record.ice?.suspect(effect.heardFrom);
      case "probe-ice":
        return this.#record.ice?.probe(effect.heardFrom);
      case "probe-servers":
        relay.probe();
        return this.#deps.signal.probe();
      case "note":
        this.#deps.log.debug("peer event", { peer: this.info.fqdn, event: effect.event, detail: effect.detail });
        return this.#story.note(effect.event, effect.detail);
      default:
        return unreachable(effect);
    }
  }

  #setDevicePeer(): void {
    const { device, presharedKey } = this.#deps;
    device.setPeer(this.key, {
      mode: this.awake ? "awake" : "asleep",
      allowedIps: this.info.allowedIps,
      presharedKey,
      persistentKeepalive: this.awake ? KEEPALIVE_SECONDS : 0,
    });
  }

  /** Keeps the endpoint of a direct path in use for the next wake. */
  #rememberDirect(): void {
    const direct = this.#state.kind === "awake" ? this.#state.direct : undefined;
    if (direct)
      this.#own.knownDirect = { endpoint: direct.endpoint, until: this.#deps.clock.now() + KNOWN_DIRECT_LIFETIME };
  }

  #openIce(life: number): void {
    const state = this.#state;
    if (state.kind !== "awake") return;
    this.#record.ice?.close();
    this.#own.candidates = [];
    this.#own.told = undefined;
    this.#own.ice = this.#deps.ice.open(this.key, this.#controlling, state.local, {
      candidate: (candidate) => {
        this.#record.candidates.push(formatCandidate(candidate));
        // Before the first OFFER or ANSWER of this life there is nothing to add to: it will carry the candidate.
        if (this.#record.told !== undefined) this.#tellCandidates(this.#record.told);
      },
      selected: (direct) => this.post({ kind: "ice-selected", ice: life, direct }),
      lost: (reason, failed) => this.post({ kind: "ice-lost", ice: life, reason, failed }),
    });
  }

  #addRemoteCandidate(text: string): void {
    const candidate = parseCandidate(text);
    if (candidate) this.#record.ice?.addRemoteCandidate(candidate);
  }

  /** OFFERs may come at any rate; the newest of a burst is answered. */
  #answer(): void {
    const { clock } = this.#deps;
    const wait = this.#record.answeredAt === undefined ? 0 : this.#record.answeredAt + ANSWER_INTERVAL - clock.now();
    if (wait > 0) {
      this.#record.answerTimer?.cancel();
      this.#own.answerTimer = clock.after(wait, () => this.#answer());
      return;
    }
    this.#own.answeredAt = clock.now();
    this.#sendHalf("answer");
  }

  #sendHalf(type: "offer" | "answer"): void {
    const state = this.#state;
    if (state.kind !== "awake") return;
    const { relay, version, wireguardPort, ice: direct } = this.#deps;
    // A remote that is known to have no ICE is told the same of us (signal document, section 2.6).
    const ice = state.ice > 0 && !(state.remote !== undefined && state.remote.credentials === undefined);
    const candidates = this.#record.candidates;
    const body = createOfferBody(type, {
      listenPort: wireguardPort,
      version,
      perch: { candidates: ice ? candidates : [], nat: direct.nat, agreesOnSleep: true },
      ...(relay.home && { relay: relay.home }),
      ...(ice && { credentials: state.local.credentials, sessionId: state.local.id }),
    });
    if (type === "offer") this.#own.offeredAt = this.#deps.clock.now();
    this.#story.note(`${type}-sent`, relay.home?.instanceUrl ?? "no relay");
    const sent = this.#deps.signal.send(this.key, body);
    this.#own.told = this.#record.candidates.length;
    // A stock agent has no ICE agent to put candidates into before it read OFFER or ANSWER: only then send them (W2).
    sent.then(
      ({ delivered }) => {
        this.#own.delivered = delivered;
        if (delivered === false) this.note("signal", "the peer is not connected to the signal server");
        if (ice && !this.#record.remoteIsPerch && candidates === this.#record.candidates) this.#tellCandidates(0);
      },
      (error: unknown) => this.#deps.log.debug("signal message not sent", { peer: this.info.fqdn, err: error }),
    );
  }

  /** Sends candidates as messages of their own. */
  #tellCandidates(from: number): void {
    for (const payload of this.#record.candidates.slice(from)) void this.#send(createCandidateBody(payload));
    this.#own.told = this.#record.candidates.length;
  }

  /** False when the signal server did not get it. */
  async #send(body: Body): Promise<boolean> {
    const { signal, log } = this.#deps;
    try {
      const { failure: err } = await signal.send(this.key, body);
      if (err) log.debug("signal message not sent", { peer: this.info.fqdn, err });
      return err === undefined;
    } catch (err) {
      log.debug("signal message not sent", { peer: this.info.fqdn, err });
      return false;
    }
  }

  #arm(): void {
    const at = nextDeadline(this.#state);
    if (at === this.#record.timerAt) return;
    this.#record.timer?.cancel();
    this.#own.timerAt = at;
    const { clock } = this.#deps;
    this.#own.timer =
      at === undefined
        ? undefined
        : clock.after(Math.max(0, at - clock.now()), () => {
            this.#own.timerAt = undefined;
            this.post({ kind: "tick" });
          });
  }
}
