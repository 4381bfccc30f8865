import { type ChildProcess, type SpawnOptions, spawn } from "node:child_process";
import { constants } from "node:os";
import type { IpAddress } from "#base/ip.ts";
import type { Millis } from "#base/time.ts";
import { LabError } from "./errors.ts";
import type { HostPlan } from "./topology.ts";

export interface ExecOptions {
  /** Then the program is killed and LabError `command-timeout` thrown. Default 10 s. */
  readonly timeoutMs?: Millis;
  /** What it reads from standard input. Default nothing. */
  readonly input?: string;
  readonly env?: NodeJS.ProcessEnv;
  readonly cwd?: string;
}

export interface ExecResult {
  /** Exit code; 128 + number for a signal. */
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

const EXEC_TIMEOUT_MS: Millis = 10_000;

/** One machine of the lab: a network namespace with `lo` and `net0`. Programs in it end with the lab. */
export class Host {
  readonly name: string;
  /** Name for `ip netns exec`. */
  readonly namespace: string;
  #plan: HostPlan;

  constructor(plan: HostPlan, namespace: string) {
    this.name = plan.name;
    this.namespace = namespace;
    this.#plan = plan;
  }

  /** IPv4 address of `net0`; private behind a NAT. */
  get address(): IpAddress {
    return this.#plan.address;
  }

  get address6(): IpAddress | undefined {
    return this.#plan.address6;
  }

  /** Name of the site the host is in. */
  get site(): string {
    return this.#plan.site;
  }

  get plan(): HostPlan {
    return this.#plan;
  }

  /** Called by the lab when the addresses have changed. */
  noteMoved(plan: HostPlan): void {
    this.#plan = plan;
  }

  /** The words that run a program here, for a shell or another tool. */
  commandLine(command: string, args: readonly string[] = []): string[] {
    return ["ip", "netns", "exec", this.namespace, command, ...args];
  }

  /** Starts a program; the child's `pid` is the program's own. Takes the options of `child_process.spawn`. */
  spawn(command: string, args: readonly string[] = [], options: SpawnOptions = {}): ChildProcess {
    const [ip, ...rest] = this.commandLine(command, args);
    return spawn(ip!, rest, { ...options, env: withoutTestContext(options.env ?? process.env) });
  }

  /** Starts a script with the Node that runs the lab. */
  spawnNode(script: string, args: readonly string[] = [], options: SpawnOptions = {}): ChildProcess {
    return this.spawn(process.execPath, [script, ...args], options);
  }

  /** Runs a program to its end. An exit code other than 0 is a result, not an error. */
  exec(command: string, args: readonly string[] = [], options: ExecOptions = {}): Promise<ExecResult> {
    const { timeoutMs = EXEC_TIMEOUT_MS, input, ...rest } = options;
    const child = this.spawn(command, args, {
      ...rest,
      stdio: [input === undefined ? "ignore" : "pipe", "pipe", "pipe"],
    });
    const output = { stdout: "", stderr: "" };
    for (const name of ["stdout", "stderr"] as const) {
      child[name]!.setEncoding("utf8");
      child[name]!.on("data", (text: string) => {
        output[name] += text;
      });
    }
    child.stdin?.on("error", () => {});
    child.stdin?.end(input);
    return new Promise((resolve, reject) => {
      const timeout = setTimeout(() => {
        child.kill("SIGKILL");
        const words = [command, ...args].join(" ");
        reject(new LabError("command-timeout", `${words} on ${this.name} did not end within ${timeoutMs} ms`));
      }, timeoutMs);
      child.on("error", (cause) => {
        clearTimeout(timeout);
        reject(new LabError("command-failed", `cannot start ${command} on ${this.name}`, { cause }));
      });
      child.on("close", (code, signal) => {
        clearTimeout(timeout);
        resolve({ code: code ?? 128 + (signal ? constants.signals[signal] : 0), ...output });
      });
    });
  }

  /** Runs a script with the Node that runs the lab. */
  execNode(script: string, args: readonly string[] = [], options: ExecOptions = {}): Promise<ExecResult> {
    return this.exec(process.execPath, [script, ...args], options);
  }
}

/** A Node started under the test runner would otherwise talk the runner's language on its standard output. */
function withoutTestContext(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const { NODE_TEST_CONTEXT: _, ...rest } = env;
  return rest;
}
