import { readdirSync, readFileSync, rmSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { unreachable } from "#base/errors.ts";
import type { Millis } from "#base/time.ts";
import { deleteLink } from "./kernel-link.ts";
import { isServed } from "./uapi-connection.ts";

/**
 * What of an external device outlives us when we are killed, in a form that can be written to a file: recorded before it is made, so
 * that whoever comes next can take it away. It names ours and nothing else, also where somebody has made the same since.
 */
export type DeviceMark = ProcessMark | LinkMark;

/** A process with `PERCH_DEVICE_MARK=mark` in its environment, and its control socket. Its interface ends with it. */
export interface ProcessMark {
  readonly kind: "wireguard-go";
  readonly interfaceName: string;
  /** 32 hex digits by chance. */
  readonly mark: string;
  /** Of the control socket. */
  readonly socketPath: string;
}

/** An interface of the kernel. */
export interface LinkMark {
  readonly kind: "kernel";
  readonly interfaceName: string;
  /** The kernel's number of the interface: by chance, from where the kernel takes none by itself. */
  readonly index: number;
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
 * nothing left. Throws ExternalDeviceError where it may not. For the next start after a crash: of a device that is in use it is the end.
 */
export async function removeMarked(mark: DeviceMark): Promise<string | undefined> {
  switch (mark.kind) {
    case "wireguard-go":
      return removeProcess(mark);
    case "kernel":
      return (await deleteLink(mark)) ? `removed the interface ${mark.interfaceName}` : undefined;
    default:
      return unreachable(mark);
  }
}

async function removeProcess({ mark, interfaceName, socketPath }: ProcessMark): Promise<string | undefined> {
  const processes = markedProcesses(mark);
  // One that was stopped takes the request when it goes on.
  for (const signals of [["SIGTERM", "SIGCONT"], ["SIGKILL"]] as const) {
    for (const { pid } of processes.filter(isAlive)) for (const signal of signals) tryKill(pid, signal);
    for (let waited = 0; waited < TERMINATE_PATIENCE && processes.some(isAlive); waited += POLL) await sleep(POLL);
  }
  await removeDeadSocket(socketPath);
  if (processes.length === 0) return undefined;
  return `ended wireguard-go (${processes.map(({ pid }) => pid).join(", ")}), which had the interface ${interfaceName}`;
}

/** Removes a control socket that nobody serves. */
export async function removeDeadSocket(path: string): Promise<void> {
  if (!(await isServed(path))) rmSync(path, { force: true });
}

interface FoundProcess {
  readonly pid: number;
  /** Ticks since boot: nobody who gets the number later has the same. */
  readonly start: string;
}

function markedProcesses(mark: string): FoundProcess[] {
  const wanted = `${MARK_VARIABLE}=${mark}`;
  return readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry) && (readProc(`${entry}/environ`) ?? "").split("\0").includes(wanted))
    .map((entry) => ({ pid: Number(entry), start: statOf(Number(entry))?.start ?? "" }));
}

/** Not only until its memory is gone: a process that ends holds its interface and sockets for a moment longer. */
function isAlive({ pid, start }: FoundProcess): boolean {
  const stat = statOf(pid);
  if (stat?.start !== start) return false;
  return stat.state !== "Z" || readThreads(pid) > 1;
}

/** proc(5), stat: the fields after the name, the third of all first. */
function statOf(pid: number): { readonly state: string; readonly start: string } | undefined {
  const stat = readProc(`${pid}/stat`);
  if (stat === undefined) return undefined;
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return { state: fields[0]!, start: fields[19]! };
}

function readThreads(pid: number): number {
  try {
    return readdirSync(`/proc/${pid}/task`).length;
  } catch {
    return 0;
  }
}

/** Undefined for a process that is gone, or not ours to see. */
function readProc(path: string): string | undefined {
  try {
    return readFileSync(`/proc/${path}`, "latin1");
  } catch {
    return undefined;
  }
}

function tryKill(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It ended by itself meanwhile.
  }
}
