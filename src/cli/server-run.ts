import { type DaemonLog, parseLogLevel } from "#agent/daemon/daemon-log.ts";
import { systemClock } from "#base/time.ts";
import { createPerchServer, type PerchServer } from "#server/server.ts";
import { ServerError } from "#server/server-error.ts";
import { UsageError } from "./exit-codes.ts";
import { openLog } from "./open-log.ts";
import { parseServerFlags, type ServerFlags } from "./server-flags.ts";
import { print } from "./terminal.ts";

/** `perch server`: runs until SIGTERM or SIGINT. Throws what keeps it from starting. */
export async function runServer(flags: ServerFlags): Promise<void> {
  const options = parseServerFlags(flags);
  const level = parseLogLevel(flags.logLevel ?? "info", "--log-level");
  using log = await openLog(
    level,
    flags.logFile,
    (message, cause) => new ServerError("data-dir-unusable", message, { cause }),
  );
  const stopped = signalled("SIGTERM", "SIGINT");
  await using server = await usage(() => createPerchServer({ clock: systemClock, log: log.logger }, options));
  const reload = (): void => reopen(log, server);
  process.on("SIGHUP", reload);
  const { listen, endpoints, firstStart } = server;
  log.logger.info("server started", {
    listen: `${listen.address}:${listen.port}`,
    managementUrl: endpoints.managementUrl,
    relayUrl: endpoints.relayUrl,
    stunUri: endpoints.stunUri,
    dataDir: options.dataDir,
  });
  if (firstStart) {
    print(`admin token: ${firstStart.adminToken}`);
    print(`setup key:   ${firstStart.setupKey} (reusable, for 24 hours)`);
  }
  print(`management:  ${endpoints.managementUrl}`);
  print("ready");
  log.logger.info("server stops", { signal: await stopped });
  process.off("SIGHUP", reload);
}

/** The user's input is the user's to change: exit code 2. */
async function usage<Result>(start: () => Promise<Result>): Promise<Result> {
  try {
    return await start();
  } catch (error) {
    if (error instanceof ServerError && error.code.startsWith("option-")) throw new UsageError(error.message);
    throw error;
  }
}

/** The first of these signals; a second one ends the process at once, for a shutdown that hangs. */
function signalled(...names: readonly NodeJS.Signals[]): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    for (const name of names) {
      process.on(name, () => {
        resolve(name);
        for (const other of names) process.removeAllListeners(other);
      });
    }
  });
}

function reopen(log: DaemonLog, server: PerchServer): void {
  log.reopen();
  try {
    server.reloadTls();
    log.logger.info("log file and certificate read again");
  } catch (err) {
    log.logger.error("the new certificate is not used", { err });
  }
}
