/**
 * Loaded into a process with `--import`: the memory guard stands in each of its worker threads, and writes to the file
 * PERCH_GUARD_LOG that it does, and what it refused.
 */
import { appendFileSync } from "node:fs";
import { isMainThread } from "node:worker_threads";
import { MemoryGuard } from "./memory-guard.ts";

const log = process.env.PERCH_GUARD_LOG;
if (!isMainThread && log !== undefined) {
  const guard = MemoryGuard.install();
  appendFileSync(log, "guarded\n");
  guard.violated = (why) => appendFileSync(log, `refused: ${why}\n`);
}
