import { existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { messageOf } from "#base/errors.ts";
import { restoreResolvConf } from "../dns/resolver-file-linux.ts";
import { ResolverRecordStore } from "../dns/resolver-record.ts";
import type { Restoration } from "../host-record.ts";
import { DeviceRecordStore, restoreDevice } from "../routing/device-record.ts";
import { DaemonError } from "./daemon-error.ts";
import { takeLock } from "./state-lock.ts";
import { removeDeadSocket } from "./unix-listener.ts";

/** File in the state directory that a running daemon holds. */
export const DAEMON_LOCK_FILE = "daemon.lock";

/** What `writeFileAtomically` leaves when it is cut. */
const DRAFT = /\.new$/;

/**
 * Undoes one kind of change from its `HostRecord` in the state directory. Idempotent; reports instead of throwing; without a
 * record it does nothing. A crash in the midst of it is undone by the next call.
 */
type Restorer = (stateDir: string) => Restoration | Promise<Restoration>;

/** One line for each kind of change that outlives our process, the last one made first. */
const RESTORERS: readonly Restorer[] = [
  (stateDir) => restoreResolvConf(new ResolverRecordStore(stateDir)),
  (stateDir) => restoreDevice(new DeviceRecordStore(stateDir)),
];

/**
 * Puts back what an agent changed on this machine and, dying, could not put back itself; takes away what it left half written in
 * its directory. What hangs on the embedded device went with its process: the kernel removes it. Idempotent; the caller holds
 * the daemon's lock.
 */
export async function restoreMachine(stateDir: string): Promise<Restoration> {
  const done: string[] = [];
  const problems: string[] = [];
  for (const restore of RESTORERS) {
    const each = await restore(stateDir);
    done.push(...each.done);
    problems.push(...each.problems);
  }
  try {
    for (const name of readdirSync(stateDir)) if (DRAFT.test(name)) rmSync(join(stateDir, name), { force: true });
  } catch (error) {
    problems.push(`cannot tidy ${stateDir}: ${messageOf(error)}`);
  }
  return { done, problems };
}

export interface CleanOptions {
  readonly stateDir: string;
  /** Removed when nobody answers on it. */
  readonly socketPath: string;
}

/** The same without a daemon. Throws DaemonError `daemon-running` while one uses the directory: `perch down` is its way. */
export async function cleanState({ stateDir, socketPath }: CleanOptions): Promise<Restoration> {
  const done: string[] = [];
  const problems: string[] = [];
  if (existsSync(stateDir)) {
    using _lock = takeLock(join(stateDir, DAEMON_LOCK_FILE), (pid) => {
      return `a daemon (pid ${pid}) uses the state directory ${stateDir}: it cleans up itself, with perch down`;
    });
    const machine = await restoreMachine(stateDir);
    done.push(...machine.done);
    problems.push(...machine.problems);
  }
  try {
    if (await removeDeadSocket(socketPath)) done.push(`the socket ${socketPath} of a daemon that is gone is removed`);
  } catch (error) {
    problems.push(`cannot remove the socket ${socketPath}: ${messageOf(error)}`);
  }
  return { done, problems };
}

/** Throws DaemonError `state-dirty` when something could not be put back. */
export function assertRestored({ problems }: Restoration): void {
  if (problems.length > 0) throw new DaemonError("state-dirty", problems.join("; "));
}
