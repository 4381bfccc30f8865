/**
 * Loaded into an agent's process with `--import`, and by that into its threads: SIGUSR2 makes its data worker throw, SIGPWR
 * ends the thread without a word, as running out of memory would. The product has no such switches.
 */
import { getEnvironmentData, isMainThread, setEnvironmentData, type Worker } from "node:worker_threads";

const FLAG = "perch-test-fault";

if (isMainThread) {
  const flag = new Int32Array(new SharedArrayBuffer(4));
  setEnvironmentData(FLAG, flag);
  let latest: Worker | undefined;
  process.on("worker", (worker) => {
    latest = worker;
  });
  process.on("SIGUSR2", () => Atomics.store(flag, 0, 1));
  process.on("SIGPWR", () => void latest?.terminate());
} else {
  const flag = getEnvironmentData(FLAG) as Int32Array;
  // The data worker asks in every turn of its loop whether it has to stop.
  const load = Atomics.load;
  Atomics.load = ((words: Int32Array, index: number): number => {
    if (Atomics.exchange(flag, 0, 0) === 1) throw new Error("a fault for the test");
    return load(words, index);
  }) as typeof Atomics.load;
}
