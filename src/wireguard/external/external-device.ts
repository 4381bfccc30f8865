import { Emitter } from "#base/emitter.ts";
import { messageOf } from "#base/errors.ts";
import { type Endpoint, type Prefix, sameEndpoint } from "#base/ip.ts";
import type { PrivateKey, PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import type { DeviceEvents, DevicePath, DevicePeerConfig, DevicePeerStats, WireGuardDevice } from "../device.ts";
import { checkKeepalive } from "../device-error.ts";
import type { FilterRules, SourceRule } from "../filter.ts";
import { LocalIdentity } from "../identity.ts";
import { MessageType, messageType } from "../messages.ts";
import { samePresharedKey } from "../peer-table.ts";
import { ChangeBatch } from "./change-batch.ts";
import { DeviceTeller } from "./device-teller.ts";
import { type ExternalPeer, statsOf, useOf } from "./external-peer.ts";
import { InitiatorCheck, type InitiatorVerdict } from "./initiator-check.ts";
import type { Backend, DeviceReading, LocalEnds, PacketRules, SharedPort } from "./parts.ts";
import { endUse, PeerDriver } from "./peer-driver.ts";
import { beginAnew } from "./peer-handshakes.ts";
import { type ReadingTime, takeReading } from "./peer-reading.ts";
import { ReadingLoop } from "./reading-loop.ts";

/** After an initiation that nobody looked at, before sleepers are compared with what the device has: it answers it meanwhile. */
const UNSEEN_PAUSE: Millis = 1_000;
/** After a start, before it is certain that the device has its port: it opens it when somebody brings the interface up. */
const PORT_LOOKS: readonly Millis[] = [2_000, 10_000];
/** Before a device that did not answer, or is not as it was told to be, is told everything anew. */
const TELL_ANEW_PAUSE: Millis = 1_000;

export interface ExternalDeviceDeps {
  readonly clock: Clock;
  readonly log: Logger;
  /** Throws when somebody else has the UDP port, which a device that takes it keeps to itself. */
  readonly checkPort: (port: number) => void;
}

/** What the device is made of; it owns them from then on. */
export interface ExternalDeviceParts {
  readonly backend: Backend;
  readonly localEnds: LocalEnds;
  readonly sharedPort: SharedPort;
  readonly rules: PacketRules;
}

export interface ExternalDeviceOptions {
  readonly privateKey: PrivateKey;
  readonly listenPort: number;
  readonly mtu: number;
  /** Who implements it, such as `wireguard-go 0.0.20230223`: one of the device's features. */
  readonly program?: string | undefined;
}

/**
 * The device interface over a WireGuard that somebody else implements, made of the parts of parts.ts. This class knows the
 * peers and reads the device; what happens to each peer is PeerDriver's.
 *
 *   caller --- setPeer, setPath, initiate --->  PeerDriver --- DeviceTeller, ChangeBatch ---> DeviceControl ---> device
 *          <-- wake, relay-out, established --    ^  ^  ^                                                          |
 *                                                 |  |  '-- ReadingLoop: counters, endpoints, handshakes ----------|
 *                                                 |  '----- LocalEnds: what it sends to sleeping and relayed peers |
 *                                                 '-------- SharedPort: STUN, handshakes from the network ---------'
 */
export class ExternalDevice implements WireGuardDevice {
  readonly kind: "kernel" | "wireguard-go";
  readonly publicKey: PublicKey;
  readonly listenPort: number;
  readonly mtu: number;
  readonly events = new Emitter<DeviceEvents>();
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #checkPort: (port: number) => void;
  readonly #parts: ExternalDeviceParts;
  readonly #privateKey: PrivateKey;
  readonly #program: string | undefined;
  readonly #check: InitiatorCheck;
  readonly #batch: ChangeBatch;
  readonly #teller: DeviceTeller;
  readonly #readings: ReadingLoop;
  readonly #driver: PeerDriver;
  /** In the order in which their prefixes were given last. */
  readonly #peers = new Map<PublicKey, ExternalPeer>();
  /** Awake peers, and those that fell asleep or were called lately. */
  readonly #watched = new Set<ExternalPeer>();
  #awake = 0;
  /** A reading from then on shows which sleepers had a handshake that nobody looked at; undefined: none had. */
  #unseenUntil: Millis | undefined;
  readonly #counters = new Map<string, number>();
  readonly #unsubscribe: (() => void)[] = [];
  #tellingAnew: Timer | undefined;
  /** How the device was otherwise than it was told to be, when it was told anew. */
  #oddity: string | undefined;
  #closing: Promise<void> | undefined;

  /** The device has its key and its port. `createExternalDevice` is for callers. */
  constructor(deps: ExternalDeviceDeps, parts: ExternalDeviceParts, options: ExternalDeviceOptions) {
    const { backend, localEnds } = parts;
    this.#clock = deps.clock;
    this.#log = deps.log;
    this.#checkPort = deps.checkPort;
    this.#parts = parts;
    this.#privateKey = options.privateKey;
    this.kind = backend.kind;
    this.listenPort = options.listenPort;
    this.mtu = options.mtu;
    this.#program = options.program;
    const local = new LocalIdentity(options.privateKey);
    this.publicKey = local.publicKey;
    this.#check = new InitiatorCheck(local);
    const control = () => backend.control;
    this.#batch = new ChangeBatch({ log: deps.log, control, unanswered: () => this.#tellAnew() });
    this.#teller = new DeviceTeller({ log: deps.log, localEnds, batch: this.#batch });
    this.#readings = new ReadingLoop({
      ...deps,
      control,
      batch: this.#batch,
      watching: () => (this.#awake > 0 ? "awake" : this.#watched.size > 0 ? "settling" : "nobody"),
      take: (reading, time) => this.#takeReading(reading, time),
    });
    this.#driver = new PeerDriver({
      ...parts,
      ownKey: this.publicKey,
      clock: deps.clock,
      events: this.events,
      teller: this.#teller,
      readings: this.#readings,
      watch: (peer) => {
        this.#watched.add(peer);
        this.#readings.arm();
      },
      unwatch: (peer) => this.#watched.delete(peer),
      count: (name, by) => this.#count(name, by),
    });
    this.#listen();
    this.#lookAtPort();
  }

  get features(): readonly string[] {
    const local = this.#parts.localEnds.name;
    return this.#program === undefined ? [local] : [this.#program, local];
  }

  get interfaceName(): string {
    return this.#parts.backend.interfaceName;
  }

  // Peers

  setPeer(key: PublicKey, config: DevicePeerConfig): void {
    if (this.#closing || key === this.publicKey) return;
    const keepalive = checkKeepalive(config.persistentKeepalive);
    const known = this.#peers.get(key);
    const { allowedIps, presharedKey } = config;
    const peer: ExternalPeer = known ?? {
      key,
      mode: "asleep",
      presharedKey,
      allowedIps,
      keepalive,
      local: undefined,
      use: undefined,
    };
    if (!known) {
      this.#peers.set(key, peer);
      this.#teller.add(peer);
      this.#parts.rules.movePrefixes([], allowedIps);
    }
    if (!samePresharedKey(peer.presharedKey, presharedKey)) {
      peer.presharedKey = presharedKey;
      this.#teller.presharedKey(peer);
    }
    if (peer.allowedIps !== allowedIps) {
      this.#parts.rules.movePrefixes(peer.allowedIps, allowedIps);
      this.#teller.prefixes(peer, allowedIps);
      this.#peers.delete(key);
      this.#peers.set(key, peer);
    }
    if (peer.keepalive !== keepalive) {
      peer.keepalive = keepalive;
      // Off first: a device goes on waiting for the end of the interval that it began.
      if (peer.use && peer.use.toldKeepalive > 0) {
        this.#teller.keepalive(peer, 0);
        this.#teller.keepalive(peer, keepalive);
      }
    }
    if (peer.mode === config.mode) return;
    this.#awake += config.mode === "awake" ? 1 : -1;
    this.#driver.enterMode(peer, config.mode);
    this.#readings.arm();
  }

  removePeer(key: PublicKey): void {
    const peer = this.#peers.get(key);
    if (!peer || this.#closing) return;
    if (peer.mode === "awake") this.#awake--;
    // Whoever still holds it finds that nothing is to be done.
    peer.mode = "asleep";
    if (peer.use) endUse(peer.use);
    this.#watched.delete(peer);
    this.#peers.delete(key);
    this.#check.forget(key);
    this.#teller.remove(peer);
    this.#parts.rules.movePrefixes(peer.allowedIps, []);
    this.#readings.arm();
  }

  declineWake(key: PublicKey): void {
    const peer = this.#peers.get(key);
    if (peer?.use?.woken) this.postponeWake(key, "drop");
  }

  postponeWake(key: PublicKey, staged: "keep" | "drop"): void {
    const peer = this.#peers.get(key);
    if (peer?.mode !== "asleep" || this.#closing) return;
    this.#driver.postponeWake(peer, staged);
  }

  setPath(key: PublicKey, path: DevicePath): void {
    const peer = this.#peers.get(key);
    if (peer?.mode === "awake" && !this.#closing) this.#driver.setPath(peer, path);
  }

  initiate(key: PublicKey, paths: readonly DevicePath[]): boolean {
    const peer = this.#peers.get(key);
    if (peer?.mode !== "awake" || this.#closing) return false;
    this.#driver.initiate(peer, paths);
    return true;
  }

  // Datagrams

  injectRelayed(key: PublicKey, datagram: Uint8Array): void {
    const peer = this.#peers.get(key);
    const type = messageType(datagram);
    if (!peer || type === undefined || this.#closing) return this.#count("drop-relayed-unknown");
    if (type === MessageType.initiation && !this.#admitRelayed(peer, datagram)) return;
    this.#driver.injectRelayed(peer, type, datagram);
  }

  /** Whether a relayed initiation is the peer's own; it wakes the peer then. */
  #admitRelayed(peer: ExternalPeer, message: Uint8Array): boolean {
    const verdict = this.#identify(message);
    if (verdict.kind === "unchecked" && peer.mode === "awake") return true;
    if (verdict.kind !== "peer" || verdict.key !== peer.key) {
      this.#count(verdict.kind === "peer" ? "drop-handshake-relay-mismatch" : `drop-handshake-${verdict.kind}`);
      return false;
    }
    this.#driver.noteInitiation(peer, { kind: "relay" });
    if (!this.#driver.insists(peer)) return true;
    this.#count("drop-handshake-crossed");
    // The device did not see it: the peer may send it again.
    this.#check.forget(peer.key);
    return false;
  }

  /** One that came from the network: the device has it, and answers. */
  #takeDirectHandshake(datagram: Uint8Array, from: Endpoint): void {
    const type = messageType(datagram);
    if (type === MessageType.response && this.#awake > 0 && this.#check.isForUs(datagram)) this.#readings.look();
    if (type !== MessageType.initiation) return;
    const verdict = this.#identify(datagram);
    const peer = verdict.kind === "peer" ? this.#peers.get(verdict.key) : undefined;
    if (peer) this.#driver.noteInitiation(peer, { kind: "udp", endpoint: from });
    else this.#count(`handshake-${verdict.kind}`);
    if (verdict.kind !== "unchecked" || this.#unseenUntil !== undefined) return;
    this.#unseenUntil = this.#clock.now() + UNSEEN_PAUSE;
    this.#readings.want(this.#unseenUntil);
  }

  #identify(message: Uint8Array): InitiatorVerdict {
    return this.#check.check(message, (key) => this.#peers.has(key), this.#clock.now());
  }

  #takeOutgoing(key: PublicKey, datagram: Uint8Array): void {
    const peer = this.#peers.get(key);
    const type = messageType(datagram);
    if (peer && type !== undefined) this.#driver.takeOutgoing(peer, type, datagram);
    else this.#count("drop-local-unknown");
  }

  // What readings say

  #takeReading(reading: DeviceReading, time: ReadingTime): boolean {
    if (this.#batch.isSettledAt(time.settled)) this.#compare(reading);
    if (this.#closing) return false;
    if (this.#unseenUntil !== undefined && time.start >= this.#unseenUntil) {
      this.#unseenUntil = undefined;
      this.#watchStrays(reading);
    }
    let busy = false;
    for (const peer of [...this.#watched]) {
      const { use } = peer;
      const read = reading.peers.get(peer.key);
      const facts = use && read && this.#watched.has(peer) ? takeReading(peer, read, time) : undefined;
      if (!use || !facts) continue;
      this.#count("rx-bytes", facts.growth.rx);
      this.#count("tx-bytes", facts.growth.tx);
      busy ||= facts.activity.rxData || facts.activity.txData;
      this.#driver.judge(peer, use, facts, time);
    }
    return busy;
  }

  /** A device that is not as it was told to be could not have its port, or somebody else has changed it. */
  #compare({ listenPort, peers }: DeviceReading): void {
    // Userspace shows no port when opening it failed, and then does not open it any more.
    if (listenPort === 0) return this.#end(`UDP port ${this.listenPort} is taken by another program`);
    const isOdd = listenPort !== this.listenPort || peers.size !== this.#peers.size;
    const oddity = isOdd ? `port ${listenPort}, ${peers.size} peers` : undefined;
    const isNew = oddity !== undefined && oddity !== this.#oddity;
    this.#oddity = oddity;
    if (!isNew) return;
    this.#log.warn("somebody else has changed the wireguard device, it is told anew", {
      interface: this.interfaceName,
      found: oddity,
      wanted: `port ${this.listenPort}, ${this.#peers.size} peers`,
    });
    this.#tellAnew();
  }

  /** Sleepers that the device does not send to us any more: it took their handshake, and nothing would wake them. */
  #watchStrays(reading: DeviceReading): void {
    for (const peer of this.#peers.values()) {
      if (peer.mode === "awake" || this.#watched.has(peer)) continue;
      const read = reading.peers.get(peer.key);
      if (!read || !peer.local || sameEndpoint(read.endpoint, peer.local)) continue;
      useOf(peer);
      this.#watched.add(peer);
    }
  }

  // The rest of the interface

  setFilter(rules: FilterRules | undefined): void {
    if (!this.#closing) this.#parts.rules.set(rules);
  }

  setFilterSource(source: Prefix, rules: readonly SourceRule[]): void {
    if (!this.#closing) this.#parts.rules.setSource(source, rules);
  }

  sendDatagram(datagram: Uint8Array, to: Endpoint, from?: Endpoint): void {
    if (!this.#closing) this.#parts.sharedPort.send(datagram, to, from);
  }

  peerStats(key: PublicKey): DevicePeerStats | undefined {
    const peer = this.#peers.get(key);
    return peer && statsOf(peer, this.#clock.now());
  }

  allPeerStats(): Map<PublicKey, DevicePeerStats> {
    const now = this.#clock.now();
    const all = new Map<PublicKey, DevicePeerStats>();
    for (const peer of this.#peers.values()) all.set(peer.key, statsOf(peer, now));
    return all;
  }

  counters(): ReadonlyMap<string, number> {
    let staged = 0;
    for (const { use } of this.#watched) staged += use?.held.bytes ?? 0;
    const { localEnds, sharedPort, rules } = this.#parts;
    return new Map<string, number>([
      ...(rules.counters?.() ?? []),
      ...(localEnds.counters?.() ?? []),
      ...(sharedPort.counters?.() ?? []),
      ["rx-bytes", 0],
      ["tx-bytes", 0],
      ...this.#counters,
      ["peers", this.#peers.size],
      ["peers-in-contact", this.#watched.size],
      ["staged-bytes", staged],
      ["readings", this.#readings.count],
      ["changes-refused", this.#batch.failures],
    ]);
  }

  #count(name: string, by = 1): void {
    if (by > 0) this.#counters.set(name, (this.#counters.get(name) ?? 0) + by);
  }

  // What the parts say

  #listen(): void {
    const { backend, localEnds, sharedPort, rules } = this.#parts;
    this.#unsubscribe.push(
      localEnds.events.on("datagram", ({ key, datagram }) => this.#takeOutgoing(key, datagram)),
      localEnds.events.on("failed", ({ reason }) => this.#end(reason)),
      localEnds.events.on("moved", ({ key, endpoint }) => {
        const peer = this.#peers.get(key);
        if (peer && !this.#closing) this.#teller.moved(peer, endpoint);
      }),
      sharedPort.events.on("stun", (message) => this.events.emit("stun", message)),
      sharedPort.events.on("handshake", ({ datagram, from }) => this.#takeDirectHandshake(datagram, from)),
      backend.events.on("restarted", ({ reason }) => this.#restart(reason)),
      backend.events.on("gone", ({ reason }) => this.#end(reason)),
      rules.events.on("failed", ({ reason }) => this.#end(reason)),
    );
  }

  /** The device is another one, and empty. */
  #restart(reason: string): void {
    if (this.#closing) return;
    this.#log.warn("wireguard device was restarted", { interface: this.interfaceName, reason });
    this.#count("worker-restarts");
    try {
      this.#checkPort(this.listenPort);
    } catch (error) {
      return this.#end(`${reason}, and ${messageOf(error)}`);
    }
    const now = this.#clock.now();
    for (const peer of this.#peers.values()) if (peer.use) beginAnew(peer, peer.use, now);
    const number = this.#tellAll();
    for (const { use } of this.#peers.values()) if (use) use.resetIn = number;
    this.events.emit("worker-restarted", { reason });
    this.#readings.look();
    this.#lookAtPort();
  }

  #lookAtPort(): void {
    for (const delay of PORT_LOOKS) this.#readings.want(this.#clock.now() + delay);
  }

  /** What of the changes is in the device nobody knows. Peers that are as they should be do not notice. */
  #tellAnew(): void {
    if (this.#closing) return;
    this.#tellingAnew ??= this.#clock.after(TELL_ANEW_PAUSE, () => this.#tellAll());
  }

  /** The number of the batch that carries it. */
  #tellAll(): number {
    this.#tellingAnew?.cancel();
    this.#tellingAnew = undefined;
    const { listenPort } = this;
    const configs = [...this.#peers.values()].map((peer) => this.#teller.config(peer));
    const number = this.#batch.replace({ privateKey: this.#privateKey, listenPort }, configs);
    for (const { use } of this.#peers.values()) if (use) use.toldIn = number;
    return number;
  }

  #end(reason: string): void {
    if (this.#closing) return;
    this.#log.error("wireguard device is gone", { interface: this.interfaceName, reason });
    void this.close();
    this.events.emit("gone", { reason });
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    const { backend, localEnds, sharedPort, rules } = this.#parts;
    for (const unsubscribe of this.#unsubscribe) unsubscribe();
    rules.events.on("failed", ({ reason }) => this.#log.warn("access rules may be left behind", { reason }));
    this.#tellingAnew?.cancel();
    for (const { use } of this.#watched) if (use) endUse(use);
    // Calls that a stuck device never answers end with the backend.
    const calls = Promise.all([this.#readings.close(), this.#batch.close()]);
    // Sockets first: taking the rules away needs descriptors. The backend last, as its record speaks for the rules too.
    for (const part of [sharedPort, localEnds, rules, backend]) {
      try {
        await part[Symbol.asyncDispose]();
      } catch (error) {
        this.#log.error("part of the device did not close", { err: messageOf(error) });
      }
    }
    await calls;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
