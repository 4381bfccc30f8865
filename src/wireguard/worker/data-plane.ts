import { Worker } from "node:worker_threads";
import { Emitter } from "#base/emitter.ts";
import { messageOf, PerchError } from "#base/errors.ts";
import { type Endpoint, type IpAddress, isV6, type Prefix } from "#base/ip.ts";
import { type Logger, silentLogger } from "#base/log.ts";
import type { Millis } from "#base/time.ts";
import { errnoName } from "#net/errno.ts";
import { lastError, libc } from "#net/libc.ts";
import { closeUdpPair, openUdpPair, type UdpPair } from "#net/udp-linux.ts";
import { sendDatagram } from "#net/udp-send.ts";
import { closeTun, openTun, setInterfaceMtu, type Tun } from "#tun/linux.ts";
import type { DevicePath, PacketSummary } from "../device.ts";
import type { FilterRules, SourceRule } from "../filter.ts";
import { COOKIE_SECRET_BYTES } from "../messages.ts";
import { type CommandRecord, CommandSender, sessionRecord } from "./commands.ts";
import { sendFilter, sendFilterSource } from "./filter-commands.ts";
import { PROTOCOL_LIMITS, type SessionLimits } from "./limits.ts";
import { Command, FAMILY_RELAY, type HandshakeReason } from "./records.ts";
import { emitRelayed, emitReports } from "./reports.ts";
import { Ring } from "./ring.ts";
import { type DeviceCounter, type PeerCounters, Stats } from "./stats.ts";
import { ControlWord, type WorkerMessage, type WorkerStart } from "./worker-start.ts";

export interface DataPlaneOptions {
  /** May contain `%d`. */
  readonly interfaceName: string;
  /** Inner MTU in bytes, 576 to 65,455 (65,535 minus the outer headers). */
  readonly mtu: number;
  /** 0 takes a free one. */
  readonly listenPort: number;
  readonly fwmark?: number;
  /** Slots go from 0 to one below this; default 131,072. Costs address space, not memory. */
  readonly peerCapacity?: number;
  readonly logger?: Logger;
  /** What the start-up probing may use; each default true. For tests and to go around a broken driver. */
  readonly offload?: OffloadOptions;
  /** `LocalIdentity.mac1Key`: handshake messages whose mac1 is wrong are dropped in the worker. Default: main gets all. */
  readonly mac1Key?: Int32Array;
  /** Lowered by tests only. */
  readonly limits?: Partial<SessionLimits>;
}

export interface OffloadOptions {
  /** TUN packets larger than the MTU, both ways. */
  readonly virtioHeader?: boolean;
  readonly udpSegmentation?: boolean;
  /** Many datagrams in one send. */
  readonly gso?: boolean;
  /** Many datagrams in one receive. */
  readonly gro?: boolean;
  readonly ipv6?: boolean;
}

/** Where an encrypted datagram came from; `slot` is the peer that the relay named. */
export type PlaneSource =
  | { readonly kind: "udp"; readonly endpoint: Endpoint }
  | { readonly kind: "relay"; readonly slot: number };

export interface SessionKeys {
  readonly role: "initiator" | "responder";
  /** Index that the peer writes into its packets; unique in the device. */
  readonly localIndex: number;
  /** Index that we write into ours. */
  readonly remoteIndex: number;
  /** 32 bytes each, copied: the caller wipes its own. */
  readonly sendKey: Uint8Array;
  readonly receiveKey: Uint8Array;
  /** When the keys were derived, device clock; default now. */
  readonly createdAt?: Millis;
}

/**
 * Facts from the worker. Buffers belong to the listener, but for `relayOut`. Events of one kind come in order; different
 * kinds may overtake.
 */
export interface DataPlaneEvents {
  /**
   * Once per sleep of a peer: the first inner packet towards it was staged, or authenticated data came on an old session.
   */
  wake: {
    readonly slot: number;
    readonly cause:
      | { readonly kind: "packet"; readonly packet: PacketSummary }
      | { readonly kind: "data"; readonly source: PlaneSource };
  };
  /** A message of type 1, 2 or 3 with the right length; nothing else was checked. `local`: address it arrived at. */
  handshake: {
    readonly datagram: Uint8Array;
    readonly source: PlaneSource;
    readonly local: IpAddress | undefined;
    readonly receivedAt: Millis;
  };
  stun: {
    readonly datagram: Uint8Array;
    readonly from: Endpoint;
    readonly to: Endpoint | undefined;
    readonly receivedAt: Millis;
  };
  /** An encrypted datagram of a peer whose path is the relay; the memory is used again when the listener returns. */
  relayOut: { readonly slot: number; readonly datagram: Uint8Array };
  /** An awake peer needs a handshake. Repeated at most every second while the reason lasts; main applies the 5 s rule. */
  needHandshake: { readonly slot: number; readonly reason: HandshakeReason };
  /** The first authenticated packet on a responder's session: the session is usable for sending now. */
  confirmed: { readonly slot: number; readonly localIndex: number; readonly source: PlaneSource };
  /** The worker dropped a session (replaced, expired, peer removed): its index is free again. */
  sessionEnded: { readonly slot: number; readonly localIndex: number };
  /**
   * An authenticated packet of an awake peer came from elsewhere than its path; at most once a second per source. When the
   * peer had no path, the source is the path now.
   */
  pathHint: { readonly slot: number; readonly source: PlaneSource; readonly adopted: boolean };
  /** An inner packet was sent and nothing authenticated came for 400 ms; repeated while that goes on. */
  silent: { readonly slot: number };
  /** Sending failed hard; `code` such as `ENETUNREACH`. At most once a second per peer. */
  pathError: { readonly slot: number; readonly endpoint: Endpoint; readonly code: string };
  /** The interface was deleted or the worker died. No event follows; `close` still has to be called. */
  gone: { readonly reason: string };
}

export class DataPlaneError extends PerchError<"worker-failed" | "mtu-out-of-range" | "closed"> {}

export const MTU_MIN = 576;
/** 65,535 minus IPv6 and UDP headers, WireGuard's 32 bytes. */
export const MTU_MAX = 65_455;

const COMMAND_RING_BYTES = 4 << 20;
const EVENT_RING_BYTES = 1 << 20;
/** About 1,100 initiations; what does not fit is dropped and counted, and a filling ring is the sign of load. */
const DATAGRAM_RING_BYTES = 256 << 10;
const RELAY_RING_BYTES = 4 << 20;
const DEFAULT_PEER_CAPACITY = 131_072;
/** Handshake and STUN messages handled before other work of the main thread gets its turn. */
const DATAGRAMS_PER_TURN = 64;
/** The same for what is small and without a listener that works long. */
const EVENTS_PER_TURN = 256;
/**
 * Relayed datagrams taken before the relay's connection may write: less than it queues (256 KiB), for what it cannot queue
 * it drops.
 */
const RELAYED_PER_TURN = 96;

/** Planes whose worker must leave `poll` before the process can exit. */
const running = new Set<DataPlane>();
process.on("exit", () => {
  // Ending the thread waits for it, and a thread in poll(-1) never ends by itself (docs/packet-path.md).
  for (const plane of running) plane.requestStop();
});

/**
 * Main's handle on the data worker: TUN, UDP sockets, sessions, allowed IPs, staging and data-driven timers live there;
 * handshakes, STUN, relays and path choice live with the caller. Peers are named by slots that the caller gives out.
 *
 * Commands take effect in the order they are given, some microseconds later; none waits. The command ring holds 4 MiB;
 * beyond it commands wait in memory and relayed datagrams are dropped (`drop-relay-queue-in`).
 */
export class DataPlane implements AsyncDisposable {
  readonly events = new Emitter<DataPlaneEvents>();
  readonly features: readonly string[];
  readonly #tun: Tun;
  readonly #sockets: UdpPair;
  readonly #eventFd: number;
  readonly #control: Int32Array;
  readonly #commands: CommandSender;
  readonly #eventRing: Ring;
  readonly #datagramRing: Ring;
  readonly #relayRing: Ring;
  readonly #stats: Stats;
  readonly #exited: Promise<void>;
  #closing: Promise<void> | undefined;
  #gone = false;

  /**
   * Opens the interface (down, no address) and the sockets, starts the worker and resolves when it runs. Throws TunError,
   * NetError or DataPlaneError; nothing is left open then.
   */
  static async start(options: DataPlaneOptions): Promise<DataPlane> {
    if (!(options.mtu >= MTU_MIN && options.mtu <= MTU_MAX && Number.isInteger(options.mtu))) {
      throw new DataPlaneError("mtu-out-of-range", `MTU ${options.mtu} is not between ${MTU_MIN} and ${MTU_MAX}`);
    }
    const offload = options.offload ?? {};
    const undo: (() => void)[] = [];
    try {
      const tun = openTun({
        name: options.interfaceName,
        virtioHeader: offload.virtioHeader ?? true,
        udpSegmentation: offload.udpSegmentation ?? true,
      });
      undo.push(() => closeTun(tun));
      setInterfaceMtu(tun.name, options.mtu);
      const sockets = openUdpPair({
        port: options.listenPort,
        fwmark: options.fwmark ?? 0,
        gro: offload.gro ?? true,
        ipv6: offload.ipv6 ?? true,
      });
      undo.push(() => closeUdpPair(sockets));
      const eventFd = libc().eventfd(0, 0x800 | 0x80000);
      if (eventFd < 0) throw lastError("cannot make an eventfd");
      undo.push(() => void libc().close(eventFd));
      return await DataPlane.#startWorker(options, tun, sockets, eventFd);
    } catch (error) {
      for (const step of undo.reverse()) step();
      throw error;
    }
  }

  static async #startWorker(
    options: DataPlaneOptions,
    tun: Tun,
    sockets: UdpPair,
    eventFd: number,
  ): Promise<DataPlane> {
    const start: WorkerStart = {
      tunFd: tun.fd,
      virtioHeader: tun.virtioHeader,
      udpSegmentation: tun.udpSegmentation,
      v4Fd: sockets.v4,
      v6Fd: sockets.v6,
      gso: sockets.gso && (options.offload?.gso ?? true),
      gro: sockets.gro,
      eventFd,
      mtu: options.mtu,
      port: sockets.port,
      control: new SharedArrayBuffer(64),
      commands: Ring.create(COMMAND_RING_BYTES).buffer,
      events: Ring.create(EVENT_RING_BYTES).buffer,
      datagrams: Ring.create(DATAGRAM_RING_BYTES).buffer,
      relay: Ring.create(RELAY_RING_BYTES).buffer,
      stats: Stats.create(options.peerCapacity ?? DEFAULT_PEER_CAPACITY).buffer,
      clockOffset: Number(process.hrtime.bigint()) / 1e6 - performance.now(),
      limits: { ...PROTOCOL_LIMITS, ...options.limits },
      mac1Key: options.mac1Key,
    };
    const worker = new Worker(new URL("./worker.ts", import.meta.url), {
      workerData: start,
      name: "perch-data",
      resourceLimits: { maxYoungGenerationSizeMb: 8 },
    });
    const exited = new Promise<void>((done) => worker.once("exit", () => done()));
    const features = await new Promise<readonly string[]>((resolve, reject) => {
      worker.on("message", (message: WorkerMessage | number) => {
        if (typeof message === "number") return;
        if (message.kind === "ready") resolve(message.features);
        else reject(new DataPlaneError("worker-failed", `the data worker does not start: ${message.reason}`));
      });
      worker.once("error", (cause) =>
        reject(new DataPlaneError("worker-failed", `the data worker does not start: ${messageOf(cause)}`, { cause })),
      );
      void exited.then(() => reject(new DataPlaneError("worker-failed", "the data worker ended while starting")));
    }).catch(async (error: unknown) => {
      await exited;
      throw error;
    });
    worker.removeAllListeners("message");
    worker.removeAllListeners("error");
    const tunFeatures = [tun.virtioHeader ? "tun-tso" : undefined, tun.udpSegmentation ? "tun-uso" : undefined];
    const socketFeatures = [
      start.gso ? "udp-gso" : undefined,
      start.gro ? "udp-gro" : undefined,
      sockets.v6 >= 0 ? "ipv6" : undefined,
    ];
    const found = [...tunFeatures, ...socketFeatures, ...features].filter((name) => name !== undefined);
    return new DataPlane(start, tun, sockets, worker, exited, found, options.logger ?? silentLogger);
  }

  private constructor(
    start: WorkerStart,
    tun: Tun,
    sockets: UdpPair,
    worker: Worker,
    exited: Promise<void>,
    features: readonly string[],
    logger: Logger,
  ) {
    this.#tun = tun;
    this.#sockets = sockets;
    this.#eventFd = start.eventFd;
    this.#exited = exited;
    this.features = features;
    this.#control = new Int32Array(start.control);
    this.#commands = new CommandSender(new Ring(start.commands), () => this.#wakeWorker());
    this.#eventRing = new Ring(start.events);
    this.#datagramRing = new Ring(start.datagrams);
    this.#relayRing = new Ring(start.relay);
    this.#stats = new Stats(start.stats);
    running.add(this);
    worker.on("message", (message: WorkerMessage | number) => {
      if (typeof message === "number") this.#drain();
      else if (message.kind === "fault") this.#reportGone(message.reason);
    });
    worker.on("error", (error) => this.#reportGone(messageOf(error)));
    void exited.then(() => {
      running.delete(this);
      if (!this.#closing) this.#reportGone("the data worker ended");
    });
    logger.debug("data worker runs", { interface: tun.name, port: sockets.port, features });
    this.#drain();
  }

  get interfaceName(): string {
    return this.#tun.name;
  }

  /** UDP port of both families. */
  get listenPort(): number {
    return this.#sockets.port;
  }

  /** False where the machine has no IPv6 socket. */
  get hasIpv6(): boolean {
    return this.#sockets.v6 >= 0;
  }

  /** How full the queue of handshake and STUN messages is, 0 to 1; from 1/8 on the device is "under load" (paper 5.3). */
  get handshakeLoad(): number {
    return this.#datagramRing.used / this.#datagramRing.capacity;
  }

  /**
   * The secret that cookies are made with: the worker tells by it who proved the source address, whose messages go first
   * under load. Copied: the caller wipes its own.
   */
  setCookieSecret(secret: Uint8Array): void {
    const copy = secret.slice();
    this.#commands.send({
      opcode: Command.setCookieSecret,
      slot: 0,
      payloadBytes: COOKIE_SECRET_BYTES,
      fill: (bytes, at) => {
        bytes.set(copy, at);
        copy.fill(0);
      },
    });
  }

  /** The slot must be free. An asleep peer is a row in a table. */
  addPeer(slot: number, options: { readonly asleep: boolean; readonly keepalive?: number }): void {
    if (!(slot >= 0 && slot < this.#stats.peerCapacity))
      throw new RangeError(`peer slot ${slot} is not below ${this.#stats.peerCapacity}`);
    const argument = ((options.asleep ? 0x80000000 : 0) | (options.keepalive ?? 0)) >>> 0;
    this.#commands.send({ opcode: Command.addPeer, slot, argument });
  }

  /** Drops sessions, staged packets and prefixes; the slot is free for `addPeer` at once. */
  removePeer(slot: number): void {
    this.#commands.send({ opcode: Command.removePeer, slot });
  }

  /**
   * Asleep: the path becomes `none`, keepalives stop, sessions keep decrypting until they expire; packets staged more than
   * a second ago are dropped, younger ones raise a wake at once. Awake: staged packets ask for a handshake when there is
   * no session; without a path they wait.
   */
  setAsleep(slot: number, asleep: boolean): void {
    this.#commands.send({ opcode: Command.setAsleep, slot, argument: asleep ? 1 : 0 });
  }

  /** The wake that was reported has to wait: what is staged stays, the next packet raises a wake again. */
  rearmWake(slot: number): void {
    this.#commands.send({ opcode: Command.rearmWake, slot });
  }

  /** Persistent keepalive in seconds, 0 = off; switching it on sends one at once. */
  setKeepalive(slot: number, seconds: number): void {
    this.#commands.send({ opcode: Command.setKeepalive, slot, argument: seconds });
  }

  /** Gives the prefix to this peer, taking it from whoever has it. Host bits are ignored. */
  addPrefix(slot: number, prefix: Prefix): void {
    this.#commands.send({ opcode: Command.addPrefix, slot, address: prefix.address, argument: prefix.bits });
  }

  /** Nothing happens when another peer has the prefix. */
  removePrefix(slot: number, prefix: Prefix): void {
    this.#commands.send({ opcode: Command.removePrefix, slot, address: prefix.address, argument: prefix.bits });
  }

  /** Where the peer's encrypted packets go from now on. Sessions are not tied to a path: switching loses nothing. */
  setPath(slot: number, path: DevicePath): void {
    const record: CommandRecord = { opcode: Command.setPath, slot };
    if (path.kind === "none") this.#commands.send(record);
    else if (path.kind === "relay") this.#commands.send({ ...record, family: FAMILY_RELAY });
    else this.#commands.send({ ...record, address: path.endpoint.address, port: path.endpoint.port });
  }

  /**
   * Takes a finished handshake's keys. Initiator: in use at once, staged packets leave, or else a keepalive. Responder:
   * kept as next until the peer's first packet on it (`confirmed`).
   */
  installSession(slot: number, keys: SessionKeys): void {
    this.#commands.send(sessionRecord(slot, keys));
  }

  /** Gives up the packets that wait for a session, as when a handshake was given up. */
  dropStaged(slot: number): void {
    this.#commands.send({ opcode: Command.dropStaged, slot });
  }

  /** A handshake message was sent to the peer or accepted from it: feeds the timers, counts `bytes` in its row. */
  noteAuthenticated(slot: number, direction: "sent" | "received", bytes = 0): void {
    const argument = direction === "sent" ? 1 : 0;
    this.#commands.send({ opcode: Command.noteAuthenticated, slot, argument, time: bytes });
  }

  /** A datagram that a relay delivered; dropped and counted when the ring is full. */
  injectRelayed(slot: number, datagram: Uint8Array): void {
    this.#commands.trySend({
      opcode: Command.inject,
      slot,
      payloadBytes: datagram.length,
      fill: (bytes, at) => bytes.set(datagram, at),
    });
  }

  /**
   * Sends from the WireGuard port; best effort. `from` pins the local address. Returns the error's name, such as
   * `ENETUNREACH`, or undefined when the kernel took it.
   */
  sendDatagram(datagram: Uint8Array, to: Endpoint, from?: Endpoint): string | undefined {
    if (this.#closing) return "EBADF";
    const fd = isV6(to.address) ? this.#sockets.v6 : this.#sockets.v4;
    if (fd < 0) return "EAFNOSUPPORT";
    const errno = sendDatagram(fd, datagram, to, from?.address);
    return errno === 0 ? undefined : errnoName(errno);
  }

  /** Changes the interface's MTU and the padding that depends on it. Throws TunError or DataPlaneError. */
  setMtu(mtu: number): void {
    if (!(mtu >= MTU_MIN && mtu <= MTU_MAX && Number.isInteger(mtu)))
      throw new DataPlaneError("mtu-out-of-range", `MTU ${mtu} is not between ${MTU_MIN} and ${MTU_MAX}`);
    setInterfaceMtu(this.#tun.name, mtu);
    this.#commands.send({ opcode: Command.setMtu, slot: 0, argument: mtu });
  }

  /** Replaces all rules of the packet filter at once; undefined lets every packet pass. Throws FilterError. */
  setFilter(rules: FilterRules | undefined): void {
    sendFilter(this.#commands, rules);
  }

  /** Replaces the rules of one source; none forgets it. Throws FilterError. */
  setFilterSource(source: Prefix, rules: readonly SourceRule[]): void {
    sendFilterSource(this.#commands, source, rules);
  }

  /** One peer's counters, read from shared memory. */
  peerCounters(slot: number): PeerCounters {
    return this.#stats.peer(slot);
  }

  /** Device counters by name, and those that main counts. */
  counters(): ReadonlyMap<DeviceCounter | "drop-relay-queue-in", number> {
    return new Map([...this.#stats.device(), ["drop-relay-queue-in", this.#commands.dropped] as const]);
  }

  /** Stops the worker, closes TUN and sockets; idempotent, and resolves when all is done. */
  close(): Promise<void> {
    this.#closing ??= this.#stop();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Makes the worker leave its loop without waiting for it. For the exit hook; `close` is for everybody else. */
  requestStop(): void {
    Atomics.store(this.#control, ControlWord.stop, 1);
    this.#wakeWorker();
  }

  async #stop(): Promise<void> {
    this.requestStop();
    await this.#exited;
    running.delete(this);
    this.#commands.close();
    closeTun(this.#tun);
    closeUdpPair(this.#sockets);
    libc().close(this.#eventFd);
  }

  #wakeWorker(): void {
    libc().write(this.#eventFd, EVENT_ONE, 8);
  }

  #drain(): void {
    if (this.#gone) return;
    this.#commands.flush();
    const moreEvents = emitReports(this.#eventRing, this.events, EVENTS_PER_TURN);
    const moreRelayed = emitRelayed(this.#relayRing, this.events, RELAYED_PER_TURN);
    const moreDatagrams = emitReports(this.#datagramRing, this.events, DATAGRAMS_PER_TURN);
    const left = moreEvents || moreRelayed || moreDatagrams;
    // Each ring announces sleep by itself: one that got something in the meantime is looked at again.
    const asleep = [this.#eventRing, this.#relayRing, this.#datagramRing].map((ring) => ring.sleepUnlessFilled());
    if (left || asleep.includes(false)) setImmediate(() => this.#drain());
  }

  #reportGone(reason: string): void {
    if (this.#gone || this.#closing) return;
    this.#gone = true;
    this.#commands.close();
    this.events.emit("gone", { reason });
  }
}

const EVENT_ONE = new BigUint64Array([1n]);
