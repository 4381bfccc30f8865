import { DEFAULT_STATE_DIR } from "#agent/daemon/daemon-address.ts";
import { DaemonError } from "#agent/daemon/daemon-error.ts";
import { type DaemonLog, parseLogLevel } from "#agent/daemon/daemon-log.ts";
import { type CreateAgent, type RunningDaemon, startDaemon } from "#agent/daemon/run-daemon.ts";
import { ServiceManager, type ServiceManagerDeps, takeServiceManager } from "#agent/daemon/service-manager.ts";
import { messageOf } from "#base/errors.ts";
import { systemClock } from "#base/time.ts";
import { daemonSocket } from "./daemon-connection.ts";
import { EXIT, exitCodeOf, Interrupted } from "./exit-codes.ts";
import { openLog } from "./open-log.ts";
import { clean, Progress, paintFor, print, say } from "./terminal.ts";
import type { UpCall } from "./up.ts";
import { perchVersion } from "./version.ts";

export interface ForegroundOptions {
  readonly daemonAddr?: string;
  readonly stateDir?: string;
  readonly logLevel?: string;
  readonly logFile?: string;
}

/** A clean end takes less; what hangs longer is cut off, and the next start cleans up. */
const CLOSE_LIMIT_MS = 15_000;

/** After the end nothing of ours holds the process; what does so longer than this is cut off. */
const EXIT_GRACE_MS = 2000;

/**
 * Runs daemon and agent in this process until SIGTERM or SIGINT, which take the agent down and end with exit code 0. With
 * `call` it connects first (`perch up -F`), without it comes up again if it was up before (`perch service run`). A service
 * manager that asked for it is told when the daemon answers, how it is and that it ends.
 */
export async function runForeground(options: ForegroundOptions, call?: UpCall, makeAgent?: CreateAgent): Promise<void> {
  const socketPath = daemonSocket(options);
  const level = parseLogLevel(options.logLevel ?? "info", "--log-level");
  if (process.platform !== "linux") throw new Error(`perch runs on Linux, not yet on ${process.platform}`);
  using log = await openLog(
    level,
    options.logFile,
    (message, cause) => new DaemonError("daemon-path", message, { cause }),
  );
  const stop = new AbortController();
  let reopen = (): void => log.reopen();
  using _signals = onSignals(stop, log, () => reopen());
  const told = takeServiceManager(process.env, process.pid, log.logger);
  const createAgent = makeAgent ?? (await import("#agent/agent.ts")).createAgent;
  const daemon = await startDaemon(
    { createAgent, clock: systemClock, log, environment: process.env },
    { socketPath, stateDir: options.stateDir ?? DEFAULT_STATE_DIR, version: perchVersion(), resume: !call },
  );
  using manager = told && new ServiceManager({ clock: systemClock, log: log.logger, ...aboutDaemon(daemon) }, told);
  const unsubscribe = manager && daemon.agent.onChange(() => manager.noteChange());
  reopen = () => (manager ? manager.reload(() => log.reopen()) : log.reopen());
  let failure: unknown;
  try {
    manager?.ready();
    if (call) await connect(daemon, call, stop.signal);
    await aborted(stop.signal);
    failure = stop.signal.reason instanceof Crash ? stop.signal.reason : undefined;
  } catch (error) {
    failure = error;
  }
  const deadline = setTimeout(() => {
    log.logger.error("the end took too long and is cut off", { limitMs: CLOSE_LIMIT_MS });
    process.exit(EXIT.failure);
  }, CLOSE_LIMIT_MS);
  unsubscribe?.();
  manager?.stopping();
  await daemon.close();
  clearTimeout(deadline);
  log.logger.info("daemon ended");
  setTimeout(() => {
    log.logger.warn("something still runs after the end and is cut off");
    process.exit();
  }, EXIT_GRACE_MS).unref();
  if (failure !== undefined) throw failure;
}

/** What a service manager is told of the daemon. */
function aboutDaemon({ agent }: RunningDaemon): Pick<ServiceManagerDeps, "isWorking" | "statusLine"> {
  return {
    isWorking: () => agent.isWorking(),
    statusLine: () => {
      const { state, reason, counts } = agent.status();
      const words = state.replace("-", " ");
      // One line, whatever a server wrote into its reasons.
      if (state !== "up") return clean(reason ? `${words}: ${reason}` : words);
      return `up, ${counts.connected} of ${counts.total} peers connected`;
    },
  };
}

async function connect(daemon: RunningDaemon, call: UpCall, signal: AbortSignal): Promise<void> {
  using progress = new Progress();
  try {
    const already = await daemon.lifecycle.up(call, signal, (line) => progress.step(line));
    progress.end();
    const status = daemon.agent.status();
    const address = status.address ? `${status.address.address}/${status.address.bits}` : "no address";
    print(
      `${already ? "already up" : "up"} as ${clean(status.fqdn ?? status.hostname ?? "?")}, ${address} on ${status.interfaceName ?? "?"}`,
    );
    say(paintFor(process.stderr)("dim", "Ctrl-C disconnects"));
  } catch (error) {
    progress.end();
    if (signal.aborted && !(signal.reason instanceof Crash)) throw new Interrupted();
    throw error;
  }
}

/** A failure nobody handled: the process ends in order, and whoever supervises it starts a new one. */
class Crash extends Error {}

function onSignals(stop: AbortController, log: DaemonLog, reopen: () => void): Disposable {
  let asked = 0;
  const end = (signal: NodeJS.Signals): void => {
    if (++asked > 1) process.exit(EXIT.interrupted);
    log.logger.info("ending", { signal });
    stop.abort(new DaemonError("superseded", `ended by ${signal}`));
  };
  const crash = (error: unknown): void => {
    log.logger.error("a failure nobody handled", { err: error instanceof Error ? error.stack : String(error) });
    if (stop.signal.aborted) process.exit(exitCodeOf(error));
    stop.abort(new Crash(messageOf(error), { cause: error }));
  };
  process.on("SIGTERM", end).on("SIGINT", end).on("SIGHUP", reopen);
  process.on("uncaughtException", crash).on("unhandledRejection", crash);
  return {
    [Symbol.dispose]: () => {
      process.off("SIGTERM", end).off("SIGINT", end).off("SIGHUP", reopen);
      process.off("uncaughtException", crash).off("unhandledRejection", crash);
    },
  };
}

/** Resolves when the signal aborts; holds the process until then. */
function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  const { promise, resolve } = Promise.withResolvers<void>();
  const hold = setInterval(() => {}, 2 ** 31 - 1);
  signal.addEventListener("abort", () => {
    clearInterval(hold);
    resolve();
  });
  return promise;
}
