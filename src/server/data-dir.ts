import { accessSync, constants, existsSync, mkdirSync, rmSync, statSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { messageOf } from "#base/errors.ts";
import { ServerError } from "./server-error.ts";

/** The longest path of a unix socket that the kernel takes, bytes (108 with the closing zero). */
const SOCKET_PATH_MAX_BYTES = 107;

/** A server's data directory, held by one process. */
export interface DataDir extends Disposable {
  readonly path: string;
  /** Where the store lies unless told otherwise. */
  readonly databasePath: string;
  /** The admin socket. */
  readonly socketPath: string;
  /** Lets go of the directory; idempotent. With `undo` (a start that failed) also removes what `openDataDir` made. */
  close(options?: { readonly undo?: boolean }): void;
}

/**
 * Makes the directory if it is missing (0700) and takes its lock: an empty SQLite file under an exclusive transaction,
 * which the kernel lets go of when the process ends, however it ends. Throws ServerError `data-dir-unusable` and
 * `data-dir-locked`; nothing is left behind then.
 */
export function openDataDir(given: string): DataDir {
  const path = resolve(given);
  const socketPath = join(path, "admin.sock");
  if (Buffer.byteLength(socketPath) > SOCKET_PATH_MAX_BYTES)
    throw new ServerError(
      "data-dir-unusable",
      `data directory ${path} has too long a path: its admin socket would have ${Buffer.byteLength(socketPath)} bytes, at most ${SOCKET_PATH_MAX_BYTES} work`,
    );
  const made = makeDirectory(path);
  const lockPath = join(path, "lock");
  const lockIsNew = !existsSync(lockPath);
  let lock: DatabaseSync | undefined;
  const close = (options: { readonly undo?: boolean } = {}): void => {
    if (!lock?.isOpen) return;
    // Removed while it is held: whoever opened it before finds it locked, whoever comes later makes a new one.
    if (options.undo && lockIsNew) rmSync(lockPath, { force: true });
    lock.close();
    if (options.undo && made !== undefined) rmSync(made, { recursive: true, force: true });
  };
  try {
    lock = takeLock(path, lockPath);
  } catch (error) {
    if (made !== undefined) rmSync(made, { recursive: true, force: true });
    throw error;
  }
  return { path, databasePath: join(path, "perch.db"), socketPath, close, [Symbol.dispose]: () => close() };
}

/** Returns the topmost directory that was made, or undefined when `path` was there. */
function makeDirectory(path: string): string | undefined {
  try {
    const made = makeMissing(path);
    if (!statSync(path).isDirectory()) throw new Error("it is not a directory");
    accessSync(path, constants.R_OK | constants.W_OK | constants.X_OK);
    return made;
  } catch (cause) {
    throw new ServerError("data-dir-unusable", `data directory ${path} cannot be used: ${messageOf(cause)}`, { cause });
  }
}

/** As mkdir's own recursive mode, which never returns where the kernel answers ENOENT to a mkdir, as in /proc. */
function makeMissing(path: string): string | undefined {
  if (existsSync(path)) return undefined;
  const made = makeMissing(dirname(path));
  mkdirSync(path, { mode: 0o700 });
  return made ?? path;
}

function takeLock(path: string, lockPath: string): DatabaseSync {
  let database: DatabaseSync | undefined;
  try {
    database = new DatabaseSync(lockPath);
    database.exec("PRAGMA journal_mode = MEMORY; BEGIN EXCLUSIVE");
    return database;
  } catch (cause) {
    database?.close();
    if (isBusy(cause))
      throw new ServerError("data-dir-locked", `data directory ${path} is in use by another server`, {
        cause,
        retryable: true,
      });
    throw new ServerError("data-dir-unusable", `data directory ${path} cannot be locked: ${messageOf(cause)}`, {
      cause,
    });
  }
}

/** SQLITE_BUSY: somebody else holds the lock. */
function isBusy(error: unknown): boolean {
  return error instanceof Error && "errcode" in error && error.errcode === 5;
}
