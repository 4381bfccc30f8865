/**
 * Loaded into a daemon under measurement (`--import`): on SIGUSR2 it collects garbage and writes what the process costs, as
 * one line of JSON, to the file that PERCH_PROBE_FILE names. The product does not know of it.
 */
import { readdirSync, writeFileSync } from "node:fs";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

/** What the probe writes. Bytes; `loopMaxMs` is the longest time the event loop was held up since the line before. */
export interface ProbeLine {
  readonly number: number;
  readonly rss: number;
  readonly heapUsed: number;
  readonly external: number;
  readonly arrayBuffers: number;
  readonly descriptors: number;
  readonly timers: number;
  readonly loopMaxMs: number;
  /** CPU of all threads since the start, ms. */
  readonly cpuMs: number;
}

const file = process.env.PERCH_PROBE_FILE;
if (file !== undefined) {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  let number = 0;
  process.on("SIGUSR2", () => {
    const loopMaxMs = delay.max / 1e6;
    for (let round = 0; round < 3; round++) collect();
    // A second look: what the collections freed goes back to the system a little later.
    setTimeout(() => {
      collect();
      const { rss, heapUsed, external, arrayBuffers } = process.memoryUsage();
      const { user, system } = process.cpuUsage();
      const line: ProbeLine = {
        number: ++number,
        ...{ rss, heapUsed, external, arrayBuffers, loopMaxMs },
        descriptors: readdirSync("/proc/self/fd").length,
        timers: process.getActiveResourcesInfo().filter((name) => name === "Timeout").length,
        cpuMs: (user + system) / 1000,
      };
      delay.reset();
      writeFileSync(file, JSON.stringify(line));
    }, 500);
  });
}
