import type { Worker } from "node:worker_threads";
import { messageOf } from "#base/errors.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis } from "#base/time.ts";
import { lastError, libc } from "#net/libc.ts";
import { DataPlaneError } from "../../worker/data-plane-error.ts";
import { FaultBudget } from "../../worker/fault-budget.ts";
import { Ring } from "../../worker/ring.ts";
import { spawnThread } from "../../worker/spawn-thread.ts";
import { Counter, Stats } from "../../worker/stats.ts";
import { stopAtExit } from "../../worker/stop-at-exit.ts";
import { type PortCommand, PortControl, type PortMessage, PortRecord, type PortStart } from "./port-records.ts";

/** Of all sockets together; what finds it full is dropped and counted. */
const RING_BYTES = 4 << 20;
/** Messages handled before other work of the main thread gets its turn. */
const RECORDS_PER_TURN = 96;
const TURN_BUDGET: Millis = 5;

const EFD_NONBLOCK_CLOEXEC = 0x800 | 0x80000;

/** A socket that the thread reads for its owner. */
export interface PortWatch {
  /** Resolves when the thread has let go of the descriptor, which the owner may close then; nothing is reported any more. */
  end(): Promise<void>;
}

interface Channel {
  readonly id: number;
  readonly fd: number;
  readonly listener: (record: PortRecord) => void;
  readonly released: PromiseWithResolvers<void>;
  isEnding: boolean;
}

export interface PortThreadDeps {
  readonly log: Logger;
  readonly clock: Clock;
}

/**
 * Main's handle on the one thread of an external device. It reads sockets that Node cannot read, in batches, and sleeps in
 * `poll` while there is nothing; sending is main's own. A thread that dies of a fault is replaced by another on the same sockets, and
 * what it had read is not lost; after the fifth within a minute the sockets stay unread, and `gone` resolves.
 */
export class PortThread implements AsyncDisposable {
  readonly #deps: PortThreadDeps;
  readonly #eventFd: number;
  readonly #control = new SharedArrayBuffer(4);
  readonly #stats = Stats.create(0);
  readonly #budget = new FaultBudget();
  readonly #channels = new Map<number, Channel>();
  readonly #started = Promise.withResolvers<void>();
  readonly #over = Promise.withResolvers<void>();
  readonly #gone = Promise.withResolvers<{ readonly reason: string }>();
  readonly #ended: () => void;
  #worker: Worker | undefined;
  #ring = Ring.create(RING_BYTES);
  #record = new PortRecord(this.#ring);
  #droppedBefore = 0;
  #restarts = 0;
  #nextId = 0;
  #isReady = false;
  #isStopping = false;
  #isDue = false;
  #closed: Promise<void> | undefined;

  private constructor(deps: PortThreadDeps) {
    this.#deps = deps;
    this.#eventFd = libc().eventfd(0, EFD_NONBLOCK_CLOEXEC);
    if (this.#eventFd < 0) throw lastError("cannot make an eventfd");
    this.#ended = stopAtExit(this);
  }

  /** Throws NetError `ffi-missing` or `syscall-failed`, DataPlaneError `worker-failed`; nothing is left then. */
  static async start(deps: PortThreadDeps): Promise<PortThread> {
    const thread = new PortThread(deps);
    try {
      thread.#run();
      await thread.#started.promise;
      return thread;
    } catch (error) {
      if (thread.#worker === undefined) thread.#over.resolve();
      await thread.close();
      throw error;
    }
  }

  /** Resolves when the sockets are read no more although nobody closed the thread. */
  get gone(): Promise<{ readonly reason: string }> {
    return this.#gone.promise;
  }

  /** Messages that found the ring full or were larger than any datagram, and what the kernel dropped before us. */
  counters(): ReadonlyMap<string, number> {
    const { words } = this.#stats;
    return new Map([
      ["port-thread-restarts", this.#restarts],
      ["port-wake-ups", words[Counter["wake-ups"]]!],
      ["drop-port-queue", this.#droppedBefore + this.#ring.dropped],
      ["drop-socket-queue", words[Counter["drop-socket-queue"]]!],
      ["drop-truncated", words[Counter["drop-truncated"]]!],
    ]);
  }

  /**
   * Reads a non-blocking datagram socket from now on. The listener runs on the main thread; the record is in shared memory and
   * ends when the listener returns.
   */
  watch(fd: number, listener: (record: PortRecord) => void): PortWatch {
    const id = this.#nextId++ & 0xffff;
    const released = Promise.withResolvers<void>();
    const channel: Channel = { id, fd, listener, released, isEnding: false };
    if (this.#isStopping) released.resolve();
    else {
      this.#channels.set(id, channel);
      this.#post({ kind: "watch", channel: { id, fd } });
    }
    return { end: () => this.#unwatch(channel) };
  }

  /** Lets go of all sockets and ends the thread; idempotent. */
  close(): Promise<void> {
    this.#closed ??= this.#stop();
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Makes the thread leave its loop without waiting for it. For the exit hook; `close` is for everybody else. */
  requestStop(): void {
    this.#isStopping = true;
    Atomics.store(new Int32Array(this.#control), PortControl.stop, 1);
    this.#poke();
  }

  async #stop(): Promise<void> {
    this.requestStop();
    await this.#over.promise;
    this.#ended();
    libc().close(this.#eventFd);
  }

  #unwatch(channel: Channel): Promise<void> {
    if (!channel.isEnding) {
      channel.isEnding = true;
      this.#post({ kind: "unwatch", id: channel.id });
    }
    return channel.released.promise;
  }

  #post(command: PortCommand): void {
    this.#worker?.postMessage(command);
    this.#poke();
  }

  #poke(): void {
    libc().write(this.#eventFd, new BigUint64Array([1n]), 8);
  }

  #run(): void {
    // A thread that is over, or not there yet, has let go of everything.
    for (const { id, isEnding } of [...this.#channels.values()]) if (isEnding) this.#release(id);
    const start: PortStart = {
      eventFd: this.#eventFd,
      control: this.#control,
      stats: this.#stats.buffer,
      ring: this.#ring.buffer,
      channels: [...this.#channels.values()].map(({ id, fd }) => ({ id, fd })),
    };
    let reason = "the port thread ended without a word";
    const worker = spawn(start);
    this.#worker = worker;
    worker.on("message", (message: PortMessage | number) => {
      if (typeof message === "number") {
        if (!this.#isDue) this.#drain();
      } else if (message.kind === "unwatched") this.#release(message.id);
      else if (message.kind === "fault") reason = message.reason;
      else this.#noteReady();
    });
    // Out of memory and the like: what the thread caught itself came as a message.
    worker.on("error", (error) => {
      reason = messageOf(error);
    });
    worker.on("exit", () => this.#noteEnd(reason));
    // Announces that main sleeps, so that the thread's first word wakes it.
    this.#drain();
  }

  #noteReady(): void {
    this.#isReady = true;
    this.#started.resolve();
  }

  #release(id: number): void {
    const channel = this.#channels.get(id);
    this.#channels.delete(id);
    channel?.released.resolve();
  }

  #noteEnd(reason: string): void {
    this.#worker = undefined;
    if (!this.#isReady && !this.#isStopping)
      this.#started.reject(new DataPlaneError("worker-failed", `the port thread does not start: ${reason}`));
    if (this.#isStopping || !this.#isReady) return this.#finish();
    this.#replace(reason);
  }

  #replace(reason: string): void {
    const { log, clock } = this.#deps;
    if (this.#budget.take(clock.now())) {
      log.error("port thread died, another takes over", { err: reason });
      this.#restarts++;
      this.#droppedBefore += this.#ring.dropped;
      for (let at = this.#ring.next(); at >= 0; at = this.#ring.next()) this.#handle(this.#ring, at);
      // What the dead one left half written is nobody's.
      this.#ring = Ring.create(RING_BYTES);
      this.#record = new PortRecord(this.#ring);
      try {
        return this.#run();
      } catch (error) {
        reason = messageOf(error);
      }
    }
    this.#finish();
    this.#gone.resolve({ reason });
  }

  #finish(): void {
    this.#isStopping = true;
    for (const { id } of [...this.#channels.values()]) this.#release(id);
    this.#over.resolve();
  }

  /** Reads what the thread wrote, a bounded number in a turn of the event loop. */
  #drain(): void {
    if (this.#isStopping) return;
    const ring = this.#ring;
    const { clock } = this.#deps;
    const until = clock.now() + TURN_BUDGET;
    let isEmpty = false;
    for (let count = 0; count < RECORDS_PER_TURN && !isEmpty && (count === 0 || clock.now() < until); count++) {
      const at = ring.next();
      isEmpty = at < 0;
      if (!isEmpty) this.#handle(ring, at);
    }
    if (isEmpty && ring.sleepUnlessFilled()) return;
    this.#isDue = true;
    setImmediate(() => {
      this.#isDue = false;
      this.#drain();
    });
  }

  #handle(ring: Ring, at: number): void {
    const record = this.#record.moveTo(at);
    const channel = this.#channels.get(record.channel);
    try {
      if (channel && !channel.isEnding) channel.listener(record);
    } finally {
      ring.release();
    }
  }
}

function spawn(start: PortStart): Worker {
  return spawnThread({
    what: "the port thread",
    name: "perch-port",
    script: new URL("./port-worker", import.meta.url),
    workerData: start,
    youngMb: 4,
  });
}
