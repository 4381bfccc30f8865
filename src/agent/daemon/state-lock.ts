import { linkSync, readFileSync, renameSync, unlinkSync, writeFileSync } from "node:fs";
import { DaemonError } from "./daemon-error.ts";

/**
 * A file that one process at a time holds: it contains the holder's pid and start time. A file of a dead process (also one
 * whose pid was given to another since) is taken over. Processes must see each other's pids.
 *
 *   absent --link own file--> held --holder dies--> stale --rename away, verify--> absent
 */
export interface StateLock extends Disposable {
  readonly path: string;
}

/**
 * Takes the lock at once or throws DaemonError `daemon-running` with the message of `describe`. The directory must exist.
 * Other file-system failures are DaemonError `daemon-path`.
 */
export function takeLock(path: string, describe: (holderPid: number) => string): StateLock {
  const own = `${process.pid} ${startTimeOf(process.pid) ?? "-"}\n`;
  const draft = `${path}.${process.pid}`;
  try {
    writeFileSync(draft, own, { mode: 0o600 });
    try {
      for (let attempt = 0; attempt < 8; attempt++) {
        if (tryLink(draft, path)) return { path, [Symbol.dispose]: () => release(path, own) };
        const found = readIfThere(path);
        if (found === undefined) continue;
        const holder = liveHolder(found);
        if (holder !== undefined) throw new DaemonError("daemon-running", describe(holder));
        removeStale(path, found);
      }
    } finally {
      unlinkIfThere(draft);
    }
  } catch (cause) {
    if (cause instanceof DaemonError) throw cause;
    throw new DaemonError("daemon-path", `cannot take the lock ${path}: ${(cause as Error).message}`, { cause });
  }
  throw new DaemonError("daemon-running", `the lock ${path} is being taken by another process`, { retryable: true });
}

/** The pid in a lock file whose process is alive and the same one; undefined for anything else. */
function liveHolder(content: string): number | undefined {
  const match = /^(\d{1,10}) (\S+)\n$/.exec(content);
  if (!match) return undefined;
  const pid = Number(match[1]);
  const started = startTimeOf(pid);
  if (started === undefined) return undefined;
  return match[2] === "-" || match[2] === started ? pid : undefined;
}

/** Start of a process in clock ticks since boot, with the boot's id: unlike the pid it never comes again. */
function startTimeOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    // The command name may hold spaces and parentheses: fields are counted from the last one; starttime is the 22nd.
    const ticks = stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
    return `${ticks}@${readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim()}`;
  } catch {
    return undefined;
  }
}

/**
 * Between reading a stale file and removing it another process may have replaced it: rename takes whatever is there, and if
 * that turns out to be a live lock it is put back.
 */
function removeStale(path: string, judged: string): void {
  const aside = `${path}.stale.${process.pid}`;
  try {
    renameSync(path, aside);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
    throw error;
  }
  if (readIfThere(aside) !== judged) tryLink(aside, path);
  unlinkIfThere(aside);
}

function release(path: string, own: string): void {
  if (readIfThere(path) === own) unlinkIfThere(path);
}

function tryLink(from: string, to: string): boolean {
  try {
    linkSync(from, to);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

function readIfThere(path: string): string | undefined {
  try {
    return readFileSync(path, "latin1");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

function unlinkIfThere(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
}
