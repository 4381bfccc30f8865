/** For tests: `perch server` as its own process, started through bin/perch. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

const PERCH = join(dirname(dirname(import.meta.dirname)), "bin", "perch");

/** Variables of the machine's own must not decide tests. */
const ENVIRONMENT = Object.fromEntries(
  Object.entries(process.env).filter(([name]) => !/^(PERCH|NB)_/.test(name) && name !== "NODE_TEST_CONTEXT"),
);

export interface Finished {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a command to its end. */
export function perch(...args: readonly string[]): Finished {
  const { status, stdout, stderr } = spawnSync(PERCH, args, { encoding: "utf8", env: ENVIRONMENT, timeout: 20_000 });
  return { code: status, stdout, stderr };
}

/** A directory that is removed with `using`. */
export function temporaryDirectory(): { readonly path: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), "perch-server-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

/** A TCP port of loopback that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, "close");
  return port;
}

export class ServerProcess implements AsyncDisposable {
  readonly child: ChildProcess;
  readonly exited: Promise<Finished>;
  #stdout = "";
  #stderr = "";

  private constructor(args: readonly string[]) {
    this.child = spawn(PERCH, ["server", ...args], { stdio: ["ignore", "pipe", "pipe"], env: ENVIRONMENT });
    this.child.stdout!.setEncoding("utf8").on("data", (text: string) => {
      this.#stdout += text;
    });
    this.child.stderr!.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr += text;
    });
    this.exited = once(this.child, "close").then(([code]) => ({
      code: code as number | null,
      stdout: this.#stdout,
      stderr: this.#stderr,
    }));
  }

  /** Starts one with free ports of loopback unless flags say otherwise, and waits for `ready`. */
  static async start(dataDir: string, ...args: readonly string[]): Promise<ServerProcess> {
    const ports = ["--listen", "127.0.0.1:0", "--stun-listen", "127.0.0.1:0"];
    const server = new ServerProcess(["--data-dir", dataDir, ...ports, ...args]);
    await server.#untilReady();
    return server;
  }

  get stdout(): string {
    return this.#stdout;
  }

  get stderr(): string {
    return this.#stderr;
  }

  /** The URL that it printed. */
  get url(): string {
    return /^management: +(\S+)$/m.exec(this.#stdout)?.[1] ?? "";
  }

  get origin(): string {
    return this.url.replace(/^https?:\/\//, "");
  }

  /** The first start's setup key. */
  get setupKey(): string {
    return /^setup key: +(\S+) /m.exec(this.#stdout)?.[1] ?? "";
  }

  get adminToken(): string {
    return /^admin token: +(\S+)$/m.exec(this.#stdout)?.[1] ?? "";
  }

  /** Ends it with a signal and waits for that. */
  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<Finished> {
    this.child.kill(signal);
    return await this.exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.child.exitCode === null && this.child.signalCode === null) await this.stop("SIGKILL");
  }

  async #untilReady(): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const look = (): void => {
      if (/^ready$/m.test(this.#stdout)) resolve();
    };
    this.child.stdout!.on("data", look);
    void this.exited.then(({ code, stderr }) => reject(new Error(`the server ended with ${code}: ${stderr}`)));
    const timer = setTimeout(() => reject(new Error(`the server is not ready after 10 s: ${this.#stderr}`)), 10_000);
    try {
      await promise;
    } finally {
      clearTimeout(timer);
      this.child.stdout!.off("data", look);
    }
  }
}
