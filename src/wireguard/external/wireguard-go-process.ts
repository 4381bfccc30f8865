import { type ChildProcess, spawn } from "node:child_process";
import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis } from "#base/time.ts";
import { commandThatEndsWithUs, PROGRAM_ENVIRONMENT } from "#net/find-program.ts";
import { MARK_VARIABLE } from "./device-mark.ts";
import { ExternalDeviceError } from "./external-error.ts";
import { ProgramLog } from "./program-log.ts";
import { isServed } from "./uapi-connection.ts";

const START_PATIENCE: Millis = 10_000;
const START_POLL: Millis = 5;
const TERMINATE_PATIENCE: Millis = 2000;

export interface ProcessSetUp {
  /** Whole path. */
  readonly program: string;
  readonly interfaceName: string;
  readonly socketPath: string;
  /** In the process' environment. */
  readonly mark: string;
  readonly log: Logger;
  readonly clock: Clock;
}

/**
 * One run of wireguard-go, in the foreground. It ends with us, however we end: the kernel sends it SIGTERM when its parent dies.
 * Where that cannot be had, the mark in its environment lets the next start find it.
 */
export class WireguardGoProcess {
  /** Why it is over, in words. */
  readonly ended: Promise<string>;
  readonly #child: ChildProcess;
  #end: string | undefined;

  private constructor(child: ChildProcess, output: ProgramLog) {
    this.#child = child;
    for (const [name, stream] of [["stdout", child.stdout] as const, ["stderr", child.stderr] as const]) {
      // A system without descriptors makes none, and says so by `error`.
      stream?.setEncoding("utf8").on("data", (text: string) => output.push(name, text));
    }
    this.ended = new Promise((resolve) => {
      const end = (how: string): void => {
        output.end();
        const { lastLine } = output;
        this.#end ??= lastLine ? `${how}: ${lastLine}` : how;
        resolve(this.#end);
      };
      child.on("error", (error) => end(`does not start (${error.message})`));
      // With its last words read.
      child.on("close", (code, signal) => {
        // In good order, as for a SIGTERM and for somebody who deleted the interface or the socket: it does not say which.
        if (code === 0) end("was ended, or its interface deleted");
        else end(signal ? `ended by ${signal}` : `ended with code ${code}`);
      });
    });
  }

  /** Resolves when the interface exists and the control socket is served. Throws ExternalDeviceError, and nothing is left then. */
  static async start(setUp: ProcessSetUp, signal: AbortSignal): Promise<WireguardGoProcess> {
    const command = [...(await commandThatEndsWithUs("TERM")), setUp.program, setUp.interfaceName];
    signal.throwIfAborted();
    const child = spawn(command[0]!, command.slice(1), {
      stdio: ["ignore", "pipe", "pipe"],
      env: {
        ...PROGRAM_ENVIRONMENT,
        // As `-f`, without its banner.
        WG_PROCESS_FOREGROUND: "1",
        LOG_LEVEL: "error",
        [MARK_VARIABLE]: setUp.mark,
      },
    });
    const process = new WireguardGoProcess(child, new ProgramLog(setUp.log, setUp.clock));
    try {
      await process.#ready(setUp, signal);
    } catch (error) {
      await process.end();
      throw error;
    }
    return process;
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** By request, then by force; resolves when the process is gone. Idempotent. */
  async end(): Promise<void> {
    this.#child.kill("SIGTERM");
    // One that was stopped takes the request when it goes on.
    this.#child.kill("SIGCONT");
    const force = setTimeout(() => this.#child.kill("SIGKILL"), TERMINATE_PATIENCE);
    await this.ended;
    clearTimeout(force);
  }

  /** By force: it hangs, which is the reason that `ended` gives. */
  kill(reason: string): void {
    this.#end ??= reason;
    this.#child.kill("SIGKILL");
  }

  async #ready({ socketPath, clock }: ProcessSetUp, signal: AbortSignal): Promise<void> {
    for (const deadline = clock.now() + START_PATIENCE; !(await isServed(socketPath)); ) {
      signal.throwIfAborted();
      if (this.#end) throw startError(this.#end);
      if (clock.now() > deadline) {
        throw new ExternalDeviceError(
          "control-failed",
          `wireguard-go does not serve ${socketPath} after ${START_PATIENCE / 1000} s`,
          { retryable: true },
        );
      }
      await sleep(START_POLL);
    }
    if (this.#end) throw startError(this.#end);
  }
}

function startError(reason: string): ExternalDeviceError {
  const message = `wireguard-go does not start: ${reason}`;
  if (/operation not permitted|permission denied/i.test(reason))
    return new ExternalDeviceError("not-permitted", `${message}; it needs root or CAP_NET_ADMIN`);
  if (/device or resource busy|unix socket in use/i.test(reason))
    return new ExternalDeviceError("interface-taken", message);
  return new ExternalDeviceError("control-failed", message, { retryable: true });
}
