import { setTimeout as sleep } from "node:timers/promises";
import type { Millis } from "#base/time.ts";
import { processesIn, signalProcessesIn } from "./namespace.ts";

/** Programs in the hosts get this long between SIGTERM and SIGKILL. */
const STOP_GRACE_MS: Millis = 1000;
const STOP_POLL_MS: Millis = 20;

/** Something that must not outlive this process. */
export interface Leftover {
  /** Removes it synchronously; never throws. */
  closeNow(): void;
}

const leftovers = new Set<Leftover>();
const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/** Closes it when the process exits or a signal ends it. */
export function closeAtExit(leftover: Leftover): void {
  leftovers.add(leftover);
  if (leftovers.size > 1) return;
  process.on("exit", closeAllNow);
  for (const signal of SIGNALS) process.on(signal, dieClean);
}

/** It has been closed otherwise. */
export function forgetAtExit(leftover: Leftover): void {
  leftovers.delete(leftover);
  if (leftovers.size > 0) return;
  process.off("exit", closeAllNow);
  for (const signal of SIGNALS) process.off(signal, dieClean);
}

/** Asks all programs in the namespaces to end and waits for them, for a second at most. */
export async function stopProcesses(namespaces: readonly string[]): Promise<void> {
  const deadline = performance.now() + STOP_GRACE_MS;
  if (signalProcessesIn(namespaces, "SIGTERM") === 0) return;
  while (processesIn(namespaces).length > 0 && performance.now() < deadline) await sleep(STOP_POLL_MS);
}

function closeAllNow(): void {
  for (const leftover of leftovers) leftover.closeNow();
}

/** Ends as the signal would have, after cleaning up. A program with a handler of its own decides for itself. */
function dieClean(signal: NodeJS.Signals): void {
  if (process.listenerCount(signal) > 1) return;
  closeAllNow();
  process.off(signal, dieClean);
  process.kill(process.pid, signal);
}
