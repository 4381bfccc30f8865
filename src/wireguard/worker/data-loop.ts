import type { Millis } from "#base/time.ts";
import { Errno } from "#net/errno.ts";
import { type Libc, libc } from "#net/libc.ts";
import { type Aead, openAead } from "./aead.ts";
import { CommandApplier } from "./apply-commands.ts";
import { Arena } from "./arena.ts";
import { Capture } from "./capture.ts";
import { Coalescer } from "./coalesce.ts";
import { PacketFilter } from "./filter.ts";
import { HandshakeGate } from "./handshake-gate.ts";
import { Peers } from "./peers.ts";
import { Receiver } from "./receive.ts";
import { Reporter } from "./reporter.ts";
import { Ring } from "./ring.ts";
import { Routes } from "./routes.ts";
import { SendQueue } from "./send-queue.ts";
import { Sessions } from "./sessions.ts";
import { Staging } from "./staging.ts";
import { Counter, Stats } from "./stats.ts";
import { Timers } from "./timers.ts";
import { Transmitter } from "./transmit.ts";
import { TunWriter } from "./tun-writer.ts";
import { UdpBuffers, UdpReceiver } from "./udp-receive.ts";
import { ControlWord, type WorkerStart } from "./worker-start.ts";

/** Everything but the receive buffers: send batch, one TUN packet, injected datagrams, headers, flows. */
const ARENA_BYTES = 2 << 20;
/** Batches of sending and receiving before commands and timers are looked at again. */
const ROUNDS_PER_TURN = 16;
const COMMANDS_PER_TURN = 1024;

const POLLIN = 1;
const POLLOUT = 4;
const POLLERR = 8;
const POLLNVAL = 0x20;
const POLLFD_BYTES = 8;

export interface DataLoopDeps {
  /** Main should look into the rings. */
  readonly wakeMain: () => void;
  /** The ring of a capture that main made since it was asked last. */
  readonly newestCapture: () => SharedArrayBuffer | undefined;
}

/**
 * Everything that the data worker has, and its loop:
 *
 *   poll (the only place that waits) -> commands from main -> up to 16 rounds of { TUN -> UDP, UDP -> TUN } -> timers
 *
 * The descriptors are not its own.
 */
export class DataLoop implements Disposable {
  readonly #libc: Libc = libc();
  readonly #start: WorkerStart;
  readonly #control: Int32Array;
  readonly #commands: Ring;
  readonly #clock: () => number;
  readonly #arena: Arena;
  readonly #aead: Aead;
  readonly #words: Float64Array;
  readonly #reporter: Reporter;
  readonly #sessions: Sessions;
  readonly #queue: SendQueue;
  readonly #tun: TunWriter;
  readonly #timers: Timers;
  readonly #gate: HandshakeGate;
  readonly #filter: PacketFilter;
  readonly #transmitter: Transmitter;
  readonly #receiver: Receiver;
  readonly #applier: CommandApplier;
  readonly #v4: UdpReceiver;
  readonly #v6: UdpReceiver;
  readonly #pollfds: number;
  readonly #eventBuffer: number;
  #more = false;

  constructor(start: WorkerStart, deps: DataLoopDeps) {
    this.#start = start;
    this.#control = new Int32Array(start.control);
    this.#commands = new Ring(start.commands);
    const stats = new Stats(start.stats);
    stats.takeOver();
    this.#words = stats.words;
    const { limits } = start;
    // performance.now() counts from the start of this thread; main's clock is the device's.
    const lag = Number(process.hrtime.bigint()) / 1e6 - start.clockOffset - performance.now();
    this.#clock = (): number => performance.now() + lag;

    const arena = new Arena(ARENA_BYTES + UdpBuffers.arenaBytes(start.gro));
    const aead = openAead(arena);
    const rings = {
      events: new Ring(start.events),
      datagrams: new Ring(start.datagrams),
      relay: new Ring(start.relay),
    };
    const reporter = new Reporter(rings, stats, arena.bytes, deps.wakeMain);
    const peers = new Peers(stats.peerCapacity);
    const routes = new Routes(arena.view);
    const staging = new Staging(arena, stats);
    const sessions = new Sessions((session) => reporter.sessionEnded(session.peer.slot, session.localIndex));
    const queue = new SendQueue(arena, stats, reporter, start);
    const tun = new TunWriter(arena, stats, start.tunFd, start.virtioHeader);
    const timers: Timers = new Timers(limits, {
      sendKeepalive: (peer) => applier.sendKeepalive(peer),
      noAnswer: (peer) => reporter.needHandshake(peer, "no-answer", applier.now),
      silent: (peer) => reporter.silent(peer),
      expireSessions: (peer) => applier.expire(peer, limits.rejectAfterTime),
    });
    const gate = new HandshakeGate(arena.bytes, stats, rings.datagrams, start.mac1Key);
    const filter = new PacketFilter(arena.view);
    const capture = new Capture(arena, reporter, this.#clock);
    let captureBuffer = start.capture;
    const captureRing = (): Ring | undefined => {
      captureBuffer = deps.newestCapture() ?? captureBuffer;
      return captureBuffer && new Ring(captureBuffer);
    };
    const shared = {
      arena,
      filter,
      capture,
      gate,
      aead,
      peers,
      routes,
      sessions,
      staging,
      timers,
      reporter,
      stats,
      queue,
      tun,
      limits,
    };
    const transmitter = new Transmitter(shared, start);
    const coalescer = new Coalescer(arena, tun, start.udpSegmentation);
    const applyCommands = (): void => {
      if (applier.apply(COMMANDS_PER_TURN)) this.#more = true;
    };
    const receiver = new Receiver({ ...shared, coalescer, transmitter, applyCommands });
    const applier: CommandApplier = new CommandApplier(this.#commands, {
      ...shared,
      transmitter,
      receiver,
      captureRing,
    });
    const buffers = new UdpBuffers(arena, start.gro);
    this.#v4 = new UdpReceiver(arena, stats, buffers, start.v4Fd, start.port);
    this.#v6 = new UdpReceiver(arena, stats, buffers, start.v6Fd, start.port);

    // pollfd: descriptor 0/4 (negative: ignored), events 4/2, revents 6/2.
    const polled = [start.eventFd, start.tunFd, start.v4Fd, start.v6Fd];
    this.#pollfds = arena.take(polled.length * POLLFD_BYTES);
    polled.forEach((fd, index) => {
      arena.view.setInt32(this.#pollfds + index * POLLFD_BYTES, fd, true);
      arena.view.setUint16(this.#pollfds + index * POLLFD_BYTES + 4, POLLIN, true);
    });
    this.#eventBuffer = arena.take(8);

    this.#arena = arena;
    this.#aead = aead;
    this.#reporter = reporter;
    this.#sessions = sessions;
    this.#queue = queue;
    this.#tun = tun;
    this.#timers = timers;
    this.#gate = gate;
    this.#filter = filter;
    this.#transmitter = transmitter;
    this.#receiver = receiver;
    this.#applier = applier;
  }

  /** How packets are encrypted, for the device's list of features. */
  get aead(): string {
    return this.#aead.name;
  }

  /** Main wants it to end. */
  get isStopped(): boolean {
    return Atomics.load(this.#control, ControlWord.stop) !== 0;
  }

  /** Once around, waiting first when there is nothing to do, at most `patience`. Throws when `poll` itself does not work. */
  turn(patience: Millis = Number.POSITIVE_INFINITY): "done" | "interface-gone" {
    const { view, base } = this.#arena;
    const pollfds = this.#pollfds;
    const TUN = pollfds + POLLFD_BYTES;
    const V4 = TUN + POLLFD_BYTES;
    const V6 = V4 + POLLFD_BYTES;
    const transmitter = this.#transmitter;
    const receiver = this.#receiver;
    const queue = this.#queue;
    const { blockedFamily } = queue;
    view.setUint16(TUN + 4, blockedFamily === 0 ? POLLIN : 0, true);
    view.setUint16(V4 + 4, blockedFamily === 4 ? POLLIN | POLLOUT : POLLIN, true);
    view.setUint16(V6 + 4, blockedFamily === 6 ? POLLIN | POLLOUT : POLLIN, true);
    // Stop is set before the event descriptor is written, sleep is announced before both are looked at.
    const idle = !this.#more && this.#commands.sleepUnlessFilled();
    const wait = idle ? waitFor(Math.min(patience, this.#timers.nextAt - this.#clock())) : 0;
    const polledReady = this.#libc.poll(base + pollfds, POLLED, wait);
    this.#commands.wakeUp();
    if (polledReady < 0) {
      if (this.#libc.errno() === Errno.EINTR) return "done";
      throw new Error(`poll fails with errno ${this.#libc.errno()}`);
    }
    this.#words[Counter["wake-ups"]]!++;
    const tunReady = view.getUint16(TUN + 6, true);
    if ((tunReady & (POLLERR | POLLNVAL)) !== 0) return "interface-gone";
    const now = this.#clock();
    transmitter.now = receiver.now = queue.now = this.#applier.now = this.#filter.now = now;
    if (view.getUint16(pollfds + 6, true) !== 0) this.#libc.read(this.#start.eventFd, base + this.#eventBuffer, 8);

    this.#more = this.#applier.apply(COMMANDS_PER_TURN);
    let tunLive = (tunReady & POLLIN) !== 0 || blockedFamily !== 0 || transmitter.hasWaiting;
    let v4Live = (view.getUint16(V4 + 6, true) & ~POLLOUT) !== 0;
    let v6Live = (view.getUint16(V6 + 6, true) & ~POLLOUT) !== 0;
    // A source that was ready is asked in every round: what it gets while the others are served must not wait for poll.
    for (let round = 0; round < ROUNDS_PER_TURN; round++) {
      const sent = tunLive && transmitter.turn();
      const received4 = v4Live && receiver.turn(this.#v4);
      const received6 = v6Live && receiver.turn(this.#v6);
      if (!sent && !received4 && !received6) break;
      if (this.#tun.gone) return "interface-gone";
      if (sent) v4Live = v6Live = true;
      if (received4 || received6) tunLive = true;
      if (this.#start.v6Fd < 0) v6Live = false;
    }
    if (this.#timers.nextAt <= now) this.#timers.run(now);
    // What was staged while the socket was full: nobody else says that it has room again when it has it before the poll.
    if (queue.flush() && transmitter.hasWaiting) this.#more = true;
    this.#words[Counter.sessions] = this.#sessions.size;
    this.#words[Counter["filter-connections"]] = this.#filter.connections;
    this.#reporter.flush();
    return "done";
  }

  /** Wipes keys and gives back what OpenSSL holds for them. */
  [Symbol.dispose](): void {
    this.#sessions.close();
    this.#gate.close();
    this.#aead.close();
  }
}

/** Event descriptor, TUN, one socket of each family. */
const POLLED = 4;

/** Whole milliseconds for poll, rounded up so that it does not return too early; -1 for ever. */
function waitFor(ms: number): number {
  if (ms === Number.POSITIVE_INFINITY) return -1;
  return Math.min(Math.max(0, Math.ceil(ms)), 0x7fffffff);
}
