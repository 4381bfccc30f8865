// biome-ignore-all lint/suspicious/noConsole: the test waits for the line in the agent's log
/**
 * Loaded into an agent's process with `--import`: SIGUSR2 writes a heap snapshot with every string whole. The product has no
 * such switch.
 */
import { setFlagsFromString, writeHeapSnapshot } from "node:v8";
import { isMainThread } from "node:worker_threads";

if (isMainThread) {
  process.on("SIGUSR2", () => {
    setFlagsFromString("--heap-snapshot-string-limit=1000000");
    writeHeapSnapshot(`/tmp/perch-heap-${process.pid}.heapsnapshot`);
    console.error("heap snapshot is written");
  });
}
