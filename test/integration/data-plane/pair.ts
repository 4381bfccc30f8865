import { type ChildProcess, execFile, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import type { DataPlaneOptions } from "#wireguard/worker/data-plane.ts";
import type { LinkOptions } from "../../../lab/link.ts";
import { ip, Wire } from "./wire.ts";

const run = promisify(execFile);

interface EndEvent {
  readonly event: string;
  readonly payload: unknown;
}

/** A data plane in a process of its own, in a network namespace. */
export class End {
  readonly namespace: string;
  readonly process: ChildProcess;
  readonly events: EndEvent[] = [];
  readonly output: string[] = [];
  readonly #children: ChildProcess[] = [];
  started: { name: string; port: number; features: string[] } = { name: "", port: 0, features: [] };
  #next = 1;
  readonly #pending = new Map<number, PromiseWithResolvers<unknown>>();
  #notify: (() => void)[] = [];

  constructor(namespace: string, options: DataPlaneOptions) {
    this.namespace = namespace;
    const script = new URL("./end.ts", import.meta.url).pathname;
    this.process = spawn("ip", ["netns", "exec", namespace, process.execPath, script, JSON.stringify(options)], {
      stdio: ["pipe", "pipe", "pipe"],
    });
    this.process.stderr!.on("data", (text: Buffer) => this.output.push(text.toString()));
    this.process.once("exit", () => {
      const error = new Error(`the process ended: ${this.output.join("")}`);
      for (const { reject } of this.#pending.values()) reject(error);
      this.#pending.clear();
    });
    createInterface({ input: this.process.stdout! }).on("line", (line) => this.#line(line));
  }

  /** The first event with this name that fits, waiting for it; fails after `timeoutMs`. */
  async event(name: string, fits: (payload: never) => boolean = () => true, timeoutMs = 5000): Promise<unknown> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const found = this.events.find((event) => event.event === name && fits(event.payload as never));
      if (found) return found.payload;
      const left = deadline - performance.now();
      if (left <= 0)
        throw new Error(
          `no ${name} event in ${timeoutMs} ms; got ${JSON.stringify(this.events)} ${this.output.join("")}`,
        );
      await Promise.race([
        sleep(left, undefined, { ref: false }),
        new Promise<void>((done) => this.#notify.push(done)),
      ]);
    }
  }

  count(name: string): number {
    return this.events.filter((event) => event.event === name).length;
  }

  async start(): Promise<this> {
    this.started = (await this.event("started")) as typeof this.started;
    return this;
  }

  /** Calls a method of the data plane and waits for its answer. */
  call<Result = unknown>(method: string, ...args: unknown[]): Promise<Result> {
    const { exitCode, signalCode } = this.process;
    if (exitCode !== null || signalCode !== null)
      return Promise.reject(new Error(`${method}: the process has ended: ${this.output.join("")}`));
    const id = this.#next++;
    const line = JSON.stringify([id, method, ...args], (_key, value) =>
      value instanceof Uint8Array ? { hex: Buffer.from(value).toString("hex") } : value,
    );
    this.process.stdin!.write(`${line}\n`);
    const answer = Promise.withResolvers<unknown>();
    this.#pending.set(id, answer);
    return answer.promise as Promise<Result>;
  }

  counters(): Promise<Record<string, number>> {
    return this.call("counters");
  }

  /** Runs a program in the end's namespace and returns its output. */
  async exec(program: string, ...args: string[]): Promise<string> {
    const { stdout } = await run("ip", ["netns", "exec", this.namespace, program, ...args], {
      maxBuffer: 64 << 20,
      timeout: 30_000,
      encoding: "utf8",
    });
    return stdout;
  }

  /** Starts a program in the end's namespace; it is killed with the end. */
  spawn(program: string, ...args: string[]): ChildProcess {
    const child = spawn("ip", ["netns", "exec", this.namespace, program, ...args], { stdio: ["pipe", "pipe", "pipe"] });
    this.#children.push(child);
    return child;
  }

  /** How the process ended. */
  ended(): Promise<{ code: number | null; signal: string | null }> {
    const { exitCode, signalCode } = this.process;
    if (exitCode !== null || signalCode !== null) return Promise.resolve({ code: exitCode, signal: signalCode });
    return new Promise((resolve) => this.process.once("exit", (code, signal) => resolve({ code, signal })));
  }

  async stop(): Promise<void> {
    for (const child of this.#children) child.kill("SIGKILL");
    if (this.process.exitCode === null && this.process.signalCode === null) this.process.kill("SIGKILL");
    await this.ended();
  }

  #line(line: string): void {
    const message = JSON.parse(line) as EndEvent & { id?: number; result?: unknown };
    if (message.id !== undefined) {
      this.#pending.get(message.id)?.resolve(message.result);
      this.#pending.delete(message.id);
      return;
    }
    this.events.push(message);
    const waiting = this.#notify;
    this.#notify = [];
    for (const done of waiting) done();
  }
}

export interface PairOptions {
  readonly plane?: Partial<DataPlaneOptions>;
  /** Peers start asleep and without session and path. */
  readonly asleep?: boolean;
  /** The link between the namespaces runs over IPv6. */
  readonly outer6?: boolean;
  /** Default: a cable. */
  readonly impairment?: LinkOptions;
}

/**
 * A data plane at each end of a wire:
 *
 *   a  10.77.0.1 fd77::1 [tunnel] 192.0.2.1 2001:db8::1 ---wire--- 192.0.2.2 2001:db8::2 [tunnel] 10.77.0.2 fd77::2  b
 */
export class Pair implements AsyncDisposable {
  readonly a: End;
  readonly b: End;
  readonly wire: Wire;
  readonly outer6: boolean;
  /** Keys of the session that `connect` installed last. */
  generation = 0;

  private constructor(wire: Wire, plane: DataPlaneOptions, outer6: boolean) {
    this.wire = wire;
    this.a = new End(wire.ends[0].namespace, plane);
    this.b = new End(wire.ends[1].namespace, plane);
    this.outer6 = outer6;
  }

  static async start(options: PairOptions = {}): Promise<Pair> {
    const plane: DataPlaneOptions = { interfaceName: "tun0", mtu: 1420, listenPort: 0, ...options.plane };
    const wire = options.impairment ? await Wire.impaired(options.impairment) : Wire.cable();
    const pair = new Pair(wire, plane, options.outer6 ?? false);
    try {
      await Promise.all([pair.a.start(), pair.b.start()]);
      for (const [end, n] of [
        [pair.a, 1],
        [pair.b, 2],
      ] as const) {
        const name = end.started.name;
        ip("-n", end.namespace, "addr", "add", `10.77.0.${n}/24`, "dev", name);
        ip("-n", end.namespace, "addr", "add", `fd77::${n}/64`, "dev", name, "nodad");
        ip("-n", end.namespace, "link", "set", name, "up");
        await end.call("addPeer", 0, { asleep: options.asleep ?? false });
        await end.call("addPrefix", 0, { address: `10.77.0.${3 - n}`, bits: 32 });
        await end.call("addPrefix", 0, { address: `fd77::${3 - n}`, bits: 128 });
      }
      if (!options.asleep) await pair.connect();
      return pair;
    } catch (error) {
      await pair[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Where the other end's packets must go. */
  endpoint(of: End): { address: string; port: number } {
    const { address, address6 } = this.wire.ends[of === this.a ? 0 : 1];
    return { address: this.outer6 ? address6 : address, port: of.started.port };
  }

  /** Sets both paths and installs a session, `a` as initiator. */
  async connect(): Promise<void> {
    await this.a.call("setPath", 0, { kind: "udp", endpoint: this.endpoint(this.b) });
    await this.b.call("setPath", 0, { kind: "udp", endpoint: this.endpoint(this.a) });
    await this.install();
  }

  /** Installs a fresh session as a finished handshake would, the responder first. */
  async install(initiator: End = this.a): Promise<void> {
    const responder = initiator === this.a ? this.b : this.a;
    const forth = new Uint8Array(randomBytes(32));
    const back = new Uint8Array(randomBytes(32));
    const at = 1000 + 2 * this.generation++;
    await responder.call("installSession", 0, {
      role: "responder",
      localIndex: at + 1,
      remoteIndex: at,
      sendKey: back,
      receiveKey: forth,
    });
    await initiator.call("installSession", 0, {
      role: "initiator",
      localIndex: at,
      remoteIndex: at + 1,
      sendKey: forth,
      receiveKey: back,
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.a.stop(), this.b.stop()]);
    await this.wire[Symbol.asyncDispose]();
  }
}
