import { parentPort, receiveMessageOnPort, workerData } from "node:worker_threads";
import { Errno } from "#net/errno.ts";
import { libc } from "#net/libc.ts";
import { openAead } from "./aead.ts";
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
import { ControlWord, type WorkerMessage, type WorkerStart } from "./worker-start.ts";

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

/*
 * The data worker: one thread, one loop, all calls synchronous.
 *
 *   poll (the only place that waits) -> commands from main -> up to 16 rounds of { TUN -> UDP, UDP -> TUN } -> timers
 *
 * Nothing here returns to the event loop until the worker is told to stop, so no timer, promise or message of Node's works
 * in this thread; what main should know goes through the rings.
 */
const start = workerData as WorkerStart;
const port = parentPort!;
const post = (message: WorkerMessage | number): void => port.postMessage(message);

try {
  run();
} catch (error) {
  const [reason, stack] = error instanceof Error ? [error.message, error.stack] : [String(error), undefined];
  post({ kind: "fault", reason, stack });
}

/** Returns when it was told to, or the interface is gone; throws what nobody expected. */
function run(): void {
  const c = libc();
  const control = new Int32Array(start.control);
  const commands = new Ring(start.commands);
  const stats = new Stats(start.stats);
  stats.takeOver();
  const { words } = stats;
  const { limits } = start;
  // performance.now() counts from the start of this thread; main's clock is the device's.
  const lag = Number(process.hrtime.bigint()) / 1e6 - start.clockOffset - performance.now();
  const clock = (): number => performance.now() + lag;

  const arena = new Arena(ARENA_BYTES + UdpBuffers.arenaBytes(start.gro));
  const aead = openAead(arena);
  const rings = { events: new Ring(start.events), datagrams: new Ring(start.datagrams), relay: new Ring(start.relay) };
  const reporter = new Reporter(rings, stats, arena.bytes, () => post(0));
  const peers = new Peers(stats.peerCapacity);
  const routes = new Routes(arena.view);
  const staging = new Staging(arena, stats);
  const sessions = new Sessions((session) => reporter.sessionEnded(session.peer.slot, session.localIndex));
  const queue = new SendQueue(arena, stats, reporter, start);
  const tun = new TunWriter(arena, stats, start.tunFd, start.virtioHeader);
  const timers = new Timers(limits, {
    sendKeepalive: (peer) => applier.sendKeepalive(peer),
    noAnswer: (peer) => reporter.needHandshake(peer, "no-answer", applier.now),
    silent: (peer) => reporter.silent(peer),
    expireSessions: (peer) => applier.expire(peer, limits.rejectAfterTime),
  });
  const gate = new HandshakeGate(arena.bytes, stats, rings.datagrams, start.mac1Key);
  const filter = new PacketFilter(arena.view);
  const capture = new Capture(arena, reporter, clock);
  let captureBuffer = start.capture;
  const captureRing = (): Ring | undefined => {
    // Main posts the ring before it writes the command.
    for (let said = receiveMessageOnPort(port); said; said = receiveMessageOnPort(port)) captureBuffer = said.message;
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
    if (applier.apply(COMMANDS_PER_TURN)) more = true;
  };
  const receiver = new Receiver({ ...shared, coalescer, transmitter, applyCommands });
  const applier = new CommandApplier(commands, { ...shared, transmitter, receiver, captureRing });
  const buffers = new UdpBuffers(arena, start.gro);
  const v4 = new UdpReceiver(arena, stats, buffers, start.v4Fd, start.port);
  const v6 = new UdpReceiver(arena, stats, buffers, start.v6Fd, start.port);

  // pollfd: descriptor 0/4 (negative: ignored), events 4/2, revents 6/2.
  const polled = [start.eventFd, start.tunFd, start.v4Fd, start.v6Fd];
  const pollfds = arena.take(polled.length * POLLFD_BYTES);
  polled.forEach((fd, index) => {
    arena.view.setInt32(pollfds + index * POLLFD_BYTES, fd, true);
    arena.view.setUint16(pollfds + index * POLLFD_BYTES + 4, POLLIN, true);
  });
  const [TUN, V4, V6] = [1, 2, 3].map((index) => pollfds + index * POLLFD_BYTES) as [number, number, number];
  const ready = (place: number): number => arena.view.getUint16(place + 6, true);
  const eventBuffer = arena.take(8);

  post({ kind: "ready", features: [aead.name] });
  let more = false;
  try {
    while (Atomics.load(control, ControlWord.stop) === 0) {
      const { blockedFamily } = queue;
      arena.view.setUint16(TUN + 4, blockedFamily === 0 ? POLLIN : 0, true);
      arena.view.setUint16(V4 + 4, blockedFamily === 4 ? POLLIN | POLLOUT : POLLIN, true);
      arena.view.setUint16(V6 + 4, blockedFamily === 6 ? POLLIN | POLLOUT : POLLIN, true);
      // Stop is set before the event descriptor is written, sleep is announced before both are looked at.
      const idle = !more && commands.sleepUnlessFilled();
      const polledReady = c.poll(arena.base + pollfds, polled.length, idle ? waitFor(timers.nextAt - clock()) : 0);
      commands.wakeUp();
      if (polledReady < 0) {
        if (c.errno() === Errno.EINTR) continue;
        throw new Error(`poll fails with errno ${c.errno()}`);
      }
      words[Counter["wake-ups"]]!++;
      if ((ready(TUN) & (POLLERR | POLLNVAL)) !== 0) return post({ kind: "interface-gone" });
      const now = clock();
      transmitter.now = receiver.now = queue.now = applier.now = filter.now = now;
      if (ready(pollfds) !== 0) c.read(start.eventFd, arena.base + eventBuffer, 8);

      more = applier.apply(COMMANDS_PER_TURN);
      let tunLive = (ready(TUN) & POLLIN) !== 0 || blockedFamily !== 0 || transmitter.hasWaiting;
      let v4Live = (ready(V4) & ~POLLOUT) !== 0;
      let v6Live = (ready(V6) & ~POLLOUT) !== 0;
      // A source that was ready is asked in every round: what it gets while the others are served must not wait for poll.
      for (let round = 0; round < ROUNDS_PER_TURN; round++) {
        const sent = tunLive && transmitter.turn();
        const received4 = v4Live && receiver.turn(v4);
        const received6 = v6Live && receiver.turn(v6);
        if (!sent && !received4 && !received6) break;
        if (tun.gone) return post({ kind: "interface-gone" });
        if (sent) v4Live = v6Live = true;
        if (received4 || received6) tunLive = true;
        if (start.v6Fd < 0) v6Live = false;
      }
      if (timers.nextAt <= now) timers.run(now);
      // What was staged while the socket was full: nobody else says that it has room again when it has it before the poll.
      if (queue.flush() && transmitter.hasWaiting) more = true;
      words[Counter.sessions] = sessions.size;
      words[Counter["filter-connections"]] = filter.connections;
      reporter.flush();
    }
  } finally {
    // However it ends: keys are wiped, and what OpenSSL holds for them is given back.
    sessions.close();
    gate.close();
    aead.close();
  }
}

/** Whole milliseconds for poll, rounded up so that it does not return too early; -1 for ever. */
function waitFor(ms: number): number {
  if (ms === Number.POSITIVE_INFINITY) return -1;
  return Math.min(Math.max(0, Math.ceil(ms)), 0x7fffffff);
}
