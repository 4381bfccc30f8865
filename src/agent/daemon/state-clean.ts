import { existsSync } from "node:fs";
import { join } from "node:path";
import { restoreResolvConf } from "../dns/resolv-conf-linux.ts";
import { ResolverRecordStore } from "../dns/resolver-record.ts";
import type { Restoration } from "../host-record.ts";
import { DaemonError } from "./daemon-error.ts";
import { takeLock } from "./state-lock.ts";

/** File in the state directory that a running daemon holds. */
export const DAEMON_LOCK_FILE = "daemon.lock";

/**
 * Puts back what an agent changed on this machine and, dying, could not put back itself. Interface, addresses, routes and rules
 * went with its process: the kernel removes them. Idempotent; the caller holds the daemon's lock.
 */
export function restoreMachine(stateDir: string): Restoration {
  return restoreResolvConf(new ResolverRecordStore(stateDir));
}

/** The same without a daemon. Throws DaemonError `daemon-running` while one uses the directory: `perch down` is its way. */
export function cleanState(stateDir: string): Restoration {
  if (!existsSync(stateDir)) return { done: [], problems: [] };
  using _lock = takeLock(join(stateDir, DAEMON_LOCK_FILE), (pid) => {
    return `a daemon (pid ${pid}) uses the state directory ${stateDir}: it cleans up itself, with perch down`;
  });
  return restoreMachine(stateDir);
}

/** For the start of a daemon, which goes on whatever happens. */
export function describeRestoration({ done, problems }: Restoration): string {
  return [...done, ...problems].join("; ") || "nothing to put back";
}

/** Throws DaemonError `state-dirty` when something could not be put back. */
export function assertRestored({ problems }: Restoration): void {
  if (problems.length > 0) throw new DaemonError("state-dirty", problems.join("; "));
}
