import { DeadlineTimer } from "#base/deadline-timer.ts";
import { Emitter } from "#base/emitter.ts";
import { unreachable } from "#base/errors.ts";
import type { Endpoint, IpAddress, Prefix } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis } from "#base/time.ts";
import { CaptureHost, type CaptureOptions, type PacketCapture } from "./capture.ts";
import { REJECT_AFTER_TIME } from "./constants.ts";
import type { EmbeddedDeviceDeps, EmbeddedDeviceOptions } from "./create-embedded-device.ts";
import type {
  DeviceEvents,
  DevicePath,
  DevicePeerConfig,
  DevicePeerStats,
  PacketSource,
  WireGuardDevice,
} from "./device.ts";
import { checkKeepalive, DeviceError, TRANSIENT_ERRORS } from "./device-error.ts";
import { packetSource, samePath } from "./device-path.ts";
import type { FilterRules, SourceRule } from "./filter.ts";
import type { SessionKeys } from "./handshake.ts";
import type { HandshakeAction } from "./handshake-action.ts";
import { HandshakeManager } from "./handshake-manager.ts";
import { INITIATION_BYTES, isHandshake, RESPONSE_BYTES } from "./messages.ts";
import { NO_PATH, NO_PATHS, type PeerRow, PeerTable, samePresharedKey, useOf } from "./peer-table.ts";
import type { Plane } from "./plane.ts";
import { Quota } from "./quota.ts";
import { restorePeers } from "./restore-peers.ts";

/** Most peers unless the options say otherwise. */
export const DEFAULT_PEER_CAPACITY = 131_072;
/** Queue of handshake messages this full: "under load" (paper, section 5.3; the share that other implementations use). */
const BUSY_FROM = 1 / 8;
/** Relayed handshake messages in 10 ms that are handled on the spot. */
const RELAYED_HANDSHAKES = 8;
/** An initiation younger than this is worth sending again as it is over a path that came up meanwhile. */
const WORTH_REPEATING = 1_000;
/** Initiations made in one turn after the worker died: each costs a third of a millisecond, and answers come meanwhile. */
const HANDSHAKES_PER_TURN = 32;

/**
 * The device interface over the data worker and the handshake manager. Both know peers by slot; this class knows which
 * key has which slot, decides where handshake messages go, and turns what happens into events.
 *
 *   caller --- setPeer, setPath, initiate --->  EmbeddedDevice  --- peers, paths, session keys --->  data worker (TUN, UDP)
 *          <-- wake, established, path-hint --       |   ^      <-- wake, handshake, need-handshake ---
 *                                                    v   | actions
 *                                             HandshakeManager
 */
export class EmbeddedDevice implements WireGuardDevice {
  readonly kind = "embedded";
  readonly publicKey: PublicKey;
  readonly mtu: number;
  readonly events = new Emitter<DeviceEvents>();
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #plane: Plane;
  readonly #handshakes: HandshakeManager;
  readonly #peers: PeerTable;
  readonly #captures: CaptureHost;
  readonly #relayedQuota = new Quota(RELAYED_HANDSHAKES, 10);
  readonly #timer: DeadlineTimer;
  #closing: Promise<void> | undefined;

  constructor(
    deps: EmbeddedDeviceDeps & { readonly plane: Plane; readonly timestampWall?: () => number },
    options: Pick<EmbeddedDeviceOptions, "privateKey" | "mtu" | "handshakeRetry" | "peerCapacity">,
  ) {
    this.#clock = deps.clock;
    this.#log = deps.log;
    this.#plane = deps.plane;
    this.#captures = new CaptureHost(deps);
    this.mtu = options.mtu;
    this.#peers = new PeerTable(options.peerCapacity ?? DEFAULT_PEER_CAPACITY);
    const handshakeDeps = {
      peers: this.#peers,
      wall: deps.timestampWall ?? ((): number => this.#clock.wall()),
      cookieSecretChanged: (secret: Uint8Array) => this.#plane.setCookieSecret(secret),
    };
    this.#handshakes = new HandshakeManager(handshakeDeps, options.privateKey, options.handshakeRetry);
    this.#timer = new DeadlineTimer(deps.clock, () => this.#run(this.#handshakes.tick(this.#clock.now()), {}));
    this.publicKey = this.#handshakes.local.publicKey;
    this.#listen();
  }

  get interfaceName(): string {
    return this.#plane.interfaceName;
  }

  get listenPort(): number {
    return this.#plane.listenPort;
  }

  get features(): readonly string[] {
    return this.#plane.features;
  }

  // Peers

  setPeer(key: PublicKey, config: DevicePeerConfig): void {
    if (this.#closing || key === this.publicKey) return;
    const keepalive = checkKeepalive(config.persistentKeepalive);
    const row = this.#peers.get(key);
    if (!row) {
      this.#addPeer(key, config, keepalive);
      return;
    }
    if (!samePresharedKey(row.presharedKey, config.presharedKey)) row.presharedKey = config.presharedKey;
    this.#setPrefixes(row, config);
    if (row.use.keepalive !== keepalive) {
      useOf(row).keepalive = keepalive;
      this.#plane.setKeepalive(row.slot, keepalive);
    }
    this.#setMode(row, config.mode);
  }

  removePeer(key: PublicKey): void {
    const row = this.#peers.get(key);
    if (!row || this.#closing) return;
    this.#handshakes.removePeer(row.slot);
    this.#plane.removePeer(row.slot);
    this.#captures.notePeerRemoved(row.slot);
    this.#peers.remove(row, this.#clock.now());
    this.#armTimer();
  }

  #addPeer(key: PublicKey, config: DevicePeerConfig, keepalive: number): void {
    const row = this.#peers.add(key, this.#clock.now());
    if (!row) throw new DeviceError("too-many-peers", `the device has ${this.#peers.size} peers and no room for more`);
    row.mode = config.mode;
    if (keepalive !== 0) useOf(row).keepalive = keepalive;
    row.presharedKey = config.presharedKey;
    this.#plane.addPeer(row.slot, { asleep: config.mode === "asleep", keepalive });
    this.#setPrefixes(row, config);
  }

  #setPrefixes(row: PeerRow, config: DevicePeerConfig): void {
    const { added, removed } = this.#peers.setPrefixes(row, config.allowedIps);
    for (const prefix of removed) this.#plane.removePrefix(row.slot, prefix);
    for (const prefix of added) this.#plane.addPrefix(row.slot, prefix);
  }

  declineWake(key: PublicKey): void {
    const row = this.#peers.get(key);
    if (row?.mode === "asleep" && row.use.woken && !this.#closing) this.#enterMode(row, "asleep");
  }

  postponeWake(key: PublicKey, staged: "keep" | "drop"): void {
    const row = this.#peers.get(key);
    if (row?.mode !== "asleep" || this.#closing) return;
    useOf(row).woken = false;
    if (staged === "drop") this.#plane.dropStaged(row.slot);
    this.#plane.rearmWake(row.slot);
  }

  #setMode(row: PeerRow, mode: PeerRow["mode"]): void {
    if (row.mode !== mode) this.#enterMode(row, mode);
  }

  #enterMode(row: PeerRow, mode: PeerRow["mode"]): void {
    row.mode = mode;
    const use = useOf(row);
    const { heard } = use;
    use.woken = false;
    use.path = NO_PATH;
    use.adopted = undefined;
    use.heard = undefined;
    use.initiatePaths = NO_PATHS;
    use.delayedPaths = undefined;
    if (mode === "asleep") {
      this.#handshakes.rest(row.slot);
      this.#armTimer();
    }
    this.#plane.setAsleep(row.slot, mode === "asleep");
    if (mode === "awake" && heard) this.#adopt(row, heard);
  }

  // Paths and handshakes on demand

  setPath(key: PublicKey, path: DevicePath): void {
    const row = this.#peers.get(key);
    if (!row || row.mode === "asleep" || this.#closing) return;
    const use = useOf(row);
    const before = use.adopted ?? use.path;
    use.path = path;
    use.adopted = undefined;
    if (!samePath(before, path)) this.#plane.setPath(row.slot, path);
    if (path.kind === "none") return;
    const now = this.#clock.now();
    if (this.#handshakes.isInFlight(row.slot)) {
      // The answer is awaited over other paths: this one gets the same message, unless that is too old to be of use.
      if (use.sentOver.some((sent) => samePath(sent, path))) return;
      this.#run(this.#handshakes.initiate(row.slot, now, WORTH_REPEATING), { paths: [path] });
    } else if (before.kind === "none" && this.#isWaiting(row)) {
      this.#run(this.#handshakes.initiate(row.slot, now), { paths: [path] });
    }
  }

  initiate(key: PublicKey, paths: readonly DevicePath[]): boolean {
    const row = this.#peers.get(key);
    if (!row || row.mode === "asleep" || this.#closing) return false;
    const use = useOf(row);
    use.initiatePaths = paths.filter((path) => path.kind !== "none");
    const actions = this.#handshakes.initiate(row.slot, this.#clock.now());
    this.#run(actions, { paths: use.initiatePaths });
    return actions.length > 0;
  }

  /** Packets are staged and no session could take them. */
  #isWaiting(row: PeerRow): boolean {
    const { stagedBytes, sessionCreated } = this.#plane.peerCounters(row.slot);
    return stagedBytes > 0 && (sessionCreated === 0 || this.#clock.now() - sessionCreated >= REJECT_AFTER_TIME);
  }

  // Packet filter

  setFilter(rules: FilterRules | undefined): void {
    if (!this.#closing) this.#plane.setFilter(rules);
  }

  setFilterSource(source: Prefix, rules: readonly SourceRule[]): void {
    if (!this.#closing) this.#plane.setFilterSource(source, rules);
  }

  // Datagrams that are not ours to understand

  injectRelayed(key: PublicKey, datagram: Uint8Array): void {
    const row = this.#peers.get(key);
    if (!row || this.#closing) return;
    // Two changes of thread less. Many at once go the way of all others, which notices load.
    if (!isHandshake(datagram) || this.#isBusy || !this.#relayedQuota.take(this.#clock.now()))
      return this.#plane.injectRelayed(row.slot, datagram);
    this.#run(this.#handshakes.receive(datagram, { kind: "relay", slot: row.slot }, this.#clock.now(), false), {});
    this.#relayedQuota.noteDone(this.#clock.now());
  }

  sendDatagram(datagram: Uint8Array, to: Endpoint, from?: Endpoint): void {
    this.#plane.sendDatagram(datagram, to, from);
  }

  // Counters and packets to look at

  peerStats(key: PublicKey): DevicePeerStats | undefined {
    const row = this.#peers.get(key);
    return row && this.#stats(row);
  }

  allPeerStats(): Map<PublicKey, DevicePeerStats> {
    const all = new Map<PublicKey, DevicePeerStats>();
    for (const row of this.#peers.rows()) all.set(row.key, this.#stats(row));
    return all;
  }

  counters(): ReadonlyMap<string, number> {
    return new Map<string, number>([
      ...this.#plane.counters(),
      ...this.#handshakes.counters(),
      ["peers", this.#peers.size],
      ["peers-in-contact", this.#handshakes.contacts],
    ]);
  }

  isWorking(): boolean {
    return this.#plane.isWorking();
  }

  startCapture(options: CaptureOptions = {}): PacketCapture {
    const row = options.key && this.#peers.get(options.key);
    if (options.key && !row) throw new DeviceError("peer-unknown", `no peer has the key ${options.key}`);
    return this.#captures.start(options, row?.slot);
  }

  #stats(row: PeerRow): DevicePeerStats {
    const { rxBytes, txBytes, lastDataRx, lastDataTx, lastRx, stagedBytes } = this.#plane.peerCounters(row.slot);
    return { rxBytes, txBytes, lastHandshake: row.use.lastHandshake, lastDataRx, lastDataTx, lastRx, stagedBytes };
  }

  get #isBusy(): boolean {
    return this.#plane.handshakeLoad >= BUSY_FROM;
  }

  // What the data worker says

  #listen(): void {
    const { events } = this.#plane;
    events.on("handshake", ({ datagram, source, local }) => {
      this.#run(this.#handshakes.receive(datagram, source, this.#clock.now(), this.#isBusy), { local });
    });
    events.on("wake", ({ slot, cause }) => {
      const row = this.#peers.at(slot);
      if (!row) return;
      if (cause.kind === "data") this.#adopt(row, packetSource(cause.source));
      this.#wake(row, cause.kind === "packet" ? cause : { kind: "data", source: packetSource(cause.source) });
    });
    events.on("needHandshake", ({ slot }) => {
      const row = this.#peers.at(slot);
      if (!row || row.mode === "asleep" || this.#pathsOf(row).length === 0) return;
      this.#run(this.#handshakes.want(slot, this.#clock.now()), {});
    });
    events.on("confirmed", ({ slot, source }) => {
      const row = this.#peers.at(slot);
      if (!row) return;
      this.#handshakes.noteConfirmed(slot);
      this.#armTimer();
      this.#adopt(row, packetSource(source));
      this.#establish(row, { role: "responder", source: packetSource(source) });
    });
    events.on("sessionEnded", ({ localIndex }) => this.#handshakes.noteSessionEnded(localIndex));
    events.on("pathHint", ({ slot, source, adopted }) => {
      const row = this.#peers.at(slot);
      if (!row || row.mode === "asleep") return;
      // What the worker adopted by itself is overruled by a path that was chosen meanwhile.
      const isKnown = row.use.adopted && samePath(row.use.adopted, packetSource(source));
      if (adopted && row.use.path.kind === "none") useOf(row).adopted = packetSource(source);
      if (!isKnown) this.#hint(row, packetSource(source));
    });
    events.on("silent", ({ slot }) => {
      const row = this.#peers.at(slot);
      if (row?.mode === "awake") this.events.emit("silent", { key: row.key });
    });
    events.on("relayOut", ({ slot, datagram }) => this.#relay(this.#peers.at(slot), datagram));
    events.on("stun", ({ datagram, from, to }) => this.events.emit("stun", { datagram, from, to }));
    events.on("pathError", ({ slot, endpoint, code }) => {
      const row = this.#peers.at(slot);
      if (row) this.events.emit("path-error", { key: row.key, endpoint, code });
    });
    events.on("restarted", ({ reason }) => {
      this.#handshakeAgain(restorePeers(this.#plane, this.#peers, this.#handshakes));
      this.events.emit("worker-restarted", { reason });
    });
    events.on("gone", ({ reason }) => {
      if (this.#closing) return;
      this.#log.error("wireguard device is gone", { interface: this.interfaceName, reason });
      void this.close();
      this.events.emit("gone", { reason });
    });
  }

  #handshakeAgain(rows: readonly PeerRow[]): void {
    for (const row of rows.slice(0, HANDSHAKES_PER_TURN)) {
      if (this.#closing || this.#peers.at(row.slot) !== row || row.mode === "asleep") continue;
      if (this.#pathsOf(row).length === 0) continue;
      this.#run(this.#handshakes.initiate(row.slot, this.#clock.now(), WORTH_REPEATING), {});
    }
    const rest = rows.slice(HANDSHAKES_PER_TURN);
    if (rest.length > 0) this.#clock.after(0, () => this.#handshakeAgain(rest));
  }

  #wake(row: PeerRow, cause: DeviceEvents["wake"]["cause"]): void {
    if (row.mode !== "asleep" || row.use.woken) return;
    useOf(row).woken = true;
    this.events.emit("wake", { key: row.key, cause });
  }

  #establish(row: PeerRow, how: Omit<DeviceEvents["established"], "key">): void {
    useOf(row).lastHandshake = this.#clock.wall();
    this.events.emit("established", { key: row.key, ...how });
  }

  // What the handshake manager wants done

  #run(actions: readonly HandshakeAction[], context: RunContext): void {
    for (const action of actions) {
      if (action.kind === "send-reply") this.#reply(action, context.local);
      else this.#apply(action, context);
    }
    this.#armTimer();
  }

  #reply(action: HandshakeAction & { kind: "send-reply" }, local: IpAddress | undefined): void {
    const { slot, message, to } = action;
    // A listener may have removed the peer between two actions; a cookie reply is for whoever the relay named.
    const row = this.#peers.at(slot ?? (to.kind === "relay" ? to.slot : -1));
    if (slot !== undefined && !row) return;
    this.#send(row, packetSource(to), message, local);
    if (slot !== undefined) this.#plane.noteAuthenticated(slot, "sent", message.length);
  }

  #apply(action: Exclude<HandshakeAction, { kind: "send-reply" }>, context: RunContext): void {
    const row = this.#peers.at(action.slot);
    if (!row) {
      if (action.kind === "session") action.keys.wipe();
      return;
    }
    switch (action.kind) {
      case "send-initiation": {
        const use = useOf(row);
        const paths = context.paths ?? use.delayedPaths ?? this.#pathsOf(row);
        use.delayedPaths = undefined;
        use.sentOver = action.repeated ? [...use.sentOver, ...paths] : paths;
        for (const path of paths) this.#send(row, path, action.message, undefined);
        if (paths.length > 0) this.#plane.noteAuthenticated(row.slot, "sent", action.message.length * paths.length);
        return;
      }
      case "initiation-delayed": {
        const use = useOf(row);
        if (context.paths) use.delayedPaths = [...(use.delayedPaths ?? NO_PATHS), ...context.paths];
        use.sentOver = use.delayedPaths ?? NO_PATHS;
        return;
      }
      case "initiation-accepted":
        this.#plane.noteAuthenticated(row.slot, "received", INITIATION_BYTES);
        this.#wake(row, { kind: "handshake", source: packetSource(action.source) });
        if (row.use.path.kind !== "none") this.#hint(row, packetSource(action.source));
        return;
      case "session":
        this.#install(row, action.keys, action.createdAt);
        action.keys.wipe();
        return;
      case "completed": {
        const source = packetSource(action.source);
        this.#adopt(row, source);
        this.#plane.noteAuthenticated(row.slot, "received", RESPONSE_BYTES);
        if (row.use.path.kind !== "none") this.#hint(row, source);
        this.#establish(row, { role: "initiator", source, ...(action.rtt === undefined ? {} : { rtt: action.rtt }) });
        return;
      }
      case "gave-up": {
        const droppedBytes = this.#plane.peerCounters(row.slot).stagedBytes;
        this.#plane.dropStaged(row.slot);
        this.events.emit("handshake-failed", { key: row.key, droppedBytes });
        return;
      }
      default:
        unreachable(action);
    }
  }

  #install(row: PeerRow, keys: SessionKeys, createdAt: Millis): void {
    const { role, localIndex, remoteIndex, sendKey, receiveKey } = keys;
    this.#plane.installSession(row.slot, { role, localIndex, remoteIndex, sendKey, receiveKey, createdAt });
  }

  /** Where a handshake or data just worked is good enough for data until the caller chooses, at once or on waking. */
  #adopt(row: PeerRow, source: PacketSource): void {
    if (row.mode === "asleep") {
      useOf(row).heard = source;
      return;
    }
    const use = useOf(row);
    if (use.path.kind !== "none" || (use.adopted && samePath(use.adopted, source))) return;
    use.adopted = source;
    this.#plane.setPath(row.slot, source);
    this.#hint(row, source);
  }

  #hint(row: PeerRow, source: PacketSource): void {
    if (row.mode === "awake" && !samePath(row.use.path, source))
      this.events.emit("path-hint", { key: row.key, source });
  }

  #pathsOf(row: PeerRow): readonly DevicePath[] {
    const { path, adopted, initiatePaths } = row.use;
    if (path.kind !== "none") return [path];
    return adopted ? [adopted] : initiatePaths;
  }

  #send(row: PeerRow | undefined, path: DevicePath, message: Uint8Array, from: IpAddress | undefined): void {
    if (path.kind === "none" || this.#closing) return;
    if (path.kind === "relay") return this.#relay(row, message.slice());
    const { endpoint } = path;
    let code = this.#plane.sendDatagram(message, endpoint, from && { address: from, port: this.listenPort });
    // The address that the question came to may be gone by now; any other will do.
    if (code !== undefined && from) code = this.#plane.sendDatagram(message, endpoint);
    if (code !== undefined && row && !TRANSIENT_ERRORS.has(code)) {
      this.events.emit("path-error", { key: row.key, endpoint, code });
    }
  }

  #relay(row: PeerRow | undefined, datagram: Uint8Array): void {
    if (row) this.events.emit("relay-out", { key: row.key, datagram });
  }

  #armTimer(): void {
    if (!this.#closing) this.#timer.set(this.#handshakes.nextDeadline());
  }

  // The end

  close(): Promise<void> {
    if (!this.#closing) {
      this.#timer.set(undefined);
      this.#captures.end("device-closed");
      this.#closing = this.#plane.close();
      this.#handshakes.close();
    }
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** `local`: the address that a message came to, which its answer leaves from. `paths`: instead of the peer's own. */
interface RunContext {
  readonly local?: IpAddress | undefined;
  readonly paths?: readonly DevicePath[];
}
