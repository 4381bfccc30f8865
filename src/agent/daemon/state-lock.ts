import { linkSync, readdirSync, readFileSync, unlinkSync, writeFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import { DaemonError } from "./daemon-error.ts";

/**
 * A file that one process at a time holds: it contains the holder's pid and start time. A file of a dead process (also one
 * whose pid was given to another since) is taken over. Processes must see each other's pids.
 *
 *   absent --link own file--> held --holder dies--> stale --removed under a lock of its own--> absent
 */
export interface StateLock extends Disposable {
  readonly path: string;
}

/** A lock that guards a removal is held for microseconds; at this depth nobody is in anybody's way any more. */
const DEPTH_MAX = 3;
/** How often, and how far apart, a lock that changes under our eyes is looked at again. */
const ATTEMPTS = 100;
const PAUSE_MS = 5;

/**
 * Takes the lock at once or throws DaemonError `daemon-running` with the message of `describe`. The directory must exist.
 * Other file-system failures are DaemonError `daemon-path`.
 */
export function takeLock(path: string, describe: (holderPid: number) => string): StateLock {
  try {
    const taken = tryTake(path, 0);
    if (typeof taken !== "number") {
      sweep(path);
      return taken;
    }
    throw new DaemonError("daemon-running", describe(taken));
  } catch (cause) {
    if (cause instanceof DaemonError) throw cause;
    throw new DaemonError("daemon-path", `cannot take the lock ${path}: ${(cause as Error).message}`, { cause });
  }
}

/** The lock, or the pid of its live holder. */
function tryTake(path: string, depth: number): StateLock | number {
  const own = `${process.pid} ${startTimeOf(process.pid) ?? "-"}\n`;
  // Written aside and linked: a lock file is never seen half written.
  const draft = `${path}.${process.pid}`;
  writeFileSync(draft, own, { mode: 0o600 });
  try {
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      if (tryLink(draft, path)) return { path, [Symbol.dispose]: () => release(path, own) };
      const found = readIfThere(path);
      if (found === undefined) continue;
      const holder = liveHolder(found);
      if (holder !== undefined) return holder;
      removeStale(path, depth);
    }
  } finally {
    unlinkIfThere(draft);
  }
  throw new Error("it changes hands too often");
}

/**
 * Removes a lock of a dead process. Who judged it stale may be late: another may have replaced it since. So removing is
 * itself done under a lock, and judged again there; nobody but the holder of that lock takes a stale file away.
 */
function removeStale(path: string, depth: number): void {
  if (depth === DEPTH_MAX) {
    // Three processes died in the microseconds of a removal each: who is late now would have to be the fourth.
    if (liveHolder(readIfThere(path) ?? "") === undefined) unlinkIfThere(path);
    return;
  }
  const right = tryTake(`${path}.remove`, depth + 1);
  if (typeof right === "number") {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, PAUSE_MS);
    return;
  }
  using _right = right;
  const found = readIfThere(path);
  if (found !== undefined && liveHolder(found) === undefined) unlinkIfThere(path);
}

/**
 * Takes away what dead processes left beside a lock: drafts, and locks that guarded a removal. The caller holds the lock, so
 * nothing can go wrong that these would guard against; what cannot be removed is in nobody's way.
 */
function sweep(path: string): void {
  try {
    for (const name of readdirSync(dirname(path))) {
      const end = name.startsWith(basename(path)) ? name.slice(basename(path).length) : "";
      const [, guards, pid] = /^((?:\.remove)*)(?:\.(\d{1,10}))?$/.exec(end) ?? [];
      const isStale =
        pid === undefined
          ? guards && liveHolder(readIfThere(`${path}${end}`) ?? "") === undefined
          : startTimeOf(Number(pid)) === undefined;
      if (isStale) unlinkIfThere(`${path}${end}`);
    }
  } catch {
    // The directory cannot be read or written: the lock itself was taken all the same.
  }
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

/**
 * Start of a process in clock ticks since boot, with the boot's id: unlike the pid it never comes again. Undefined for one that
 * has ended, also when its parent has not asked for its end yet, which in a container nobody may ever do.
 */
function startTimeOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    // The command name may hold spaces and parentheses: fields are counted from the last one. State is the third of all,
    // the number of threads the 20th, starttime the 22nd. A first thread may end before the others.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    if (fields[0] === "Z" && Number(fields[17]) <= 1) return undefined;
    const ticks = fields[19];
    return `${ticks}@${readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim()}`;
  } catch {
    return undefined;
  }
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
