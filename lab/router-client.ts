import { type ChildProcess, spawn } from "node:child_process";
import type { Socket } from "node:net";
import { fileURLToPath } from "node:url";
import { CONTROL_FD, type RouterCommand, type RouterReply } from "./control.ts";
import { LabError } from "./errors.ts";

const ROUTER_PATH = fileURLToPath(new URL("./router.ts", import.meta.url));
const CLOSE_TIMEOUT_MS = 3000;
const STDERR_KEPT_BYTES = 4096;

interface Waiting {
  resolve(value: unknown): void;
  reject(error: LabError): void;
}

/** The owner's side of the router process: sends commands, matches replies, notices its death. */
export class RouterClient {
  readonly #child: ChildProcess;
  readonly #socket: Socket;
  readonly #waiting = new Map<number, Waiting>();
  readonly #exited: Promise<void>;
  #nextId = 1;
  #input = "";
  #stderr = "";
  #isClosing = false;

  /** Starts the process. */
  constructor() {
    const { NODE_TEST_CONTEXT: _, NODE_OPTIONS: __, ...env } = process.env;
    // A process group of its own: Ctrl-C is for the owner, who then ends the router in order.
    this.#child = spawn(process.execPath, [ROUTER_PATH], {
      stdio: ["ignore", "ignore", "pipe", "pipe"],
      env,
      detached: true,
    });
    this.#socket = this.#child.stdio[CONTROL_FD] as Socket;
    this.#socket.setEncoding("utf8");
    this.#socket.on("data", (text: string) => this.#noteInput(text));
    this.#socket.on("error", () => {});
    this.#child.stderr!.setEncoding("utf8");
    this.#child.stderr!.on("data", (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-STDERR_KEPT_BYTES);
    });
    this.#exited = new Promise((resolve) => {
      this.#child.on("error", (error) => {
        this.#stderr += error.message;
        this.#fail();
        resolve();
      });
      this.#child.on("close", () => {
        this.#fail();
        resolve();
      });
    });
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** Resolves with the reply's value. Throws LabError `router-failed` when the router refuses or has ended. */
  request(command: RouterCommand): Promise<unknown> {
    if (this.#isClosing) return Promise.reject(new LabError("lab-closed", "the lab has been closed"));
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return Promise.reject(this.#ended());
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#socket.write(`${JSON.stringify({ id, command })}\n`);
    });
  }

  /** Ends the router, by force if need be, and resolves when it is gone. */
  async close(): Promise<void> {
    this.#isClosing = true;
    this.#socket.end();
    const force = setTimeout(() => this.#child.kill("SIGKILL"), CLOSE_TIMEOUT_MS);
    await this.#exited;
    clearTimeout(force);
    this.#socket.destroy();
  }

  #noteInput(text: string): void {
    const lines = (this.#input + text).split("\n");
    this.#input = lines.pop()!;
    for (const line of lines) {
      const reply = JSON.parse(line) as RouterReply;
      const waiting = this.#waiting.get(reply.id);
      this.#waiting.delete(reply.id);
      if (reply.ok) waiting?.resolve(reply.value);
      else waiting?.reject(new LabError("router-failed", `the router refused: ${reply.message}`));
    }
  }

  #fail(): void {
    for (const waiting of this.#waiting.values()) waiting.reject(this.#ended());
    this.#waiting.clear();
  }

  #ended(): LabError {
    const { exitCode, signalCode } = this.#child;
    const how = signalCode ? `by ${signalCode}` : exitCode === null ? "or never started" : `with code ${exitCode}`;
    const detail = this.#stderr.trim();
    return new LabError("router-failed", `the router process has ended ${how}${detail ? `: ${detail}` : ""}`);
  }
}
