import type { PublicKey } from "#base/keys.ts";
import type { Clock, Millis } from "#base/time.ts";
import { type Body, Body_Type } from "#gen/signal_pb.ts";
import type { DeviceEvents, WireGuardDevice } from "#wireguard/device.ts";
import { AgentError } from "../errors.ts";
import { PeerConnection, type PeerDeps, type PeerInfo } from "../peer/peer-connection.ts";
import { decideLazy, LAZY, type LazyDecision } from "./lazy/policy.ts";
import { CALLBACKS_PER_TURN, PacedClock } from "./paced-clock.ts";
import { Sleeper } from "./sleeper.ts";
import { WakeAdmission, type WakeOrder, type WakeStatus } from "./wake-admission.ts";
import { describeCause } from "./wake-cause.ts";
import { WakeJudge } from "./wake-judge.ts";
import type { WakePriority } from "./wake-queue.ts";

/** How long the end waits for its last messages. */
const FAREWELL_PATIENCE: Millis = 500;

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

/**
 * Who is lazy, permanent, awake: the one place that decides about connections. It turns what the device, signal and
 * relay report into events of the peers, and has wakes admitted (WakeAdmission) and sleep decided (Sleeper). Every call
 * costs O(peers concerned).
 */
export class ConnectionManager {
  readonly #deps: ConnectionManagerDeps;
  /** As `#deps`, with signal messages counted. */
  readonly #peerDeps: PeerDeps;
  readonly #connections = new Map<PublicKey, PeerConnection>();
  /** Of those that are not simply lazy: in a large network nearly all are. */
  readonly #decisions = new Map<PublicKey, LazyDecision>();
  readonly #awake = new Set<PeerConnection>();
  readonly #sleeper: Sleeper;
  readonly #wakes: WakeAdmission;
  readonly #judge: WakeJudge;
  readonly #pinned: Set<PublicKey>;
  /** Members of one high-availability route group wake together; group id -> keys, key -> group ids. */
  #groups = new Map<string, ReadonlySet<PublicKey>>();
  #groupsOf = new Map<PublicKey, readonly string[]>();
  #forwardTargets: ReadonlySet<PublicKey> = new Set();
  #lazy: boolean;
  readonly #unsubscribe: (() => void)[] = [];

  constructor(deps: ConnectionManagerDeps, options: ConnectionManagerOptions, lazy: boolean) {
    this.#deps = deps;
    this.#lazy = lazy;
    this.#pinned = new Set(options.pinned);
    const { clock, device } = deps;
    this.#sleeper = new Sleeper(
      {
        clock,
        device,
        find: (key) => this.find(key),
        isLazy: (key) => this.decisionOf(key).lazy,
        matesOf: (key) => this.#groupMates(key),
        sleep: (key, reason) => this.#putToSleep(this.#known(key), reason),
        post: (key, event) => this.#post(key, event),
      },
      options.inactivityThreshold,
    );
    this.#wakes = new WakeAdmission({
      clock: deps.clock,
      device: deps.device,
      start: (key, order) => this.#post(key, { kind: "wake", ...order }),
      turnedAway: (key) => {
        // A permanent peer opens without anybody who waits for it.
        const { lazy, why } = this.decisionOf(key);
        if (!lazy) this.#request(key, "background", { cause: why, initiate: true });
      },
      note: (key, event, detail) => this.find(key)?.note(event, detail),
    });
    this.#judge = new WakeJudge({
      clock: deps.clock,
      find: (key) => this.find(key),
      decide: (key) => this.#decideAnew(key),
    });
    this.#peerDeps = {
      ...deps,
      clock: new PacedClock(deps.clock),
      signal: this.#countingSignal(deps.signal),
      changed: (connection) => {
        // Who is away holds nobody up; the wake goes on by itself.
        if (connection.isRemoteAway) this.#wakes.release(connection.key);
        deps.changed(connection);
      },
    };
    this.#listen(deps.device);
  }

  get peers(): Iterable<PeerConnection> {
    return this.#connections.values();
  }

  /** Those that do not sleep, few where most peers are lazy. */
  get awakePeers(): Iterable<PeerConnection> {
    return this.#awake;
  }

  get size(): number {
    return this.#connections.size;
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
    return this.#connections.get(key);
  }

  decisionOf(key: PublicKey): LazyDecision {
    if (!this.#connections.has(key)) return { lazy: false, why: "not in the network" };
    return this.#decisions.get(key) ?? LAZY;
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
      const connection = this.#connections.get(info.key);
      if (!connection) continue;
      const sameVersion = connection.info.agentVersion === info.agentVersion;
      connection.update(info);
      if (!sameVersion) this.#decide(connection);
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
        this.#request(key, "background", { cause: "its route group is awake", initiate: true });
      }
    }
  }

  setForwardTargets(keys: ReadonlySet<PublicKey>): void {
    const before = this.#forwardTargets;
    this.#forwardTargets = keys;
    for (const key of new Set([...before, ...keys])) {
      const connection = this.#connections.get(key);
      if (connection && before.has(key) !== keys.has(key)) this.#decide(connection);
    }
  }

  /** Switches lazy connections live: no connected peer is dropped; permanent ones open, freed ones are watched. */
  setLazy(on: boolean): void {
    if (this.#lazy === on) return;
    this.#lazy = on;
    for (const connection of this.#connections.values()) this.#decide(connection);
    this.#deps.changed(undefined);
  }

  wake(key: PublicKey, cause: string): void {
    this.#known(key);
    this.#request(key, "interactive", { cause, initiate: true });
  }

  /**
   * Somebody asked for the address of a peer by name and will want it at once. True when the peer slept; it is woken only with
   * `act`, behind those for which packets wait.
   */
  wakeByName(key: PublicKey, name: string, act: boolean): boolean {
    const connection = this.find(key);
    if (!connection || connection.awake) return false;
    if (act) this.#request(key, "background", { cause: `dns question for ${name}`, initiate: true });
    return true;
  }

  /**
   * Puts a peer to sleep: now, or once a Perch agent at the other end agrees. A permanent one is refused: AgentError
   * `peer-unknown` or `setting-invalid`.
   */
  sleep(key: PublicKey, reason: string): void {
    const connection = this.#known(key);
    const { lazy, why } = this.decisionOf(key);
    if (!lazy) throw new AgentError("setting-invalid", `${connection.info.fqdn} stays connected: ${why}`);
    if (connection.awake) return this.#sleeper.ask(connection, reason);
    // A wake that still waited for its turn is off; its packets must be able to ask again.
    this.#wakes.cancel(key);
    this.#deps.device.declineWake(key);
  }

  pin(key: PublicKey, pinned: boolean): void {
    const connection = this.#known(key);
    if (pinned) this.#pinned.add(key);
    else this.#pinned.delete(key);
    this.#decide(connection);
    this.#deps.changed(connection);
  }

  /** A decrypted signal message. Senders outside the map are ignored. */
  receiveSignal(from: PublicKey, body: Body): void {
    const connection = this.#connections.get(from);
    if (!connection) return;
    if (body.type === Body_Type.GO_IDLE) return this.#sleeper.receive(connection, body);
    if (body.type === Body_Type.OFFER && !connection.awake) this.#sleeper.noteOffer(connection);
    this.#observe(connection, () => connection.receive(body));
  }

  /** A datagram from a relay; unknown senders are dropped by the device. */
  receiveRelayed(from: PublicKey, datagram: Uint8Array): void {
    if (this.#connections.has(from)) this.#deps.device.injectRelayed(from, datagram);
  }

  /** A relay came or went: awake peers look whether theirs is concerned. */
  relayChanged(): void {
    for (const connection of [...this.#awake]) {
      connection.post({ kind: "relay", up: this.#deps.relay.isUp(connection.key) });
    }
  }

  /** Signal is there again after it was away. */
  signalReturned(): void {
    this.#sleeper.signalReturned();
    this.#tellAwake((connection) => {
      if (!this.#sleeper.isProposing(connection.key)) connection.post({ kind: "signal-back" });
    });
  }

  networkChanged(): void {
    this.#tellAwake((connection) => connection.post({ kind: "network-changed" }));
  }

  /** Our packets leave from another address than before: do they still arrive? */
  checkPaths(): void {
    this.#tellAwake((connection) => connection.post({ kind: "check-path" }));
  }

  /** Something of our side is better than when searches for direct ways failed. */
  searchAgain(reason: string): void {
    this.#tellAwake((connection) => connection.post({ kind: "search-again", reason }));
  }

  /** The first few at once, the others as the peers' clock finds turns for them: each may seal and send messages. */
  #tellAwake(tell: (connection: PeerConnection) => void): void {
    const awake = [...this.#awake];
    for (const connection of awake.slice(0, CALLBACKS_PER_TURN)) tell(connection);
    for (const connection of awake.slice(CALLBACKS_PER_TURN)) {
      this.#peerDeps.clock.after(0, () => {
        if (this.#awake.has(connection)) tell(connection);
      });
    }
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
    this.#sleeper.close();
    this.#wakes.close();
    this.#judge.close();
    for (const connection of this.#connections.values()) connection.close();
    this.#connections.clear();
    this.#decisions.clear();
    this.#awake.clear();
  }

  #known(key: PublicKey): PeerConnection {
    const connection = this.#connections.get(key);
    if (!connection) throw new AgentError("peer-unknown", `no peer with the key ${key} in this network`);
    return connection;
  }

  #listen(device: WireGuardDevice): void {
    const on = <Name extends keyof DeviceEvents>(name: Name, handle: (payload: DeviceEvents[Name]) => void): void => {
      this.#unsubscribe.push(device.events.on(name, handle));
    };
    on("wake", ({ key, cause }) => {
      const isOurs = cause.kind === "packet" || cause.kind === "activity";
      if (isOurs && !this.find(key)?.awake) {
        if (!this.#connections.has(key)) return;
        if (cause.kind === "packet") this.#wakes.requestByPacket(key, cause.packet);
        else this.#wakes.requestByActivity(key);
        return;
      }
      // A handshake or data that crossed with our GO_IDLE: the other side may have gone to sleep on that since. A handshake
      // of ours beside its own would end one session more than the sender of a packet under way may reckon with.
      const offer = !isOurs && this.#sleeper.hasJustSentIdle(key);
      const initiate = isOurs || (offer && cause.kind === "data");
      this.#request(key, "interactive", { cause: describeCause(cause), initiate, offer });
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
    const connection = this.#connections.get(key);
    if (connection) this.#observe(connection, () => connection.post(event));
  }

  /** Runs something that may wake, prove or end the peer, and keeps the manager's own sets in step with it. */
  #observe(connection: PeerConnection, act: () => void): void {
    const wasAwake = connection.awake;
    act();
    if (connection.awake && !wasAwake) this.#noteAwake(connection);
    if (connection.status !== "connecting") this.#wakes.release(connection.key);
    if (connection.status === "connected") this.#judge.noteProven(connection.key);
  }

  #add(info: PeerInfo): void {
    if (this.#connections.has(info.key)) return;
    const decision = this.#lazyDecision(info);
    const connection = new PeerConnection(this.#peerDeps, info, decision.lazy ? "asleep" : "waiting to connect");
    this.#connections.set(info.key, connection);
    this.#keepDecision(info.key, decision);
    this.#deps.changed(connection);
    if (!decision.lazy) this.#request(info.key, "background", { cause: decision.why, initiate: true });
  }

  #remove(key: PublicKey): void {
    const connection = this.#connections.get(key);
    if (!connection) return;
    this.#connections.delete(key);
    this.#decisions.delete(key);
    this.#awake.delete(connection);
    this.#sleeper.forget(key);
    this.#wakes.cancel(key);
    this.#judge.forget(key);
    connection.close();
    this.#deps.device.removePeer(key);
    this.#deps.changed(connection);
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

  #keepDecision(key: PublicKey, decision: LazyDecision): void {
    if (decision === LAZY) this.#decisions.delete(key);
    else this.#decisions.set(key, decision);
  }

  #decide(connection: PeerConnection): void {
    const decision = this.#lazyDecision(connection.info);
    this.#keepDecision(connection.key, decision);
    if (!decision.lazy) {
      this.#sleeper.unwatch(connection.key);
      if (!connection.awake) this.#request(connection.key, "background", { cause: decision.why, initiate: true });
    } else if (connection.awake) {
      this.#sleeper.watch(connection.key);
    } else if (!this.#groupMates(connection.key).some((mate) => mate.awake)) {
      this.#wakes.withdraw(connection.key);
    }
  }

  #decideAnew(key: PublicKey): void {
    const connection = this.#connections.get(key);
    if (!connection) return;
    this.#decide(connection);
    this.#deps.changed(connection);
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

  #request(key: PublicKey, priority: WakePriority, order: WakeOrder): void {
    const connection = this.#connections.get(key);
    if (!connection) return;
    if (connection.awake) {
      // An OFFER was faster: the packet that waits still wants its handshake at once.
      if (order.initiate) this.#observe(connection, () => connection.post({ kind: "wake", ...order }));
      return;
    }
    const isRouter = connection.info.routes.length > 0;
    this.#wakes.request(key, priority === "background" && isRouter ? "router" : priority, order);
  }

  #noteAwake(connection: PeerConnection): void {
    this.#awake.add(connection);
    this.#wakes.noteAwake(connection.key);
    this.#judge.noteAwake(connection.key);
    this.#sleeper.noteAwake(connection.key);
    if (this.decisionOf(connection.key).lazy) this.#sleeper.watch(connection.key);
    for (const mate of this.#groupMates(connection.key)) {
      if (!mate.awake)
        this.#request(mate.key, "background", {
          cause: `${connection.info.fqdn} of its route group is awake`,
          initiate: true,
        });
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

  #putToSleep(connection: PeerConnection, reason: string): void {
    this.#sleeper.noteAsleep(connection.key);
    this.#wakes.cancel(connection.key);
    this.#judge.noteAsleep(connection.key);
    this.#awake.delete(connection);
    connection.post({ kind: "sleep", reason });
  }
}
