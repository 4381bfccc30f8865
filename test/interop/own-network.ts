import { execFileSync } from "node:child_process";
import { loadLibrary } from "#net/libc.ts";

const CLONE_NEWNET = 0x40000000;

/**
 * Moves this thread, and with it every socket and program that it opens from now on, into a network namespace of its own with `lo`
 * alone. For a test file's first line: the runner gives each file a process of its own. Root only.
 */
export function enterOwnNetwork(): void {
  const unshare = loadLibrary(null).func("unshare", "int", ["int"]) as (flags: number) => number;
  if (unshare(CLONE_NEWNET) !== 0) throw new Error("no network namespace of our own");
  execFileSync("ip", ["link", "set", "lo", "up"]);
}
