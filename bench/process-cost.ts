import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import type { Millis } from "#base/time.ts";

/** Of the times in /proc/PID/stat, on every Linux. */
const TICKS_PER_SECOND = 100;

/** A process and all that descend from it, the process first. */
export function processTree(pid: number): number[] {
  const children = readdirSync(`/proc/${pid}/task`).flatMap((task) =>
    readFileSync(`/proc/${pid}/task/${task}/children`, "utf8").split(" ").filter(Boolean).map(Number),
  );
  return [pid, ...children.flatMap(processTree)];
}

/** Resident memory of a process, bytes; 0 of one that has ended and nobody waited for. */
export function residentBytes(pid: number): number {
  return Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) * 1024;
}

/** Processor time of all threads of a process so far, ended ones as well; exact to 10 ms. */
export function processorTime(pid: number): Millis {
  // The second field is a name in brackets, which may hold anything.
  const fields = readFileSync(`/proc/${pid}/stat`, "latin1")
    .replace(/^.*\) /, "")
    .split(" ");
  return ((Number(fields[11]) + Number(fields[12])) * 1000) / TICKS_PER_SECOND;
}

/** How often the threads of a process gave up the processor of their own will. */
export function countSleeps(pid: number): number {
  let count = 0;
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    const status = readFileSync(`/proc/${pid}/task/${thread}/status`, "utf8");
    count += Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(status)?.[1] ?? 0);
  }
  return count;
}

export interface DescriptorCount {
  readonly all: number;
  readonly sockets: number;
}

export function countDescriptors(pid: number): DescriptorCount {
  const targets = readdirSync(`/proc/${pid}/fd`).map((fd) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`);
    } catch {
      return "";
    }
  });
  return { all: targets.length, sockets: targets.filter((target) => target.startsWith("socket:")).length };
}
