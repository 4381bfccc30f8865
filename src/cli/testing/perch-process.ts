import assert from "node:assert/strict";
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { fileURLToPath } from "node:url";

/** The command itself. */
export const PERCH = fileURLToPath(new URL("../../../bin/perch", import.meta.url));
/** The daemon with an agent in memory. */
export const FAKE_DAEMON = fileURLToPath(new URL("./fake-daemon.ts", import.meta.url));
export const KEY = "A2C8E62B-38F5-4553-B31E-DD66C696CEBB";
export const SERVER = "http://m.test:33073";

export interface Result {
  readonly code: number;
  readonly out: string;
  readonly err: string;
  readonly ms: number;
}

/** The environment of the tests without what would act on Perch. */
export function cleanEnvironment(extra: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const kept = Object.entries(process.env).filter(([name]) => !/^(PERCH_|NB_|FORCE_COLOR|NODE_)/.test(name));
  return { ...Object.fromEntries(kept), ...extra };
}

/** Runs a command, perch unless told otherwise, to its end. */
export function perch(args: readonly string[], environment: NodeJS.ProcessEnv = {}, command = PERCH): Promise<Result> {
  const began = performance.now();
  return new Promise((resolve) => {
    const options = { env: cleanEnvironment(environment), timeout: 15_000, maxBuffer: 64 * 2 ** 20 };
    const child = execFile(command, args, options, (error, out, err) =>
      resolve({ code: error ? Number(error.code ?? 99) : 0, out, err, ms: performance.now() - began }),
    );
    child.stdin?.end();
  });
}

export interface Scene {
  readonly dir: string;
  readonly address: string;
  readonly stateDir: string;
  /** Runs perch against this scene's daemon. */
  readonly run: (args: string, environment?: NodeJS.ProcessEnv) => Promise<Result>;
  readonly startDaemon: (...args: readonly string[]) => Promise<Daemon>;
  /** The same with variables of its own. */
  readonly startDaemonWith: (environment: NodeJS.ProcessEnv, ...args: readonly string[]) => Promise<Daemon>;
}

export interface Daemon {
  readonly process: ChildProcess;
  readonly log: () => string;
  readonly stop: (signal?: NodeJS.Signals) => Promise<number>;
}

/** A directory, a socket address and daemons that go away with the test. */
export function scene(t: TestContext): Scene {
  const dir = mkdtempSync(join(tmpdir(), "perch-cli-"));
  const address = `unix://${dir}/d.sock`;
  const stateDir = join(dir, "state");
  const daemons: Daemon[] = [];
  const start = async (environment: NodeJS.ProcessEnv, args: readonly string[]): Promise<Daemon> => {
    const daemon = await startDaemon(address, stateDir, args, environment);
    daemons.push(daemon);
    return daemon;
  };
  t.after(async () => {
    for (const daemon of daemons) await daemon.stop("SIGKILL");
    rmSync(dir, { recursive: true, force: true });
  });
  return {
    dir,
    address,
    stateDir,
    run: (args, environment = {}) => perch(args.split(" "), { PERCH_DAEMON_ADDR: address, ...environment }),
    startDaemon: (...args) => start({}, args),
    startDaemonWith: (environment, ...args) => start(environment, args),
  };
}

async function startDaemon(
  address: string,
  stateDir: string,
  args: readonly string[],
  environment: NodeJS.ProcessEnv,
): Promise<Daemon> {
  const child = spawn(process.execPath, [FAKE_DAEMON, "--daemon-addr", address, "--state-dir", stateDir, ...args], {
    env: cleanEnvironment(environment),
    stdio: ["ignore", "ignore", "pipe"],
  });
  const ended = new Promise<number>((resolve) => child.once("exit", (code) => resolve(code ?? 99)));
  let log = "";
  const ready = Promise.withResolvers<void>();
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    log += text;
    if (log.includes("daemon ready")) ready.resolve();
  });
  void ended.then(() => ready.reject(new Error(`the daemon ended: ${log}`)));
  await ready.promise;
  return {
    process: child,
    log: () => log,
    stop(signal = "SIGTERM") {
      child.kill(signal);
      return ended;
    },
  };
}

/** Waits for something that another process does. */
export async function until(condition: () => boolean): Promise<void> {
  const deadline = Date.now() + 8000;
  while (!condition()) {
    assert.ok(Date.now() < deadline, "it did not happen in time");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
