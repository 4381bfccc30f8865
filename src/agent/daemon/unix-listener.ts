import { chmodSync, chownSync, existsSync, readdirSync, readFileSync, statSync, unlinkSync } from "node:fs";
import { createConnection, type Server } from "node:net";
import { basename, dirname } from "node:path";
import { makeDirectory } from "#base/make-directory.ts";
import { DaemonError } from "./daemon-error.ts";
import { type StateLock, takeLock } from "./state-lock.ts";

/** Members of this group may use the daemon without being root. */
export const DAEMON_GROUP = "perch";

export interface UnixListener extends AsyncDisposable {
  readonly path: string;
  /** Stops accepting, ends open connections, removes socket and lock; idempotent. */
  close(): Promise<void>;
}

/**
 * Binds `server` to a unix socket that only root and the group `perch` may open (0660 root:perch, 0600 without that group).
 * A socket that nobody answers on is replaced; one that answers is a running daemon. Throws DaemonError `daemon-running`
 * or `daemon-path`; nothing is left behind then.
 */
export async function listenOnUnix(server: Server, path: string, groupFile = "/etc/group"): Promise<UnixListener> {
  const taken = (): string => `a daemon already runs on ${path}; choose another --daemon-addr or stop it first`;
  try {
    makeDirectory(dirname(path), 0o755);
  } catch (cause) {
    throw new DaemonError("daemon-path", `cannot make the directory of ${path}: ${(cause as Error).message}`, {
      cause,
    });
  }
  // A probe and a bind are two steps: the lock keeps two daemons that start in the same instant apart.
  const lock = takeLock(`${path}.lock`, taken);
  try {
    if (await removeStaleSocket(path)) throw new DaemonError("daemon-running", taken());
    await bind(server, path);
    admitGroup(path, groupFile);
  } catch (error) {
    lock[Symbol.dispose]();
    throw error;
  }
  return listenerOf(server, path, lock);
}

/** True when somebody answers on the socket. */
export function probeSocket(path: string): Promise<boolean> {
  const { promise, resolve, reject } = Promise.withResolvers<boolean>();
  const socket = createConnection({ path });
  socket.once("connect", () => {
    socket.destroy();
    resolve(true);
  });
  socket.once("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "ECONNREFUSED" || error.code === "ENOENT") resolve(false);
    // A full backlog is a daemon that is busy.
    else if (error.code === "EAGAIN") resolve(true);
    else reject(error);
  });
  return promise;
}

/**
 * Takes away what a killed daemon left of its socket and the lock beside it. A socket that answers stays, and so does anything that
 * is not one. True when there was a dead socket. Throws what the file system throws.
 */
export async function removeDeadSocket(path: string): Promise<boolean> {
  const found = statSync(path, { throwIfNoEntry: false });
  const lockName = `${basename(path)}.lock`;
  if (!found && !(existsSync(dirname(path)) && readdirSync(dirname(path)).some((name) => name.startsWith(lockName))))
    return false;
  try {
    using _lock = takeLock(`${path}.lock`, () => "");
    return found?.isSocket() === true && !(await removeStaleSocket(path));
  } catch (error) {
    if (error instanceof DaemonError && error.code === "daemon-running") return false;
    throw error;
  }
}

/** Removes a socket nobody answers on; true when somebody does. Anything that is not a socket is left alone. */
async function removeStaleSocket(path: string): Promise<boolean> {
  const found = statSync(path, { throwIfNoEntry: false });
  if (!found) return false;
  if (!found.isSocket())
    throw new DaemonError("daemon-path", `${path} exists and is not a socket; it is left as it is`);
  if (await probeSocket(path)) return true;
  unlinkSync(path);
  return false;
}

async function bind(server: Server, path: string): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  server.once("listening", resolve);
  server.once("error", reject);
  // Node binds within `listen`, so the mask covers exactly the moment in which the file appears.
  const before = process.umask(0o177);
  try {
    server.listen(path);
  } finally {
    process.umask(before);
  }
  try {
    await promise;
  } catch (cause) {
    throw new DaemonError("daemon-path", `cannot listen on ${path}: ${(cause as Error).message}`, { cause });
  } finally {
    server.off("listening", resolve);
    server.off("error", reject);
  }
}

/** Where the group is not there, or cannot be given (a user namespace that does not know it), the socket stays root's. */
function admitGroup(path: string, groupFile: string): void {
  const gid = groupId(DAEMON_GROUP, groupFile);
  if (gid === undefined || process.getuid?.() !== 0) return;
  try {
    chownSync(path, 0, gid);
    chmodSync(path, 0o660);
  } catch {
    // Still 0600.
  }
}

function listenerOf(server: Server, path: string, lock: StateLock): UnixListener {
  let closing: Promise<void> | undefined;
  const close = (): Promise<void> => {
    closing ??= new Promise((resolve) => {
      server.close(() => {
        lock[Symbol.dispose]();
        resolve();
      });
      if ("closeAllConnections" in server) (server as Server & { closeAllConnections(): void }).closeAllConnections();
    });
    return closing;
  };
  return { path, close, [Symbol.asyncDispose]: close };
}

/** The number of a group in /etc/group; undefined when it is not there. */
function groupId(name: string, file: string): number | undefined {
  try {
    for (const line of readFileSync(file, "utf8").split("\n")) {
      const [group, , id] = line.split(":");
      if (group === name && id && /^\d+$/.test(id)) return Number(id);
    }
  } catch {
    // Without the file there is no such group.
  }
  return undefined;
}
