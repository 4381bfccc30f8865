import type { Millis } from "#base/time.ts";
import { Errno } from "#net/errno.ts";
import { libc } from "#net/libc.ts";
import { DataPath, type DataPathDeps } from "./data-path.ts";
import { Counter } from "./stats.ts";
import { ControlWord, type WorkerStart } from "./worker-start.ts";

/** Batches of sending and receiving before commands and timers are looked at again. */
const ROUNDS_PER_TURN = 16;

const POLLIN = 1;
const POLLOUT = 4;
const POLLERR = 8;
const POLLNVAL = 0x20;
const POLLFD_BYTES = 8;
/** Event descriptor, TUN, one socket of each family. */
const POLLED = 4;

/**
 * The loop of the data worker:
 *
 *   poll (the only place that waits) -> commands from main -> up to 16 rounds of { TUN -> UDP, UDP -> TUN } -> timers
 *
 * The descriptors are not its own.
 */
export class DataLoop implements Disposable {
  readonly #libc = libc();
  readonly #start: WorkerStart;
  readonly #control: Int32Array;
  readonly #clock: () => Millis;
  readonly #path: DataPath;
  readonly #pollfds: number;
  readonly #eventBuffer: number;

  constructor(start: WorkerStart, deps: Omit<DataPathDeps, "clock">) {
    this.#start = start;
    this.#control = new Int32Array(start.control);
    // performance.now() counts from the start of this thread; main's clock is the device's.
    const lag = Number(process.hrtime.bigint()) / 1e6 - start.clockOffset - performance.now();
    this.#clock = (): Millis => performance.now() + lag;
    this.#path = new DataPath(start, { ...deps, clock: this.#clock });
    const { arena } = this.#path;
    // pollfd: descriptor 0/4 (negative: ignored), events 4/2, revents 6/2.
    this.#pollfds = arena.take(POLLED * POLLFD_BYTES);
    [start.eventFd, start.tunFd, start.v4Fd, start.v6Fd].forEach((fd, index) => {
      arena.view.setInt32(this.#pollfds + index * POLLFD_BYTES, fd, true);
      arena.view.setUint16(this.#pollfds + index * POLLFD_BYTES + 4, POLLIN, true);
    });
    this.#eventBuffer = arena.take(8);
  }

  /** How packets are encrypted, for the device's list of features. */
  get aead(): string {
    return this.#path.aead.name;
  }

  /** Main wants it to end. */
  get isStopped(): boolean {
    return Atomics.load(this.#control, ControlWord.stop) !== 0;
  }

  /** Once around, waiting first when there is nothing to do, at most `patience`. Throws when `poll` itself does not work. */
  turn(patience: Millis = Number.POSITIVE_INFINITY): "done" | "interface-gone" {
    const path = this.#path;
    const { transmitter, receiver, queue, timers, commands } = path;
    const { words } = path.stats;
    const { view, base } = path.arena;
    const pollfds = this.#pollfds;
    const TUN = pollfds + POLLFD_BYTES;
    const V4 = TUN + POLLFD_BYTES;
    const V6 = V4 + POLLFD_BYTES;
    const { blockedFamily } = queue;
    view.setUint16(TUN + 4, blockedFamily === 0 ? POLLIN : 0, true);
    view.setUint16(V4 + 4, blockedFamily === 4 ? POLLIN | POLLOUT : POLLIN, true);
    view.setUint16(V6 + 4, blockedFamily === 6 ? POLLIN | POLLOUT : POLLIN, true);
    // Stop is set before the event descriptor is written, sleep is announced before both are looked at.
    const idle = !path.isBusy && commands.sleepUnlessFilled();
    const wait = idle ? waitFor(Math.min(patience, timers.nextAt - this.#clock())) : 0;
    const polledReady = this.#libc.poll(base + pollfds, POLLED, wait);
    commands.wakeUp();
    if (polledReady < 0) {
      if (this.#libc.errno() === Errno.EINTR) return "done";
      throw new Error(`poll fails with errno ${this.#libc.errno()}`);
    }
    words[Counter["wake-ups"]]!++;
    const tunReady = view.getUint16(TUN + 6, true);
    if ((tunReady & (POLLERR | POLLNVAL)) !== 0) return "interface-gone";
    const now = this.#clock();
    path.now = now;
    if (view.getUint16(pollfds + 6, true) !== 0) this.#libc.read(this.#start.eventFd, base + this.#eventBuffer, 8);

    path.isBusy = path.applyCommands();
    let tunLive = (tunReady & POLLIN) !== 0 || blockedFamily !== 0 || transmitter.hasWaiting;
    let v4Live = (view.getUint16(V4 + 6, true) & ~POLLOUT) !== 0;
    let v6Live = (view.getUint16(V6 + 6, true) & ~POLLOUT) !== 0;
    // A source that was ready is asked in every round: what it gets while the others are served must not wait for poll.
    for (let round = 0; round < ROUNDS_PER_TURN; round++) {
      const sent = tunLive && transmitter.turn();
      const received4 = v4Live && receiver.turn(path.v4);
      const received6 = v6Live && receiver.turn(path.v6);
      if (!sent && !received4 && !received6) break;
      if (path.tun.gone) return "interface-gone";
      if (sent) v4Live = v6Live = true;
      if (received4 || received6) tunLive = true;
      if (this.#start.v6Fd < 0) v6Live = false;
    }
    if (timers.nextAt <= now) timers.run(now);
    // What was staged while the socket was full: nobody else says that it has room again when it has it before the poll.
    if (queue.flush() && transmitter.hasWaiting) path.isBusy = true;
    words[Counter.sessions] = path.sessions.size;
    words[Counter["filter-connections"]] = path.filter.connections;
    path.reporter.flush();
    return "done";
  }

  /** Wipes keys. */
  [Symbol.dispose](): void {
    this.#path[Symbol.dispose]();
  }
}

/** Whole milliseconds for poll, rounded up so that it does not return too early; -1 for ever. */
function waitFor(ms: Millis): number {
  if (ms === Number.POSITIVE_INFINITY) return -1;
  return Math.min(Math.max(0, Math.ceil(ms)), 0x7fffffff);
}
