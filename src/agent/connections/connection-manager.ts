import type { PublicKey } from "#base/keys.ts";
import type { Clock, Millis } from "#base/time.ts";
import { type Body, Body_Type } from "#gen/signal_pb.ts";
import type { DeviceEvents, WireGuardDevice } from "#wireguard/device.ts";
import { AgentError } from "../errors.ts";
import { PeerConnection, type PeerDeps, type PeerInfo } from "../peer/peer-connection.ts";
import { IdleClock } from "./lazy/idle-clock.ts";
import { decideLazy, type LazyDecision } from "./lazy/policy.ts";
import { WakeAdmission, type WakeStatus } from "./wake-admission.ts";
import { describeCause } from "./wake-cause.ts";
import { WakeJudge } from "./wake-judge.ts";
import type { WakePriority } from "./wake-queue.ts";

/**
 * A GO_IDLE that finds us this soon after a wake or after traffic of ours crossed with it: the remote is wanted. It comes
 * back at once, instead of when our packet or the loss of its paths is noticed.
 */
const IDLE_CROSSING: Millis = 2_000;
/** Packets that wait for a session are given up after this long; until then their peer does not sleep by itself. */
const WAITING_PATIENCE: Millis = 90_000;
/** How often such a peer is looked at. */
const WAITING_LOOK: Millis = 5_000;
/** After our GO_IDLE a peer that is back within this time keeps the connection alive itself (signal document, W6). */
const BOUNCE_WINDOW: Millis = 60_000;
/** How long the end waits for its last messages. */
const FAREWELL_PATIENCE: Millis = 500;
const MAX_SLEEP_BACKOFF: Millis = 24 * 3_600_000;

export interface ConnectionManagerDeps extends Omit<PeerDeps, "changed"> {
  readonly clock: Clock;
  readonly device: WireGuardDevice;
  /** Something that status shows of this peer changed, if only that it came or went; undefined: of all. */
  readonly changed: (peer: PeerConnection | undefined) => void;
}

export interface ConnectionManagerOptions {
  /** A lazy peer without user traffic for this long goes to sleep. */
  readonly inactivityThreshold: Millis;
  readonly pinned: ReadonlySet<PublicKey>;
}

/** A peer of the map as the manager keeps it. */
interface Member {
  readonly connection: PeerConnection;
  decision: LazyDecision;
  /** When we last told it GO_IDLE, and how long we wait now that it came back at once. */
  sentIdleAt: Millis | undefined;
  sleepBackoff: Millis;
}

/**
 * Who is lazy, permanent, awake: the one place that decides about connections. It turns what the device, signal and
 * relay report into events of the peers, admits wakes, and puts peers to sleep. Every call costs O(peers concerned).
 */
export class ConnectionManager {
  readonly #deps: ConnectionManagerDeps;
  /** As `#deps`, with signal messages counted. */
  readonly #peerDeps: PeerDeps;
  readonly #members = new Map<PublicKey, Member>();
  readonly #awake = new Set<PeerConnection>();
  readonly #idle: IdleClock<PublicKey>;
  readonly #wakes: WakeAdmission;
  readonly #judge: WakeJudge;
  readonly #pinned: Set<PublicKey>;
  readonly #threshold: Millis;
  /** Members of one high-availability route group wake together; group id -> keys, key -> group ids. */
  #groups = new Map<string, ReadonlySet<PublicKey>>();
  #groupsOf = new Map<PublicKey, readonly string[]>();
  #forwardTargets: ReadonlySet<PublicKey> = new Set();
  #lazy: boolean;
  readonly #unsubscribe: (() => void)[] = [];

  constructor(deps: ConnectionManagerDeps, options: ConnectionManagerOptions, lazy: boolean) {
    this.#deps = deps;
    this.#lazy = lazy;
    this.#threshold = options.inactivityThreshold;
    this.#pinned = new Set(options.pinned);
    this.#idle = new IdleClock(deps.clock, (key, now) => this.#considerSleep(key, now));
    this.#wakes = new WakeAdmission({
      clock: deps.clock,
      device: deps.device,
      start: (key, order) => this.#post(key, { kind: "wake", ...order }),
      note: (key, event, detail) => this.find(key)?.note(event, detail),
    });
    this.#judge = new WakeJudge({
      clock: deps.clock,
      find: (key) => this.find(key),
      decide: (key) => this.#decideAnew(key),
    });
    this.#peerDeps = { ...deps, signal: this.#countingSignal(deps.signal) };
    this.#listen(deps.device);
  }

  get peers(): Iterable<PeerConnection> {
    return this.#members.values().map((member) => member.connection);
  }

  /** Those that do not sleep, few where most peers are lazy. */
  get awakePeers(): Iterable<PeerConnection> {
    return this.#awake;
  }

  get size(): number {
    return this.#members.size;
  }

  get lazy(): boolean {
    return this.#lazy;
  }

  get waitingWakes(): number {
    return this.#wakes.waiting;
  }

  /** Wakes under way, waiting and held back, and peers kept connected because theirs failed. */
  get wakes(): WakeStatus & { readonly kept: number } {
    return { ...this.#wakes.status, kept: this.#judge.kept };
  }

  /** Why a sleeping peer is not woken although packets wait for it; undefined when none do. */
  whyHeld(key: PublicKey): string | undefined {
    return this.#wakes.whyHeld(key);
  }

  find(key: PublicKey): PeerConnection | undefined {
    return this.#members.get(key)?.connection;
  }

  decisionOf(key: PublicKey): LazyDecision {
    return this.#members.get(key)?.decision ?? { lazy: false, why: "not in the network" };
  }

  isPinned(key: PublicKey): boolean {
    return this.#pinned.has(key);
  }

  /** Takes the difference of two network maps. A peer whose version changed is decided anew. */
  apply(change: {
    readonly removed: readonly PublicKey[];
    readonly changed: readonly PeerInfo[];
    readonly added: readonly PeerInfo[];
  }): void {
    for (const key of change.removed) this.#remove(key);
    for (const info of change.changed) {
      const member = this.#members.get(info.key);
      if (!member) continue;
      const sameVersion = member.connection.info.agentVersion === info.agentVersion;
      member.connection.update(info);
      if (!sameVersion) this.#decide(member);
    }
    for (const info of change.added) this.#add(info);
  }

  /** Groups of peers that serve the same routed network; replaces the earlier ones. */
  setGroups(groups: ReadonlyMap<string, ReadonlySet<PublicKey>>): void {
    const before = this.#groups;
    this.#groups = new Map(groups);
    const groupsOf = new Map<PublicKey, string[]>();
    for (const [id, keys] of groups) {
      if (keys.size < 2) continue;
      for (const key of keys) groupsOf.set(key, [...(groupsOf.get(key) ?? []), id]);
    }
    this.#groupsOf = groupsOf;
    // A member that joined while another is awake opens at once.
    for (const [key, ids] of groupsOf) {
      const connection = this.find(key);
      const joined = ids.some((id) => !before.get(id)?.has(key));
      if (joined && connection && !connection.awake && this.#groupMates(key).some((mate) => mate.awake)) {
        this.#request(key, "background", "its route group is awake", true);
      }
    }
  }

  setForwardTargets(keys: ReadonlySet<PublicKey>): void {
    const before = this.#forwardTargets;
    this.#forwardTargets = keys;
    for (const key of new Set([...before, ...keys])) {
      const member = this.#members.get(key);
      if (member && before.has(key) !== keys.has(key)) this.#decide(member);
    }
  }

  /** Switches lazy connections live: no connected peer is dropped; permanent ones open, freed ones are watched. */
  setLazy(on: boolean): void {
    if (this.#lazy === on) return;
    this.#lazy = on;
    for (const member of this.#members.values()) this.#decide(member);
    this.#deps.changed(undefined);
  }

  wake(key: PublicKey, cause: string): void {
    this.#member(key);
    this.#request(key, "interactive", cause, true);
  }

  /** Puts a peer to sleep now. A permanent one is refused: AgentError `peer-unknown` or `setting-invalid`. */
  sleep(key: PublicKey, reason: string): void {
    const member = this.#member(key);
    if (!member.decision.lazy) {
      throw new AgentError("setting-invalid", `${member.connection.info.fqdn} stays connected: ${member.decision.why}`);
    }
    this.#putToSleep(member, reason, true);
  }

  pin(key: PublicKey, pinned: boolean): void {
    const member = this.#member(key);
    if (pinned) this.#pinned.add(key);
    else this.#pinned.delete(key);
    this.#decide(member);
    this.#deps.changed(member.connection);
  }

  /** A decrypted signal message. Senders outside the map are ignored. */
  receiveSignal(from: PublicKey, body: Body): void {
    const member = this.#members.get(from);
    if (!member) return;
    if (body.type === Body_Type.GO_IDLE) {
      if (!member.connection.awake) return;
      if (member.decision.lazy && !this.#isWanted(member.connection)) {
        this.#putToSleep(member, "the other side went idle", false);
      } else {
        this.#observe(member, () => member.connection.post({ kind: "remote-idle" }));
      }
      return;
    }
    if (body.type === Body_Type.OFFER && !member.connection.awake) this.#noteBounce(member);
    this.#observe(member, () => member.connection.receive(body));
  }

  /** A datagram from a relay; unknown senders are dropped by the device. */
  receiveRelayed(from: PublicKey, datagram: Uint8Array): void {
    if (this.#members.has(from)) this.#deps.device.injectRelayed(from, datagram);
  }

  /** A relay came or went: awake peers look whether theirs is concerned. */
  relayChanged(): void {
    for (const connection of [...this.#awake]) {
      connection.post({ kind: "relay", up: this.#deps.relay.isUp(connection.key) });
    }
  }

  /** Signal is there again after it was away. */
  signalReturned(): void {
    for (const connection of [...this.#awake]) connection.post({ kind: "signal-back" });
  }

  networkChanged(): void {
    for (const connection of [...this.#awake]) connection.post({ kind: "network-changed" });
  }

  /**
   * Tells every awake peer that this agent goes away, so that it sleeps instead of searching. Resolves when the messages
   * are out, after FAREWELL_PATIENCE at the latest; `close` comes next.
   */
  async farewell(): Promise<void> {
    const { clock } = this.#deps;
    const sent = [...this.#awake].map((connection) => connection.sayGoIdle());
    if (sent.length === 0) return;
    const { promise: patience, resolve } = Promise.withResolvers<void>();
    const timer = clock.after(FAREWELL_PATIENCE, resolve);
    await Promise.race([Promise.all(sent), patience]);
    timer.cancel();
  }

  close(): void {
    for (const unsubscribe of this.#unsubscribe) unsubscribe();
    this.#idle.close();
    this.#wakes.close();
    this.#judge.close();
    for (const member of this.#members.values()) member.connection.close();
    this.#members.clear();
    this.#awake.clear();
  }

  #member(key: PublicKey): Member {
    const member = this.#members.get(key);
    if (!member) throw new AgentError("peer-unknown", `no peer with the key ${key} in this network`);
    return member;
  }

  #listen(device: WireGuardDevice): void {
    const on = <Name extends keyof DeviceEvents>(name: Name, handle: (payload: DeviceEvents[Name]) => void): void => {
      this.#unsubscribe.push(device.events.on(name, handle));
    };
    on("wake", ({ key, cause }) => {
      if (cause.kind === "packet" && !this.find(key)?.awake) {
        if (this.#members.has(key)) this.#wakes.requestByPacket(key, cause.packet);
        return;
      }
      // A handshake or data that crossed with our GO_IDLE: the other side may have gone to sleep on that since.
      const initiate = cause.kind === "packet" || this.#hasJustSentIdle(key);
      this.#request(key, "interactive", describeCause(cause), initiate);
    });
    on("established", ({ key, source }) => this.#post(key, { kind: "established", source }));
    on("path-hint", ({ key, source }) => this.#post(key, { kind: "path-hint", source }));
    on("silent", ({ key }) => this.#post(key, { kind: "silent" }));
    on("path-error", ({ key, endpoint, code }) => this.#post(key, { kind: "path-error", endpoint, code }));
    on("handshake-failed", ({ key, droppedBytes }) => {
      this.find(key)?.note("handshake-failed", `no answer for 90 s, ${droppedBytes} waiting bytes dropped`);
    });
  }

  #post(key: PublicKey, event: Parameters<PeerConnection["post"]>[0]): void {
    const member = this.#members.get(key);
    if (member) this.#observe(member, () => member.connection.post(event));
  }

  /** Runs something that may wake, prove or end the peer, and keeps the manager's own sets in step with it. */
  #observe(member: Member, act: () => void): void {
    const { connection } = member;
    const wasAwake = connection.awake;
    act();
    if (connection.awake && !wasAwake) this.#noteAwake(member);
    if (connection.status !== "connecting") this.#wakes.release(connection.key);
    if (connection.status === "connected") this.#judge.noteProven(connection.key);
  }

  #add(info: PeerInfo): void {
    if (this.#members.has(info.key)) return;
    const decision = this.#lazyDecision(info);
    const connection = new PeerConnection(this.#peerDeps, info, decision.lazy ? "asleep" : "waiting to connect");
    this.#members.set(info.key, { connection, decision, sentIdleAt: undefined, sleepBackoff: 0 });
    this.#deps.changed(connection);
    if (!decision.lazy) this.#request(info.key, "background", decision.why, true);
  }

  #remove(key: PublicKey): void {
    const member = this.#members.get(key);
    if (!member) return;
    this.#members.delete(key);
    this.#awake.delete(member.connection);
    this.#idle.unwatch(key);
    this.#wakes.cancel(key);
    this.#judge.forget(key);
    member.connection.close();
    this.#deps.device.removePeer(key);
    this.#deps.changed(member.connection);
  }

  #lazyDecision(info: PeerInfo): LazyDecision {
    return decideLazy({
      enabled: this.#lazy,
      agentVersion: info.agentVersion,
      pinned: this.#pinned.has(info.key),
      forwardTarget: this.#forwardTargets.has(info.key),
      kept: this.#judge.whyKept(info.key),
    });
  }

  #decide(member: Member): void {
    const { connection } = member;
    member.decision = this.#lazyDecision(connection.info);
    if (!member.decision.lazy) {
      this.#idle.unwatch(connection.key);
      if (!connection.awake) this.#request(connection.key, "background", member.decision.why, true);
    } else if (connection.awake) {
      this.#idle.watch(connection.key, this.#deps.clock.now() + this.#threshold);
    }
  }

  #decideAnew(key: PublicKey): void {
    const member = this.#members.get(key);
    if (!member) return;
    this.#decide(member);
    this.#deps.changed(member.connection);
  }

  #countingSignal(signal: PeerDeps["signal"]): PeerDeps["signal"] {
    return {
      send: (to, body) => {
        this.#wakes.noteMessage();
        return signal.send(to, body);
      },
      probe: () => signal.probe(),
    };
  }

  #request(key: PublicKey, priority: WakePriority, cause: string, initiate: boolean): void {
    const member = this.#members.get(key);
    if (!member) return;
    if (member.connection.awake) {
      // An OFFER was faster: the packet that waits still wants its handshake at once.
      if (initiate) this.#observe(member, () => member.connection.post({ kind: "wake", cause, initiate }));
      return;
    }
    const isRouter = member.connection.info.routes.length > 0;
    this.#wakes.request(key, priority === "background" && isRouter ? "router" : priority, { cause, initiate });
  }

  #noteAwake(member: Member): void {
    const { connection } = member;
    this.#awake.add(connection);
    this.#wakes.noteAwake(connection.key);
    this.#judge.noteAwake(connection.key);
    if (member.decision.lazy)
      this.#idle.watch(connection.key, this.#deps.clock.now() + this.#threshold + member.sleepBackoff);
    for (const mate of this.#groupMates(connection.key)) {
      if (!mate.awake)
        this.#request(mate.key, "background", `${connection.info.fqdn} of its route group is awake`, true);
    }
  }

  #groupMates(key: PublicKey): PeerConnection[] {
    const mates = new Set<PeerConnection>();
    for (const id of this.#groupsOf.get(key) ?? []) {
      for (const mate of this.#groups.get(id) ?? []) {
        const connection = mate === key ? undefined : this.find(mate);
        if (connection) mates.add(connection);
      }
    }
    return [...mates];
  }

  /** Looks whether an awake peer has been idle for long enough; the next instant worth looking otherwise. */
  #considerSleep(key: PublicKey, now: Millis): Millis | undefined {
    const member = this.#members.get(key);
    if (!member?.connection.awake || !member.decision.lazy) return undefined;
    const waiting = (this.#deps.device.peerStats(key)?.stagedBytes ?? 0) > 0;
    const idleFor = Math.max(this.#threshold + member.sleepBackoff, waiting ? WAITING_PATIENCE : 0);
    const last = Math.max(
      this.#lastActivity(member.connection),
      ...this.#groupMates(key).map((mate) => this.#lastActivity(mate)),
    );
    // What waits may leave at any moment; then the threshold counts.
    if (last + idleFor > now) return waiting ? Math.min(last + idleFor, now + WAITING_LOOK) : last + idleFor;
    this.#putToSleep(member, `no traffic for ${describeDuration(now - last)}`, true);
    return undefined;
  }

  /** User traffic in either direction; the wake itself counts, so that a peer stays for one threshold at least (W8). */
  #lastActivity(connection: PeerConnection): Millis {
    if (!connection.awake) return 0;
    const stats = this.#deps.device.peerStats(connection.key);
    return Math.max(connection.wokeAt ?? 0, stats?.lastDataRx ?? 0, stats?.lastDataTx ?? 0);
  }

  #hasJustSentIdle(key: PublicKey): boolean {
    const at = this.#members.get(key)?.sentIdleAt;
    return at !== undefined && this.#deps.clock.now() - at < IDLE_CROSSING;
  }

  #isWanted(connection: PeerConnection): boolean {
    const { lastDataTx = 0, stagedBytes = 0 } = this.#deps.device.peerStats(connection.key) ?? {};
    if (stagedBytes > 0) return true;
    return this.#deps.clock.now() - Math.max(connection.wokeAt ?? 0, lastDataTx) < IDLE_CROSSING;
  }

  #putToSleep(member: Member, reason: string, tell: boolean): void {
    const { connection } = member;
    this.#idle.unwatch(connection.key);
    this.#wakes.cancel(connection.key);
    this.#judge.noteAsleep(connection.key);
    this.#awake.delete(connection);
    // A wake that still waited for its turn is off; its packets must be able to ask again.
    if (!connection.awake) return this.#deps.device.declineWake(connection.key);
    member.sentIdleAt = tell ? this.#deps.clock.now() : undefined;
    connection.post({ kind: "sleep", reason, tell });
  }

  /** The other side came back right after our GO_IDLE without traffic: it wants the connection; try again ever later. */
  #noteBounce(member: Member): void {
    const now = this.#deps.clock.now();
    const bounced = member.sentIdleAt !== undefined && now - member.sentIdleAt < BOUNCE_WINDOW;
    member.sleepBackoff = bounced ? Math.min(MAX_SLEEP_BACKOFF, Math.max(this.#threshold, member.sleepBackoff * 2)) : 0;
    if (bounced) member.connection.note("kept-alive", "the other side reconnects after every sleep");
  }
}

function describeDuration(ms: Millis): string {
  if (ms < 60_000) return `${Math.round(ms / 1000)} s`;
  return ms < 3_600_000 ? `${Math.round(ms / 60_000)} min` : `${(ms / 3_600_000).toFixed(1)} h`;
}
