import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { silentLogger } from "#base/log.ts";
import type { Clock } from "#base/time.ts";
import { createManagementServer } from "#management/server/management-server.ts";
import { ManagementStore } from "#management/server/store.ts";
import { type Admin, localAdmin, remoteAdmin } from "./admin.ts";
import { hasAdmin } from "./admin-socket.ts";
import { openDataDir } from "./data-dir.ts";
import { ServerError } from "./server-error.ts";

export interface OpenAdminOptions {
  readonly dataDir: string;
  /** Default: in the data directory. */
  readonly databasePath?: string | undefined;
}

export interface OpenedAdmin extends Admin, AsyncDisposable {
  /** False: no server runs, and what is changed is found by the next one that starts. */
  readonly running: boolean;
}

/** A server that is just starting or ending holds the directory without answering; it is waited for this long. */
const PATIENCE_MS = 3_000;

/**
 * Asks the server that runs on a data directory, or, when none runs, opens its store. Throws ServerError `admin-refused`
 * when there is neither, `data-dir-locked` and `data-dir-unusable`, and StoreError.
 */
export async function openAdmin(deps: { readonly clock: Clock }, options: OpenAdminOptions): Promise<OpenedAdmin> {
  const dataDir = resolve(options.dataDir);
  const socketPath = join(dataDir, "admin.sock");
  const databasePath = options.databasePath ?? join(dataDir, "perch.db");
  const deadline = deps.clock.now() + PATIENCE_MS;
  for (;;) {
    if (await hasAdmin(socketPath)) {
      return { running: true, ...remoteAdmin(socketPath), [Symbol.asyncDispose]: async () => {} };
    }
    if (!existsSync(databasePath))
      throw new ServerError("admin-refused", `no server was ever started with the data directory ${dataDir}`);
    try {
      return await openLocally(deps, dataDir, databasePath);
    } catch (error) {
      if (!(error instanceof ServerError) || error.code !== "data-dir-locked" || deps.clock.now() > deadline)
        throw error;
      await sleep(100);
    }
  }
}

async function openLocally(
  deps: { readonly clock: Clock },
  dataDir: string,
  databasePath: string,
): Promise<OpenedAdmin> {
  await using stack = new AsyncDisposableStack();
  stack.use(openDataDir(dataDir));
  const store = stack.use(await ManagementStore.open(deps, { path: databasePath }));
  const management = stack.use(
    await createManagementServer(
      { ...deps, log: silentLogger, store },
      { domain: "perch.internal", signal: { uri: "", tls: false }, relayUrls: [], stunUris: [] },
    ),
  );
  const opened = stack.move();
  return { running: false, ...localAdmin(management), [Symbol.asyncDispose]: () => opened.disposeAsync() };
}
