/**
 * Loaded into an agent's process with `--import`, and by that into its threads: SIGUSR2 makes its data worker throw, SIGPWR
 * ends the thread without a word, as running out of memory would, SIGWINCH makes it hang for HANG_MS. The product has no such
 * switches.
 */
import { getEnvironmentData, isMainThread, setEnvironmentData, type Worker } from "node:worker_threads";

const FLAG = "perch-test-fault";
const THROW = 1;
const HANG = 2;
const HANG_MS = 1500;
/** Of the memory that tells the worker to stop; that of its rings is longer. */
const CONTROL_BYTES = 64;

if (isMainThread) {
  const flag = new Int32Array(new SharedArrayBuffer(4));
  setEnvironmentData(FLAG, flag);
  let latest: Worker | undefined;
  process.on("worker", (worker) => {
    latest = worker;
  });
  process.on("SIGUSR2", () => Atomics.store(flag, 0, THROW));
  process.on("SIGWINCH", () => Atomics.store(flag, 0, HANG));
  process.on("SIGPWR", () => void latest?.terminate());
} else {
  const flag = getEnvironmentData(FLAG) as Int32Array;
  // The data worker asks in every turn of its loop whether it has to stop: not so in its rehearsal, which survives faults.
  const load = Atomics.load;
  Atomics.load = ((words: Int32Array, index: number): number => {
    const fault = words.buffer.byteLength === CONTROL_BYTES ? Atomics.exchange(flag, 0, 0) : 0;
    if (fault === THROW) throw new Error("a fault for the test");
    if (fault === HANG) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, HANG_MS);
    return load(words, index);
  }) as typeof Atomics.load;
}
