import type { ChildProcess } from "node:child_process";
import { resolve } from "node:path";
import type { Millis } from "#base/time.ts";
import { LabError } from "./errors.ts";
import type { Host } from "./host.ts";

/** Port of the echo servers that every traffic host runs, UDP and TCP. */
export const ECHO_PORT = 7007;

export interface TrafficOptions {
  readonly count?: number;
  /** Payload of each datagram, or of each write. */
  readonly bytes?: number;
  /** Between two datagrams; 0 sends all at once. */
  readonly intervalMs?: Millis;
  readonly timeoutMs?: Millis;
  /** How long to look for second copies after the last echo. */
  readonly settleMs?: Millis;
}

export interface TrafficCommand extends Required<TrafficOptions> {
  readonly id: number;
  readonly protocol: "udp" | "tcp";
  readonly to: string;
  readonly port: number;
}

/** Starts a flow, or ends it when `to` is absent; answered at its end. */
export interface FlowCommand {
  readonly id: number;
  readonly protocol: "flow";
  readonly to?: string;
  readonly port?: number;
  readonly bytes?: number;
  readonly intervalMs?: Millis;
  readonly settleMs?: Millis;
}

export interface TrafficResult {
  readonly sent: number;
  /** Different datagrams that came back. */
  readonly received: number;
  readonly duplicates: number;
  readonly inOrder: boolean;
  /** Of the first send (or connect), wall clock. */
  readonly startedAt: Millis;
  /** From the first send (or connect) to its echo; NaN when it never came. */
  readonly firstMs: Millis;
  readonly lastMs: Millis;
}

/** What became of each datagram of a flow, by number. Times in ms of the machine's monotonic clock (`labNow`). */
export interface FlowRecord {
  readonly sentAt: readonly Millis[];
  /** When its first echo came; 0 = never. */
  readonly echoedAt: readonly Millis[];
  readonly copies: readonly number[];
}

export interface TrafficReply {
  readonly id: number;
  readonly result?: TrafficResult;
  readonly flow?: FlowRecord;
  readonly error?: string;
}

/** The clock of `FlowRecord`, the same in all processes of the machine. */
export function labNow(): Millis {
  return Number(process.hrtime.bigint()) / 1e6;
}

/** A flow under way. */
export interface Flow {
  /** Sends no more, waits for the echoes under way, and says what became of each datagram. */
  stop(): Promise<FlowRecord>;
}

/** A process in a host that answers echo on ECHO_PORT and sends counted traffic on command. */
export class Traffic implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #host: string;
  readonly #waiting = new Map<number, PromiseWithResolvers<TrafficReply>>();
  #nextId = 1;

  private constructor(host: Host) {
    this.#host = host.name;
    this.#child = host.spawnNode(resolve(import.meta.dirname, "traffic-process.ts"), [String(ECHO_PORT)], {
      stdio: ["ignore", "inherit", "inherit", "ipc"],
    });
    this.#child.on("message", (reply: TrafficReply) => {
      const waiting = this.#waiting.get(reply.id);
      this.#waiting.delete(reply.id);
      if (reply.error === undefined) waiting?.resolve(reply);
      else waiting?.reject(new LabError("command-failed", `${this.#host}: ${reply.error}`));
    });
    this.#child.on("exit", () => {
      for (const waiting of this.#waiting.values()) {
        waiting.reject(new LabError("command-failed", `the traffic process on ${this.#host} ended`));
      }
      this.#waiting.clear();
    });
  }

  /** Resolves when the echo servers listen. */
  static async start(host: Host): Promise<Traffic> {
    const traffic = new Traffic(host);
    await traffic.#answer(0);
    return traffic;
  }

  /** Datagrams to an echo server and back. */
  udp(to: string, options: TrafficOptions = {}): Promise<TrafficResult> {
    return this.#run("udp", to, options);
  }

  /** A TCP connection to an echo server and what it sends back. Rejects when it does not come through. */
  tcp(to: string, options: TrafficOptions = {}): Promise<TrafficResult> {
    return this.#run("tcp", to, options);
  }

  /** A steady flow of datagrams to an echo server and back until `stop` is called; datagrams of one flow have one 5-tuple. */
  flow(
    to: string,
    options: { readonly bytes?: number; readonly intervalMs?: Millis; readonly settleMs?: Millis } = {},
  ): Flow {
    const id = this.#nextId++;
    const { bytes = 64, intervalMs = 10, settleMs = 1000 } = options;
    const answer = this.#answer(id);
    this.#child.send({ id, protocol: "flow", to, port: ECHO_PORT, bytes, intervalMs, settleMs } satisfies FlowCommand);
    return {
      stop: async () => {
        this.#child.send({ id, protocol: "flow" } satisfies FlowCommand);
        return (await answer).flow!;
      },
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const gone = new Promise((resolve) => this.#child.once("exit", resolve));
    this.#child.kill();
    await gone;
  }

  async #run(protocol: "udp" | "tcp", to: string, options: TrafficOptions): Promise<TrafficResult> {
    const id = this.#nextId++;
    const { count = 1, bytes = 64, intervalMs = 0, timeoutMs = 5000, settleMs = 150 } = options;
    const command: TrafficCommand = {
      id,
      protocol,
      to,
      port: ECHO_PORT,
      count,
      bytes,
      intervalMs,
      timeoutMs,
      settleMs,
    };
    const answer = this.#answer(id);
    this.#child.send(command);
    return (await answer).result!;
  }

  #answer(id: number): Promise<TrafficReply> {
    const waiting = Promise.withResolvers<TrafficReply>();
    this.#waiting.set(id, waiting);
    return waiting.promise;
  }
}
