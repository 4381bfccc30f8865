import { parentPort, receiveMessageOnPort, workerData } from "node:worker_threads";
import { PortLoop } from "./port-loop.ts";
import type { PortMessage, PortStart } from "./port-records.ts";

/*
 * The port thread of an external device: waits in poll for the sockets that Node cannot read (loopback addresses, raw).
 * It never returns to the event loop until it is told to stop; messages from main are fetched when its event descriptor says so.
 */
const port = parentPort!;
const post = (message: PortMessage | number): void => port.postMessage(message);

try {
  const loop = new PortLoop(workerData as PortStart, {
    wakeMain: () => post(0),
    nextCommand: () => receiveMessageOnPort(port)?.message,
    unwatched: (id) => post({ kind: "unwatched", id }),
  });
  post({ kind: "ready" });
  while (!loop.isStopped) loop.turn();
} catch (error) {
  const [reason, stack] = error instanceof Error ? [error.message, error.stack] : [String(error), undefined];
  post({ kind: "fault", reason, stack });
}
