import { parentPort, receiveMessageOnPort, workerData } from "node:worker_threads";
import { DataLoop } from "./data-loop.ts";
import { rehearse } from "./loop-rehearsal.ts";
import type { WorkerMessage, WorkerStart } from "./worker-start.ts";

/*
 * The data worker: one thread, one loop, all calls synchronous.
 *
 * Nothing here returns to the event loop until the worker is told to stop, so no timer, promise or message of Node's works
 * in this thread; what main should know goes through the rings.
 */
const start = workerData as WorkerStart;
const port = parentPort!;
const post = (message: WorkerMessage | number): void => port.postMessage(message);

try {
  run();
} catch (error) {
  const [reason, stack] = error instanceof Error ? [error.message, error.stack] : [String(error), undefined];
  post({ kind: "fault", reason, stack });
}

/** Returns when it was told to, or the interface is gone; throws what nobody expected. */
function run(): void {
  rehearse(start);
  const loop = new DataLoop(start, {
    wakeMain: () => post(0),
    // Main posts the ring before it writes the command.
    newestCapture: () => {
      let newest: SharedArrayBuffer | undefined;
      for (let said = receiveMessageOnPort(port); said; said = receiveMessageOnPort(port)) newest = said.message;
      return newest;
    },
  });
  // However it ends: keys are wiped, and what OpenSSL holds for them is given back.
  using _ = loop;
  post({ kind: "ready", features: [loop.aead] });
  while (!loop.isStopped) {
    if (loop.turn() === "interface-gone") return post({ kind: "interface-gone" });
  }
}
