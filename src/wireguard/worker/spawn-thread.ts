import { Worker } from "node:worker_threads";
import { messageOf } from "#base/errors.ts";
import { DataPlaneError } from "./data-plane-error.ts";

export interface ThreadOptions {
  /** For messages: `the data worker`. */
  readonly what: string;
  /** As the system shows it. */
  readonly name: string;
  /** Of the script, without an ending. */
  readonly script: URL;
  readonly workerData: unknown;
  /** Of memory for young objects. */
  readonly youngMb: number;
}

/** Starts a thread of the device. Throws DataPlaneError `worker-failed`. */
export function spawnThread({ what, name, script, workerData, youngMb }: ThreadOptions): Worker {
  // Compiled, scripts are .js files as this one is.
  const file = new URL(`${script.href}${import.meta.url.endsWith(".ts") ? ".ts" : ".js"}`);
  try {
    return new Worker(file, { workerData, name, resourceLimits: { maxYoungGenerationSizeMb: youngMb } });
  } catch (cause) {
    throw new DataPlaneError("worker-failed", `${what} does not start: ${messageOf(cause)}`, { cause });
  }
}
