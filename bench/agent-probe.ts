/**
 * Loaded into a daemon under measurement (`--import`): on SIGUSR2 it collects garbage and writes what the process costs, as
 * one line of JSON, to standard error, which is the daemon's log. The product does not know of it.
 */
import { readdirSync } from "node:fs";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/** What the probe writes. Bytes; `loopMaxMs` is the longest time the event loop was held up since the line before. */
export interface ProbeLine {
  readonly rss: number;
  readonly heapUsed: number;
  readonly external: number;
  readonly descriptors: number;
  readonly timers: number;
  readonly loopMaxMs: number;
  /** CPU of all threads since the start, ms. */
  readonly cpuMs: number;
}

const COLLECTIONS = 3;

if (process.argv.includes("run")) {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as (options: object) => void;
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  process.on("SIGUSR2", () => {
    const loopMaxMs = delay.max / 1e6;
    // As under memory pressure: with everything moved together, so that what is counted is what is held.
    for (let round = 0; round < COLLECTIONS; round++)
      collect({ type: "major", execution: "sync", flavor: "last-resort" });
    const { rss, heapUsed, external } = process.memoryUsage();
    const { user, system } = process.cpuUsage();
    const line: ProbeLine = {
      ...{ rss, heapUsed, external, loopMaxMs },
      descriptors: readdirSync("/proc/self/fd").length,
      timers: process.getActiveResourcesInfo().filter((name) => name === "Timeout").length,
      cpuMs: (user + system) / 1000,
    };
    process.stderr.write(`PROBE ${JSON.stringify(line)}\n`);
    delay.reset();
    delay.enable();
  });
  // The measurement of the loop wakes the process a thousand times a second; until the next SIGUSR2 it is off.
  process.on("SIGWINCH", () => delay.disable());
}
