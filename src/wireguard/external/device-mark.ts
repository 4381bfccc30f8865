import { readdirSync, readFileSync, rmSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { Millis } from "#base/time.ts";
import { isServed } from "./uapi-connection.ts";

/**
 * What of an external device outlives us when we are killed, in a form that can be written to a file: recorded before it is made, so
 * that whoever comes next can take it away. It names ours and nothing else, also where somebody has made the same since.
 *
 * wireguard-go: a process with `PERCH_DEVICE_MARK=mark` in its environment, and its control socket. Its interface ends with it.
 */
export interface DeviceMark {
  readonly kind: "wireguard-go";
  readonly interfaceName: string;
  /** 32 hex digits by chance. */
  readonly mark: string;
  /** Of the control socket. */
  readonly socketPath: string;
}

/** Where a mark is kept; throwing calls the making off. */
export interface DeviceRecord {
  write(mark: DeviceMark): void;
  /** All that the mark names is gone. */
  remove(): void;
}

export const MARK_VARIABLE = "PERCH_DEVICE_MARK";

const TERMINATE_PATIENCE: Millis = 2000;
const POLL: Millis = 20;

/**
 * Takes away what the mark names, whatever of it is there. Resolves with what was done, in words for a log; undefined: there was
 * nothing left. For the next start after a crash: of a device that is in use it is the end.
 */
export async function removeMarked({ mark, interfaceName, socketPath }: DeviceMark): Promise<string | undefined> {
  const pids = markedProcesses(mark);
  for (const signal of ["SIGTERM", "SIGKILL"] as const) {
    for (const pid of markedProcesses(mark)) tryKill(pid, signal);
    for (let waited = 0; waited < TERMINATE_PATIENCE && markedProcesses(mark).length > 0; waited += POLL)
      await sleep(POLL);
  }
  await removeDeadSocket(socketPath);
  return pids.length > 0
    ? `ended wireguard-go (${pids.join(", ")}), which had the interface ${interfaceName}`
    : undefined;
}

/** Removes a control socket that nobody serves. */
export async function removeDeadSocket(path: string): Promise<void> {
  if (!(await isServed(path))) rmSync(path, { force: true });
}

function markedProcesses(mark: string): number[] {
  const wanted = `${MARK_VARIABLE}=${mark}`;
  return readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry) && environmentOf(entry).includes(wanted))
    .map(Number);
}

/** Empty for a process that is not ours to see or is gone; also for a dead one that waits to be collected. */
function environmentOf(pid: string): readonly string[] {
  try {
    return readFileSync(`/proc/${pid}/environ`, "latin1").split("\0");
  } catch {
    return [];
  }
}

function tryKill(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It ended by itself meanwhile.
  }
}
