import type { Emitter } from "#base/emitter.ts";
import type { Logger } from "#base/log.ts";
import type { Millis } from "#base/time.ts";
import type { CommandSender } from "./commands.ts";
import { DataPlaneError } from "./data-plane-error.ts";
import { FAULT_WINDOW, FAULTS_MAX, FaultBudget } from "./fault-budget.ts";
import type { DataPlaneEvents } from "./plane-events.ts";
import { emitRelayed, emitReports } from "./reports.ts";
import { spawnWorker, type WorkerEnd, WorkerLife, type WorkerSetUp } from "./worker-life.ts";
import { ControlWord } from "./worker-start.ts";

/** Handshake and STUN messages handled before other work of the main thread gets its turn. */
const DATAGRAMS_PER_TURN = 64;
/** The same for events, most of which are small. */
const EVENTS_PER_TURN = 256;
/** What is not handled after so long is left to the next turn: of many peers that connect, each event may take a millisecond. */
const TURN_BUDGET: Millis = 5;
/**
 * Relayed datagrams taken before the relay's connection may write: less than it queues (256 KiB), for what it cannot queue
 * it drops.
 */
const RELAYED_PER_TURN = 96;

export interface WorkerHostDeps {
  readonly events: Emitter<DataPlaneEvents>;
  readonly log: Logger;
  /** What the next worker starts with. */
  readonly setUp: () => WorkerSetUp;
  /** A worker that sleeps in `poll` has to look. */
  readonly wake: () => void;
  /** Device clock. */
  readonly now: () => number;
  /** A new worker begins with empty tables: gives it everything, before it runs. */
  readonly restore: (reason: string) => void;
  /** There may be something in a ring that is not the host's. */
  readonly filled: () => void;
  /** Words of ControlWord. */
  readonly control: SharedArrayBuffer;
  readonly spawn?: typeof spawnWorker;
}

/**
 * Keeps one data worker running on descriptors that outlive it.
 *
 *   start --> runs --fault--> rings read to the end, new rings, tables given anew, next worker --> runs
 *              | |
 *              | '-- fifth fault within a minute, interface deleted --> gone
 *              '---- stop --> ended
 *
 * A worker is only replaced when its thread is over: two would fight for the same packets and counters.
 */
export class WorkerHost {
  readonly #deps: WorkerHostDeps;
  readonly #budget = new FaultBudget();
  readonly #started = Promise.withResolvers<readonly string[]>();
  readonly #over = Promise.withResolvers<void>();
  #life: WorkerLife;
  #droppedBefore = 0;
  #restarts = 0;
  #ready = false;
  #stopping = false;
  /** The rings are looked at again in this turn of the event loop, or the next. */
  #isDue = false;
  #ended = false;

  constructor(deps: WorkerHostDeps) {
    this.#deps = deps;
    this.#life = new WorkerLife(deps.wake);
    this.#run(this.#life);
  }

  /** Resolves with what the first worker found, or rejects with DataPlaneError `worker-failed` when it cannot run. */
  get started(): Promise<readonly string[]> {
    return this.#started.promise;
  }

  /** Resolves when no thread runs any more and none will. */
  get over(): Promise<void> {
    return this.#over.promise;
  }

  /** Workers that took over from one that died. */
  get restarts(): number {
    return this.#restarts;
  }

  /** To the worker that runs, or to the next one. */
  get commands(): CommandSender {
    return this.#life.commands;
  }

  /** Relayed datagrams that found the ring of commands full. */
  get droppedCommands(): number {
    return this.#droppedBefore + this.#life.commands.dropped;
  }

  /** How full the ring of handshake and STUN messages is, 0 to 1. */
  get datagramLoad(): number {
    return this.#life.datagrams.used / this.#life.datagrams.capacity;
  }

  /** See `WorkerLife.post`. */
  post(message: unknown): void {
    this.#life.post(message);
  }

  /** Makes the worker leave its loop, without waiting for it: `over` tells. */
  requestStop(): void {
    this.#stopping = true;
    Atomics.store(new Int32Array(this.#deps.control), ControlWord.stop, 1);
    this.#deps.wake();
  }

  #run(life: WorkerLife): void {
    const { spawn = spawnWorker, setUp } = this.#deps;
    life.run(
      setUp(),
      {
        ready: (_, features) => this.#noteReady(features),
        filled: () => {
          if (!this.#isDue) this.#drain(life);
        },
        ended: (_, end) => this.#noteEnd(life, end),
      },
      spawn,
    );
    // Announces that main sleeps, so that the worker's first word wakes it.
    this.#drain(life);
  }

  #noteReady(features: readonly string[]): void {
    if (this.#ready) this.#deps.log.info("data worker runs again", { restarts: this.#restarts });
    this.#ready = true;
    this.#started.resolve(features);
  }

  #noteEnd(life: WorkerLife, end: WorkerEnd): void {
    if (!this.#ready) {
      const why = end.kind === "fault" ? end.reason : "the interface was deleted";
      this.#finish();
      this.#started.reject(new DataPlaneError("worker-failed", `the data worker does not start: ${why}`));
      return;
    }
    if (this.#stopping) return this.#finish();
    this.#drainAll(life);
    // A listener may have closed the device.
    if (this.#stopping) return this.#finish();
    if (end.kind === "interface-gone") this.#giveUp("the interface was deleted");
    else this.#replace(life, end);
  }

  #replace(life: WorkerLife, { reason, stack }: WorkerEnd & { readonly kind: "fault" }): void {
    const { log, now, restore } = this.#deps;
    if (!this.#budget.take(now())) {
      const seconds = FAULT_WINDOW / 1000;
      log.error("data worker died too often", { err: reason, stack });
      return this.#giveUp(`the data worker died ${FAULTS_MAX} times within ${seconds} s, at last of: ${reason}`);
    }
    this.#restarts++;
    log.error("data worker died, another takes over", { err: reason, stack, restarts: this.#restarts });
    this.#droppedBefore += life.commands.dropped;
    life.commands.close();
    const next = new WorkerLife(this.#deps.wake);
    this.#life = next;
    restore(reason);
    if (this.#stopping) return this.#finish();
    try {
      this.#run(next);
    } catch (error) {
      this.#giveUp(error instanceof Error ? error.message : String(error));
    }
  }

  #giveUp(reason: string): void {
    this.#finish();
    this.#deps.events.emit("gone", { reason });
  }

  #finish(): void {
    this.#ended = true;
    this.#life.commands.close();
    this.#over.resolve();
  }

  /** Reads what the worker wrote, a bounded number of each kind in a turn of the event loop. */
  #drain(life: WorkerLife): void {
    if (this.#ended || life !== this.#life) return;
    const { events, now } = this.#deps;
    life.commands.flush();
    const until = now() + TURN_BUDGET;
    const isOver = (): boolean => now() >= until;
    const moreEvents = emitReports(life.events, events, EVENTS_PER_TURN, isOver);
    const moreRelayed = emitRelayed(life.relay, events, RELAYED_PER_TURN);
    const moreDatagrams = emitReports(life.datagrams, events, DATAGRAMS_PER_TURN, isOver);
    this.#deps.filled();
    const left = moreEvents || moreRelayed || moreDatagrams;
    // Each ring announces sleep by itself: one that got something in the meantime is looked at again.
    const asleep = [life.events, life.relay, life.datagrams].map((ring) => ring.sleepUnlessFilled());
    if (!left && !asleep.includes(false)) return;
    this.#isDue = true;
    setImmediate(() => {
      this.#isDue = false;
      this.#drain(this.#life);
    });
  }

  /** What a dead worker had published: facts that hold without it. The rings bound it. */
  #drainAll(life: WorkerLife): void {
    const { events } = this.#deps;
    emitReports(life.events, events, Number.POSITIVE_INFINITY);
    emitRelayed(life.relay, events, Number.POSITIVE_INFINITY);
    emitReports(life.datagrams, events, Number.POSITIVE_INFINITY);
  }
}
