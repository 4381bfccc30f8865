import { join } from "node:path";
import type { Logger } from "#base/log.ts";
import type { Clock } from "#base/time.ts";
import type { AgentControl } from "../control.ts";
import { MetricsServer } from "../metrics/metrics-server.ts";
import { AgentLifecycle } from "./agent-lifecycle.ts";
import { DaemonError } from "./daemon-error.ts";
import type { DaemonLog } from "./daemon-log.ts";
import { daemonHandler, serveDaemon } from "./daemon-server.ts";
import type { DaemonServiceDeps } from "./daemon-service.ts";
import { type ResolvedSettings, settingsFromEnvironment, settingValue } from "./settings.ts";
import { makeStateDir, SettingsStore } from "./settings-store.ts";
import { DAEMON_LOCK_FILE, restoreMachine } from "./state-clean.ts";
import { takeLock } from "./state-lock.ts";
import { StatusFeed } from "./status-feed.ts";
import { UiServer } from "./ui-server.ts";

/** Makes the agent; its keys and pins live in `stateDir`. */
export type CreateAgent = (deps: {
  readonly clock: Clock;
  readonly log: Logger;
  readonly stateDir: string;
}) => AgentControl & AsyncDisposable;

export interface DaemonDeps {
  readonly createAgent: CreateAgent;
  readonly clock: Clock;
  readonly log: DaemonLog;
  readonly environment: NodeJS.ProcessEnv;
}

export interface DaemonOptions {
  readonly socketPath: string;
  readonly stateDir: string;
  readonly version: string;
  /** Come up again when the agent was up before; default true. */
  readonly resume?: boolean;
}

/** A daemon that serves. */
export interface RunningDaemon extends AsyncDisposable {
  readonly socketPath: string;
  readonly lifecycle: AgentLifecycle;
  readonly agent: AgentControl;
  /** Ends streams, takes the agent down, removes socket and locks; what was up comes up again at the next start. Idempotent. */
  close(): Promise<void>;
}

/**
 * Starts a daemon, leaves first: lock of the state directory, settings, agent, socket; then comes up again if it was up.
 * Throws DaemonError; nothing is left behind then.
 */
export async function startDaemon(deps: DaemonDeps, options: DaemonOptions): Promise<RunningDaemon> {
  const { clock, log } = deps;
  const { socketPath, stateDir } = options;
  await using undo = new AsyncDisposableStack();
  undo.use(makeStateDir(stateDir));
  undo.use(
    takeLock(
      join(stateDir, DAEMON_LOCK_FILE),
      (pid) => `a daemon (pid ${pid}) already uses the state directory ${stateDir}; choose another --state-dir`,
    ),
  );
  // A daemon before this one may have been killed.
  const restoration = await restoreMachine(stateDir);
  for (const what of restoration.done) log.logger.info("put back after a crash", { what });
  for (const problem of restoration.problems) log.logger.error("cannot be put back", { problem });
  const store = new SettingsStore(stateDir, log.logger);
  const environment = settingsFromEnvironment(deps.environment, (error) =>
    log.logger.warn("a variable is ignored", { err: error.message }),
  );
  const agent = undo.use(deps.createAgent({ clock, log: log.logger, stateDir }));
  const startedAt = clock.wall();
  const metrics = undo.use(new MetricsServer({ agent, log: log.logger, version: options.version, startedAt }));
  const takeSettings = async (settings: ResolvedSettings): Promise<void> => {
    const at = settingValue(settings, "metrics");
    await metrics.serveAt(at).catch((cause: Error) => {
      throw new DaemonError("metrics-listen", `cannot serve metrics at ${at}: ${cause.message}`, { cause });
    });
  };
  const lifecycle = new AgentLifecycle({ agent, store, clock, log: log.logger, environment, takeSettings });
  await takeSettings(lifecycle.settings).catch((error: DaemonError) => log.logger.error(error.message));
  undo.defer(() => lifecycle.close());
  const closing = new AbortController();
  const feed = new StatusFeed(agent);
  const ui = undo.use(
    new UiServer({ agent, clock, log: log.logger, pulse: () => feed.noteChange(), api: () => daemonHandler(service) }),
  );
  const service: DaemonServiceDeps = {
    agent,
    lifecycle,
    feed,
    ui,
    log,
    version: options.version,
    startedAt,
    wall: () => clock.wall(),
    closing: closing.signal,
  };
  undo.use(await serveDaemon(service, socketPath));
  undo.defer(() => closing.abort());
  log.logger.info("daemon ready", { socket: socketPath, stateDir, pid: process.pid, version: options.version });
  if (options.resume ?? true) lifecycle.resume();
  const owned = undo.move();
  let closed: Promise<void> | undefined;
  const close = (): Promise<void> => (closed ??= owned.disposeAsync());
  return { socketPath, lifecycle, agent, close, [Symbol.asyncDispose]: close };
}
