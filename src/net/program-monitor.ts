import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { type Clock, type Millis, systemClock, type Timer } from "#base/time.ts";
import { commandThatEndsWithUs, findProgram, PROGRAM_ENVIRONMENT } from "./find-program.ts";

/** Until a program that was started sees everything. */
const SETTLE: Millis = 500;
/** Before one that ended is started again; twice as long each time that it ended before it saw everything. */
const PAUSE: Millis = 500;
const PAUSE_MAX: Millis = 5_000;

export interface ProgramMonitorOptions {
  /** A program that does not end by itself. */
  readonly command: readonly [string, ...string[]];
  /** What it tells. */
  readonly line: (line: string) => void;
  /** It sees what happens from now on; something may have happened before. After each start. */
  readonly settled?: () => void;
  /** It has ended, or cannot be started, and will be started again. */
  readonly ended?: () => void;
}

/**
 * A program that tells what happens on this machine, line by line, such as `ip monitor`: started again whenever it ends, until
 * `close`. It ends with us, however we do, and does not keep us from ending. What it lacks is nobody's error: it is tried again.
 */
export class ProgramMonitor {
  readonly #options: ProgramMonitorOptions;
  readonly #clock: Clock;
  #child: ChildProcess | undefined;
  #timer: Timer | undefined;
  #pause = PAUSE;
  #closed = false;

  constructor(options: ProgramMonitorOptions, clock: Clock = systemClock) {
    this.#options = options;
    this.#clock = clock;
    void this.#start();
  }

  /** Nothing is told any more. */
  close(): void {
    this.#closed = true;
    this.#timer?.cancel();
    this.#child?.kill("SIGKILL");
  }

  async #start(): Promise<void> {
    try {
      const ahead = await commandThatEndsWithUs("KILL");
      if (!this.#closed) this.#spawn(ahead);
    } catch {
      // Not even memory for it.
      this.#noteEnd();
    }
  }

  #spawn(ahead: readonly string[]): void {
    const [name, ...args] = this.#options.command;
    const path = findProgram(name);
    if (path === undefined) return this.#noteEnd();
    const [program, ...words] = [...ahead, path, ...args] as [string, ...string[]];
    const child = spawn(program, words, { stdio: ["ignore", "pipe", "ignore"], env: PROGRAM_ENVIRONMENT });
    this.#child = child;
    child.on("error", () => {});
    child.on("close", () => this.#noteEnd());
    child.unref();
    // A system without descriptors makes none, whatever the type says.
    const output = child.stdout as typeof child.stdout | undefined;
    if (!output) return;
    createInterface({ input: output }).on("line", (line) => {
      if (!this.#closed) this.#options.line(line);
    });
    // A pipe is a socket.
    (output as unknown as { unref(): void }).unref();
    this.#later(SETTLE, () => {
      this.#pause = PAUSE;
      this.#options.settled?.();
    });
  }

  #noteEnd(): void {
    if (this.#closed) return;
    this.#later(this.#pause, () => void this.#start());
    this.#pause = Math.min(2 * this.#pause, PAUSE_MAX);
    this.#options.ended?.();
  }

  #later(pause: Millis, call: () => void): void {
    this.#timer?.cancel();
    if (!this.#closed) this.#timer = this.#clock.after(pause, call);
  }
}
