import type { Millis } from "#base/time.ts";
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
import { Stats } from "./stats.ts";
import { Timers } from "./timers.ts";
import { Transmitter } from "./transmit.ts";
import { TunWriter } from "./tun-writer.ts";
import { UdpBuffers, UdpReceiver } from "./udp-receive.ts";
import type { WorkerStart } from "./worker-start.ts";

/** Everything but the receive buffers: send batch, one TUN packet, injected datagrams, headers, flows. */
const ARENA_BYTES = 2 << 20;
/** Commands applied before packets get their turn. */
const COMMANDS_PER_TURN = 1024;

export interface DataPathDeps {
  /** Device clock. */
  readonly clock: () => Millis;
  /** Main should look into the rings. */
  readonly wakeMain: () => void;
  /** The ring of a capture that main made since it was asked last. */
  readonly newestCapture: () => SharedArrayBuffer | undefined;
}

/** Every part of the data worker, put together; who calls them in which order is the loop's business. */
export class DataPath implements Disposable {
  readonly arena: Arena;
  readonly aead: Aead;
  readonly stats: Stats;
  readonly commands: Ring;
  readonly reporter: Reporter;
  readonly peers: Peers;
  readonly routes: Routes;
  readonly staging: Staging;
  readonly sessions: Sessions;
  readonly queue: SendQueue;
  readonly tun: TunWriter;
  readonly timers: Timers;
  readonly gate: HandshakeGate;
  readonly filter: PacketFilter;
  readonly transmitter: Transmitter;
  readonly receiver: Receiver;
  readonly applier: CommandApplier;
  readonly v4: UdpReceiver;
  readonly v6: UdpReceiver;
  /** There is more to do than the last turn did: it must not wait. */
  isBusy = false;

  constructor(start: WorkerStart, deps: DataPathDeps) {
    const { limits } = start;
    const arena = new Arena(ARENA_BYTES + UdpBuffers.arenaBytes(start.gro));
    this.arena = arena;
    this.stats = new Stats(start.stats);
    this.stats.takeOver();
    this.commands = new Ring(start.commands);
    this.aead = openAead(arena);
    const [events, datagrams, relay] = [new Ring(start.events), new Ring(start.datagrams), new Ring(start.relay)];
    this.reporter = new Reporter({ events, datagrams, relay }, this.stats, arena.bytes, deps.wakeMain);
    this.peers = new Peers(this.stats.peerCapacity);
    this.routes = new Routes(arena.view);
    this.staging = new Staging(arena, this.stats);
    this.sessions = new Sessions((session) => this.reporter.sessionEnded(session.peer.slot, session.localIndex));
    this.queue = new SendQueue(arena, this.stats, this.reporter, start);
    this.tun = new TunWriter(arena, this.stats, start.tunFd, start.virtioHeader);
    this.timers = new Timers(limits, {
      sendKeepalive: (peer) => this.applier.sendKeepalive(peer),
      noAnswer: (peer) => this.reporter.needHandshake(peer, "no-answer", this.applier.now),
      silent: (peer) => this.reporter.silent(peer),
      expireSessions: (peer) => this.applier.expire(peer, limits.rejectAfterTime),
    });
    this.gate = new HandshakeGate(arena.bytes, this.stats, datagrams, start.mac1Key);
    this.filter = new PacketFilter(arena.view);
    let captureBuffer = start.capture;
    const { aead, stats, reporter, peers, routes, staging, sessions, queue, tun, timers, gate, filter } = this;
    const shared = {
      ...{ arena, aead, stats, reporter, peers, routes, staging, sessions, queue, tun, timers, gate, filter, limits },
      capture: new Capture(arena, reporter, deps.clock),
      captureRing: () => {
        captureBuffer = deps.newestCapture() ?? captureBuffer;
        return captureBuffer && new Ring(captureBuffer);
      },
      applyCommands: () => {
        if (this.applyCommands()) this.isBusy = true;
      },
      coalescer: new Coalescer(arena, tun, start.udpSegmentation),
    };
    this.transmitter = new Transmitter(shared, start);
    this.receiver = new Receiver({ ...shared, transmitter: this.transmitter });
    this.applier = new CommandApplier(this.commands, {
      ...shared,
      transmitter: this.transmitter,
      receiver: this.receiver,
    });
    const buffers = new UdpBuffers(arena, start.gro);
    this.v4 = new UdpReceiver(arena, stats, buffers, start.v4Fd, start.port);
    this.v6 = new UdpReceiver(arena, stats, buffers, start.v6Fd, start.port);
  }

  /** Device clock of what follows. */
  set now(now: Millis) {
    this.transmitter.now = this.receiver.now = this.queue.now = this.applier.now = this.filter.now = now;
  }

  /** Applies what main commands, a bounded number of records; true when some may be left. */
  applyCommands(): boolean {
    return this.applier.apply(COMMANDS_PER_TURN);
  }

  /** Wipes keys and gives back what OpenSSL holds for them. */
  [Symbol.dispose](): void {
    this.sessions.close();
    this.gate.close();
    this.aead.close();
  }
}
