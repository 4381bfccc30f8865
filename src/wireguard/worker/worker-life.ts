import { messageOf } from "#base/errors.ts";
import { CommandSender } from "./commands.ts";
import { Ring } from "./ring.ts";
import { spawnThread } from "./spawn-thread.ts";
import type { WorkerMessage, WorkerStart } from "./worker-start.ts";

const COMMAND_RING_BYTES = 4 << 20;
const EVENT_RING_BYTES = 1 << 20;
/** About 1,100 initiations; what does not fit is dropped and counted, and a filling ring is the sign of load. */
const DATAGRAM_RING_BYTES = 256 << 10;
const RELAY_RING_BYTES = 4 << 20;

/** What a worker is started with but for its rings. */
export type WorkerSetUp = Omit<WorkerStart, "commands" | "events" | "datagrams" | "relay">;

/** What is needed of a thread; a `Worker` is one. */
export interface DataThread {
  on(event: "message", listener: (message: WorkerMessage | number) => void): unknown;
  on(event: "error", listener: (error: unknown) => void): unknown;
  on(event: "exit", listener: () => void): unknown;
  postMessage(message: unknown): void;
}

/** Why a worker ended. `stack` where there is one. */
export type WorkerEnd =
  | { readonly kind: "interface-gone" }
  | { readonly kind: "fault"; readonly reason: string; readonly stack: string | undefined };

export interface WorkerLifeListener {
  /** The worker took over; once. */
  ready(life: WorkerLife, features: readonly string[]): void;
  /** There may be something in the rings. */
  filled(life: WorkerLife): void;
  /** The thread is over, and nothing follows. Told to stop, it ends in a `fault` that nobody looks at. */
  ended(life: WorkerLife, end: WorkerEnd): void;
}

/**
 * One thread and the rings to and from it. The rings die with the thread: what a worker left half read or half written is
 * then nobody's. What it had published can still be read.
 */
export class WorkerLife {
  readonly commands: CommandSender;
  readonly events = Ring.create(EVENT_RING_BYTES);
  readonly datagrams = Ring.create(DATAGRAM_RING_BYTES);
  readonly relay = Ring.create(RELAY_RING_BYTES);
  readonly #commandRing = Ring.create(COMMAND_RING_BYTES);
  #thread: DataThread | undefined;

  constructor(wake: () => void) {
    this.commands = new CommandSender(this.#commandRing, once(wake));
  }

  /** Starts the thread; commands sent before are the first that it finds. */
  run(setUp: WorkerSetUp, listener: WorkerLifeListener, spawn: (start: WorkerStart) => DataThread): void {
    const { buffer } = this.#commandRing;
    const [events, datagrams, relay] = [this.events.buffer, this.datagrams.buffer, this.relay.buffer];
    let end: WorkerEnd = { kind: "fault", reason: "the data worker ended without a word", stack: undefined };
    const thread = spawn({ ...setUp, commands: buffer, events, datagrams, relay });
    this.#thread = thread;
    thread.on("message", (message) => {
      if (typeof message === "number") listener.filled(this);
      else if (message.kind === "ready") listener.ready(this, message.features);
      else end = message;
    });
    // Out of memory and the like: what the worker caught itself came as a message.
    thread.on("error", (error) => {
      end = { kind: "fault", reason: messageOf(error), stack: error instanceof Error ? error.stack : undefined };
    });
    thread.on("exit", () => listener.ended(this, end));
  }

  /** Something that does not fit into a record; a command that says so has to follow. */
  post(message: unknown): void {
    this.#thread?.postMessage(message);
  }
}

/** The real thread. */
export function spawnWorker(start: WorkerStart): DataThread {
  return spawnThread({
    what: "the data worker",
    name: "perch-data",
    script: new URL("./worker", import.meta.url),
    workerData: start,
    youngMb: 8,
  });
}

/** Once, when the callback that runs is over: each of the commands that it gives would cost a system call and a change of thread. */
function once(act: () => void): () => void {
  let isDue = false;
  return () => {
    if (isDue) return;
    isDue = true;
    queueMicrotask(() => {
      isDue = false;
      act();
    });
  };
}
