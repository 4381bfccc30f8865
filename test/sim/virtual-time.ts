import { BinaryHeap } from "#base/binary-heap.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";

interface Entry {
  readonly at: Millis;
  readonly sequence: number;
  run: (() => void) | undefined;
}

/** Promise steps that follow from one event are taken before the next event; no chain in the agent is longer. */
const MICROTASK_ROUNDS = 8;

/**
 * Time of a whole world: like ManualClock, but a heap, and promises settle between two events, so that code with promises
 * sees time pass as it does in a process. Events fire in order of their time, ties in order of arming.
 */
export class VirtualTime implements Clock {
  #now: Millis = 0;
  #sequence = 0;
  #live = 0;
  /** Events since time last moved. */
  #standing = 0;
  readonly #heap = new BinaryHeap<Entry>(isBefore);

  now(): Millis {
    return this.#now;
  }

  wall(): number {
    return this.#now + 1_800_000_000_000;
  }

  /** Armed and neither fired nor cancelled. */
  get pending(): number {
    return this.#live;
  }

  after(delay: Millis, callback: () => void): Timer {
    const entry: Entry = { at: this.#now + Math.max(0, delay), sequence: this.#sequence++, run: callback };
    this.#live++;
    this.#heap.push(entry);
    return {
      cancel: () => {
        if (!entry.run) return;
        entry.run = undefined;
        this.#live--;
      },
    };
  }

  /** Runs the next event if it is not later than `end`, else only moves to `end`. */
  async runNext(end: Millis): Promise<boolean> {
    for (let next = this.#heap.first; next && next.at <= end; next = this.#heap.first) {
      this.#heap.pop();
      const { run } = next;
      if (!run) continue;
      next.run = undefined;
      this.#live--;
      this.#standing = next.at > this.#now ? 0 : this.#standing + 1;
      if (this.#standing > STANDING_MAX) throw new Error(`time stands still at ${this.#now} ms`);
      this.#now = Math.max(this.#now, next.at);
      run();
      for (let round = 0; round < MICROTASK_ROUNDS; round++) await undefined;
      return true;
    }
    this.#now = Math.max(this.#now, end);
    return false;
  }

  /** Runs everything up to `end`; `between` is called after each event. */
  async runUntil(end: Millis, between?: () => void): Promise<void> {
    while (await this.runNext(end)) between?.();
  }
}

function isBefore(a: Entry, b: Entry): boolean {
  return a.at < b.at || (a.at === b.at && a.sequence < b.sequence);
}

/** What a process's clock shows when it begins: 0 would look like "never". */
const STARTED_AT: Millis = 1000;
/** More events than this in one instant are an endless loop. */
const STANDING_MAX = 100_000;

interface MachineTimer {
  /** On the machine's clock. */
  readonly at: Millis;
  readonly callback: () => void;
  readonly counted: boolean;
  timer: Timer | undefined;
}

/**
 * The clock of one process on one machine: it stands still while the machine is suspended, its wall clock may be wrong, and
 * `stop` ends it with all its timers, as a crash does.
 */
export class MachineClock implements Clock {
  readonly #time: VirtualTime;
  /** Subtracted from the world's time: when the process began, and what the machine was suspended since. */
  #behind: Millis;
  #suspendedAt: Millis | undefined;
  /** Times of timers that fired: rounding must not put the clock before them. */
  #reached: Millis = 0;
  #wallOffset: number;
  #wallOffsetMax: number;
  readonly #wallFloor: number;
  #stopped = false;
  readonly #timers = new Set<MachineTimer>();

  /** `wallOffset`: of the wall clock from the world's; it never gets below `wallFloor`. */
  constructor(time: VirtualTime, wallOffset: number, wallFloor: number) {
    this.#wallFloor = wallFloor;
    this.#time = time;
    this.#behind = time.now() - STARTED_AT;
    this.#wallOffset = wallOffset;
    this.#wallOffsetMax = wallOffset;
  }

  now(): Millis {
    return Math.max(this.#reached, (this.#suspendedAt ?? this.#time.now()) - this.#behind);
  }

  wall(): number {
    return this.#time.wall() + this.#wallOffset;
  }

  /** Since the process began, without what it was suspended. */
  get uptime(): Millis {
    return this.now() - STARTED_AT;
  }

  stepWall(by: number): void {
    this.#wallOffset = Math.max(this.#wallFloor, this.#wallOffset + by);
    this.#wallOffsetMax = Math.max(this.#wallOffsetMax, this.#wallOffset);
  }

  /** The furthest ahead of the world that the wall clock was. */
  get wallOffsetMax(): number {
    return this.#wallOffsetMax;
  }

  get suspended(): boolean {
    return this.#suspendedAt !== undefined;
  }

  /** Timers that the agent's code armed. */
  get pending(): number {
    let count = 0;
    for (const { counted } of this.#timers) if (counted) count++;
    return count;
  }

  after(delay: Millis, callback: () => void): Timer {
    return this.#arm(delay, callback, true);
  }

  /** The same clock for what stands for a worker thread or a kernel: its timers are not the agent's. */
  readonly outside: Clock = {
    now: () => this.now(),
    wall: () => this.wall(),
    after: (delay, callback) => this.#arm(delay, callback, false),
  };

  suspend(): void {
    if (this.suspended || this.#stopped) return;
    this.#suspendedAt = this.#time.now();
    for (const timer of this.#timers) timer.timer?.cancel();
  }

  resume(): void {
    if (this.#suspendedAt === undefined) return;
    this.#behind += this.#time.now() - this.#suspendedAt;
    this.#suspendedAt = undefined;
    for (const timer of this.#timers) this.#start(timer);
  }

  stop(): void {
    this.#stopped = true;
    for (const timer of this.#timers) timer.timer?.cancel();
    this.#timers.clear();
  }

  #arm(delay: Millis, callback: () => void, counted: boolean): Timer {
    const timer: MachineTimer = { at: this.now() + Math.max(0, delay), callback, counted, timer: undefined };
    if (!this.#stopped) {
      this.#timers.add(timer);
      if (!this.suspended) this.#start(timer);
    }
    return {
      cancel: () => {
        if (this.#timers.delete(timer)) timer.timer?.cancel();
      },
    };
  }

  #start(timer: MachineTimer): void {
    timer.timer = this.#time.after(timer.at - this.now(), () => {
      this.#reached = Math.max(this.#reached, timer.at);
      if (this.#timers.delete(timer)) timer.callback();
    });
  }
}
