/**
 * Loaded into a daemon under measurement (`--import`): on SIGUSR2 it collects garbage and writes what the process costs, as
 * one line of JSON, to standard error, which is the daemon's log. The product does not know of it.
 */
import { subscribe, unsubscribe } from "node:diagnostics_channel";
import { readdirSync } from "node:fs";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/**
 * What the probe writes. Bytes; both of the loop since the line before, at first since the daemon listens: until then nobody
 * can be held up.
 */
export interface ProbeLine {
  readonly rss: number;
  readonly heapUsed: number;
  readonly external: number;
  readonly descriptors: number;
  readonly timers: number;
  /** The longest time the event loop was held up, by other programs on the machine as well. */
  readonly loopMaxMs: number;
  /** Most processor time of the main thread between two looks of a timer of 1 ms: a turn of the loop, sometimes two. */
  readonly turnMaxMs: number;
  /** CPU of all threads since the start, ms. */
  readonly cpuMs: number;
}

const COLLECTIONS = 3;
/** Of Node: a server, here the daemon's, listens. */
const LISTENING = "tracing:net.server.listen:asyncEnd";

class TurnMeter {
  #timer: NodeJS.Timeout | undefined;
  #longest = 0;

  get longestMs(): number {
    return this.#longest;
  }

  start(): void {
    this.stop();
    this.#longest = 0;
    let before = process.threadCpuUsage();
    this.#timer = setInterval(() => {
      const { user, system } = process.threadCpuUsage(before);
      this.#longest = Math.max(this.#longest, (user + system) / 1000);
      before = process.threadCpuUsage();
    }, 1);
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}

if (process.argv.includes("run")) {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as (options: object) => void;
  const delay = monitorEventLoopDelay({ resolution: 1 });
  const turns = new TurnMeter();
  const watch = (): void => {
    delay.reset();
    delay.enable();
    turns.start();
  };
  const listening = (): void => {
    unsubscribe(LISTENING, listening);
    watch();
  };
  subscribe(LISTENING, listening);
  process.on("SIGUSR2", () => {
    const loopMaxMs = delay.max / 1e6;
    const turnMaxMs = turns.longestMs;
    turns.stop();
    // As under memory pressure: with everything moved together, so that what is counted is what is held.
    for (let round = 0; round < COLLECTIONS; round++)
      collect({ type: "major", execution: "sync", flavor: "last-resort" });
    const { rss, heapUsed, external } = process.memoryUsage();
    const { user, system } = process.cpuUsage();
    const line: ProbeLine = {
      ...{ rss, heapUsed, external, loopMaxMs, turnMaxMs },
      descriptors: readdirSync("/proc/self/fd").length,
      timers: process.getActiveResourcesInfo().filter((name) => name === "Timeout").length,
      cpuMs: (user + system) / 1000,
    };
    process.stderr.write(`PROBE ${JSON.stringify(line)}\n`);
    watch();
  });
  // The measurement of the loop wakes the process a thousand times a second; until the next SIGUSR2 it is off.
  process.on("SIGWINCH", () => {
    delay.disable();
    turns.stop();
  });
}
