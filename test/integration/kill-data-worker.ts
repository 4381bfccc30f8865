/**
 * Loaded into an agent's process with `--import`: SIGUSR2 ends its data worker, as a fault in it would. The product has no
 * such switch.
 */
import type { Worker } from "node:worker_threads";

let latest: Worker | undefined;
process.on("worker", (worker) => {
  latest = worker;
});
process.on("SIGUSR2", () => void latest?.terminate());
