import { Emitter } from "#base/emitter.ts";
import { type Endpoint, isV6, type Prefix } from "#base/ip.ts";
import { type Logger, silentLogger } from "#base/log.ts";
import { errnoName } from "#net/errno.ts";
import { lastError, libc } from "#net/libc.ts";
import { closeUdpPair, openUdpPair, type UdpPair } from "#net/udp-linux.ts";
import { sendDatagram } from "#net/udp-send.ts";
import { closeTun, openTun, setInterfaceMtu, type Tun } from "#tun/linux.ts";
import type { DevicePath } from "../device.ts";
import type { FilterRules, SourceRule } from "../filter.ts";
import { COOKIE_SECRET_BYTES } from "../messages.ts";
import { type CommandRecord, type CommandSender, type SessionKeys, sessionRecord } from "./commands.ts";
import { DataPlaneError } from "./data-plane-error.ts";
import { FilterSender } from "./filter-commands.ts";
import { PROTOCOL_LIMITS, type SessionLimits } from "./limits.ts";
import type { DataPlaneEvents } from "./plane-events.ts";
import { ADD_ASLEEP, ADD_RESTORED, CAPTURE_ALL, Command, FAMILY_RELAY } from "./records.ts";
import type { Ring } from "./ring.ts";
import { Counter, type DeviceCounter, type PeerCounters, Stats } from "./stats.ts";
import { stopAtExit } from "./stop-at-exit.ts";
import { WorkerHost } from "./worker-host.ts";

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

export const MTU_MIN = 576;
/** 65,535 minus IPv6 and UDP headers, WireGuard's 32 bytes. */
export const MTU_MAX = 65_455;

const DEFAULT_PEER_CAPACITY = 131_072;

/** Where copies of inner packets go, see `records.ts`. */
export interface CaptureTarget {
  /** Main reads it; counts what did not fit. */
  readonly ring: Ring;
  /** One peer's packets; undefined: all. */
  readonly slot: number | undefined;
  /** Bytes kept of each packet. */
  readonly snapLength: number;
  /** There may be something in the ring. */
  readonly filled: () => void;
}

/**
 * Main's handle on the data worker: TUN, UDP sockets, sessions, allowed IPs, staging and data-driven timers live there;
 * handshakes, STUN, relays and path choice live with the caller. Peers are named by slots that the caller gives out.
 *
 * Commands take effect in the order they are given, some microseconds later; none waits. The command ring holds 4 MiB;
 * beyond it commands wait in memory and relayed datagrams are dropped (`drop-relay-queue-in`).
 */
export class DataPlane implements AsyncDisposable {
  readonly events: Emitter<DataPlaneEvents>;
  readonly features: readonly string[];
  readonly #tun: Tun;
  readonly #sockets: UdpPair;
  readonly #eventFd: number;
  readonly #stats: Stats;
  readonly #host: WorkerHost;
  readonly #own: OwnState;
  #turnsSeen: number | undefined;
  #isOver = false;
  #closing: Promise<void> | undefined;

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
    const stats = Stats.create(options.peerCapacity ?? DEFAULT_PEER_CAPACITY);
    const own: OwnState = { mtu: options.mtu, filter: new FilterSender(), cookieSecret: undefined, capture: undefined };
    const control = new SharedArrayBuffer(64);
    const clockOffset = Number(process.hrtime.bigint()) / 1e6 - performance.now();
    const gso = sockets.gso && (options.offload?.gso ?? true);
    const events = new Emitter<DataPlaneEvents>();
    const log = options.logger ?? silentLogger;
    const host: WorkerHost = new WorkerHost({
      events,
      control,
      log: log.with({ interface: tun.name }),
      now: () => performance.now(),
      wake: () => void libc().write(eventFd, EVENT_ONE, 8),
      filled: () => own.capture?.filled(),
      setUp: () => ({
        tunFd: tun.fd,
        virtioHeader: tun.virtioHeader,
        udpSegmentation: tun.udpSegmentation,
        v4Fd: sockets.v4,
        v6Fd: sockets.v6,
        gso,
        gro: sockets.gro,
        eventFd,
        mtu: own.mtu,
        port: sockets.port,
        control,
        stats: stats.buffer,
        clockOffset,
        limits: { ...PROTOCOL_LIMITS, ...options.limits },
        mac1Key: options.mac1Key,
        capture: own.capture?.ring.buffer,
      }),
      restore: (reason) => {
        giveOwn(host.commands, own);
        events.emit("restarted", { reason });
      },
    });
    const found = await host.started;
    const features = [
      tun.virtioHeader ? "tun-tso" : undefined,
      tun.udpSegmentation ? "tun-uso" : undefined,
      gso ? "udp-gso" : undefined,
      sockets.gro ? "udp-gro" : undefined,
      sockets.v6 >= 0 ? "ipv6" : undefined,
      ...found,
    ].filter((name) => name !== undefined);
    log.debug("data worker runs", { interface: tun.name, port: sockets.port, features });
    return new DataPlane({ events, host, own, tun, sockets, eventFd, stats, features });
  }

  private constructor(parts: {
    readonly events: Emitter<DataPlaneEvents>;
    readonly host: WorkerHost;
    readonly own: OwnState;
    readonly tun: Tun;
    readonly sockets: UdpPair;
    readonly eventFd: number;
    readonly stats: Stats;
    readonly features: readonly string[];
  }) {
    this.events = parts.events;
    this.features = parts.features;
    this.#host = parts.host;
    this.#own = parts.own;
    this.#tun = parts.tun;
    this.#sockets = parts.sockets;
    this.#eventFd = parts.eventFd;
    this.#stats = parts.stats;
    const ended = stopAtExit(this);
    void this.#host.over.then(() => {
      this.#isOver = true;
      ended();
    });
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
    return this.#host.datagramLoad;
  }

  /**
   * The secret that cookies are made with: the worker tells by it who proved the source address, whose messages go first
   * under load. Copied: the caller wipes its own.
   */
  setCookieSecret(secret: Uint8Array): void {
    this.#own.cookieSecret?.fill(0);
    this.#own.cookieSecret = secret.slice();
    sendCookieSecret(this.#host.commands, secret);
  }

  /** The slot must be free. An asleep peer is a row in a table. */
  addPeer(slot: number, options: { readonly asleep: boolean; readonly keepalive?: number }): void {
    if (!(slot >= 0 && slot < this.#stats.peerCapacity))
      throw new RangeError(`peer slot ${slot} is not below ${this.#stats.peerCapacity}`);
    this.#host.commands.send({ opcode: Command.addPeer, slot, argument: addArgument(options) });
  }

  /** After `restarted`: the same for a peer whose counters go on. */
  restorePeer(slot: number, options: { readonly asleep: boolean; readonly keepalive?: number }): void {
    const argument = (addArgument(options) | ADD_RESTORED) >>> 0;
    this.#host.commands.send({ opcode: Command.addPeer, slot, argument });
  }

  /** Drops sessions, staged packets and prefixes; the slot is free for `addPeer` at once. */
  removePeer(slot: number): void {
    this.#host.commands.send({ opcode: Command.removePeer, slot });
  }

  /**
   * Asleep: the path becomes `none`, keepalives stop, sessions keep decrypting until they expire; packets staged more than
   * a second ago are dropped, younger ones raise a wake at once. Awake: staged packets ask for a handshake when there is
   * no session; without a path they wait.
   */
  setAsleep(slot: number, asleep: boolean): void {
    this.#host.commands.send({ opcode: Command.setAsleep, slot, argument: asleep ? 1 : 0 });
  }

  /** The wake that was reported has to wait: what is staged stays, the next packet raises a wake again. */
  rearmWake(slot: number): void {
    this.#host.commands.send({ opcode: Command.rearmWake, slot });
  }

  /** Persistent keepalive in seconds, 0 = off; switching it on sends one at once. */
  setKeepalive(slot: number, seconds: number): void {
    this.#host.commands.send({ opcode: Command.setKeepalive, slot, argument: seconds });
  }

  /** Gives the prefix to this peer, taking it from whoever has it. Host bits are ignored. */
  addPrefix(slot: number, prefix: Prefix): void {
    this.#host.commands.send({ opcode: Command.addPrefix, slot, address: prefix.address, argument: prefix.bits });
  }

  /** Nothing happens when another peer has the prefix. */
  removePrefix(slot: number, prefix: Prefix): void {
    this.#host.commands.send({ opcode: Command.removePrefix, slot, address: prefix.address, argument: prefix.bits });
  }

  /** Where the peer's encrypted packets go from now on. Sessions are not tied to a path: switching loses nothing. */
  setPath(slot: number, path: DevicePath): void {
    const record: CommandRecord = { opcode: Command.setPath, slot };
    if (path.kind === "none") this.#host.commands.send(record);
    else if (path.kind === "relay") this.#host.commands.send({ ...record, family: FAMILY_RELAY });
    else this.#host.commands.send({ ...record, address: path.endpoint.address, port: path.endpoint.port });
  }

  /**
   * Takes a finished handshake's keys. Initiator: in use at once, staged packets leave, or else a keepalive. Responder:
   * kept as next until the peer's first packet on it (`confirmed`).
   */
  installSession(slot: number, keys: SessionKeys): void {
    this.#host.commands.send(sessionRecord(slot, keys));
  }

  /** Gives up the packets that wait for a session, as when a handshake was given up. */
  dropStaged(slot: number): void {
    this.#host.commands.send({ opcode: Command.dropStaged, slot });
  }

  /** A handshake message was sent to the peer or accepted from it: feeds the timers, counts `bytes` in its row. */
  noteAuthenticated(slot: number, direction: "sent" | "received", bytes = 0): void {
    const argument = direction === "sent" ? 1 : 0;
    this.#host.commands.send({ opcode: Command.noteAuthenticated, slot, argument, time: bytes });
  }

  /** A datagram that a relay delivered; dropped and counted when the ring is full. */
  injectRelayed(slot: number, datagram: Uint8Array): void {
    this.#host.commands.trySend({
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
    this.#own.mtu = mtu;
    this.#host.commands.send({ opcode: Command.setMtu, slot: 0, argument: mtu });
  }

  /** Replaces all rules of the packet filter at once; undefined lets every packet pass. Throws FilterError. */
  setFilter(rules: FilterRules | undefined): void {
    this.#own.filter.set(this.#host.commands, rules);
  }

  /** Replaces the rules of one source; none forgets it. Throws FilterError. */
  setFilterSource(source: Prefix, rules: readonly SourceRule[]): void {
    this.#own.filter.setSource(this.#host.commands, source, rules);
  }

  /** Copies inner packets to main until `stopCapture`; one capture at a time, a new one ends the one before. */
  startCapture(capture: CaptureTarget): void {
    this.#own.capture = capture;
    this.#host.post(capture.ring.buffer);
    sendCapture(this.#host.commands, capture);
  }

  stopCapture(): void {
    this.#own.capture = undefined;
    sendCapture(this.#host.commands, undefined);
  }

  /** One peer's counters, read from shared memory. */
  peerCounters(slot: number): PeerCounters {
    return this.#stats.peer(slot);
  }

  /** Device counters by name, and those that main counts. */
  counters(): ReadonlyMap<DeviceCounter | "drop-relay-queue-in" | "worker-restarts", number> {
    return new Map([
      ...this.#stats.device(),
      ["drop-relay-queue-in", this.#host.droppedCommands] as const,
      ["worker-restarts", this.#host.restarts] as const,
    ]);
  }

  /**
   * Whether the worker went around its loop since the last call; asks it to do so once more. For one caller, seconds apart: false
   * twice is a worker that hangs. True when there is none any more, which events tell.
   */
  isWorking(): boolean {
    if (this.#closing || this.#isOver) return true;
    const turns = this.#stats.words[Counter["wake-ups"]]!;
    const moved = turns !== this.#turnsSeen;
    this.#turnsSeen = turns;
    libc().write(this.#eventFd, EVENT_ONE, 8);
    return moved;
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
    this.#host.requestStop();
  }

  async #stop(): Promise<void> {
    this.requestStop();
    await this.#host.over;
    this.#own.cookieSecret?.fill(0);
    closeTun(this.#tun);
    closeUdpPair(this.#sockets);
    libc().close(this.#eventFd);
  }
}

/** What the plane itself tells every worker; peers are the caller's. */
interface OwnState {
  mtu: number;
  readonly filter: FilterSender;
  cookieSecret: Uint8Array | undefined;
  capture: CaptureTarget | undefined;
}

/** The MTU came with the worker's start. */
function giveOwn(commands: CommandSender, own: OwnState): void {
  own.filter.repeat(commands);
  if (own.cookieSecret) sendCookieSecret(commands, own.cookieSecret);
  if (own.capture) sendCapture(commands, own.capture);
}

function sendCookieSecret(commands: CommandSender, secret: Uint8Array): void {
  const copy = secret.slice();
  commands.send({
    opcode: Command.setCookieSecret,
    slot: 0,
    payloadBytes: COOKIE_SECRET_BYTES,
    fill: (bytes, at) => {
      bytes.set(copy, at);
      copy.fill(0);
    },
  });
}

function sendCapture(commands: CommandSender, capture: CaptureTarget | undefined): void {
  const slot = capture?.slot ?? CAPTURE_ALL;
  commands.send({ opcode: Command.capture, slot, argument: capture?.snapLength ?? 0 });
}

function addArgument({ asleep, keepalive = 0 }: { readonly asleep: boolean; readonly keepalive?: number }): number {
  return ((asleep ? ADD_ASLEEP : 0) | keepalive) >>> 0;
}

const EVENT_ONE = new BigUint64Array([1n]);
