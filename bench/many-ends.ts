import type { ChildProcess } from "node:child_process";
import { createHash } from "node:crypto";
import type { networkInterfaces } from "node:os";
import { join } from "node:path";
import { PrivateKey } from "#base/keys.ts";
import type { Millis } from "#base/time.ts";
import type { Host } from "../lab/host.ts";

/** What the process of the ends is told. */
export interface EndsOrder {
  /** Of management. */
  readonly url: string;
  /** Overlay address of each end; its key is `endKey` of its place in the list. */
  readonly ends: readonly string[];
  /** Length of the overlay's prefix. */
  readonly bits: number;
  /** The one peer that each of them knows. */
  readonly agent: { readonly key: string; readonly address: string };
  readonly interfaces: ReturnType<typeof networkInterfaces>;
}

export type EndsMessage = { readonly kind: "ready" } | ({ readonly kind: "report" } & EndsReport);

export interface EndsReport {
  /** When signal messages came in, of all ends; `labNow`. */
  readonly messages: readonly Millis[];
  /** Ends that see the agent as connected. */
  readonly connected: number;
}

/** What became of connecting to each of many addresses. */
export interface TouchReport {
  /** From the first attempt to the last. */
  readonly touchedMs: Millis;
  /** Until all were connected, or patience ended. */
  readonly allMs: Millis;
  /** How long each took; null: it was not connected. */
  readonly times: readonly (Millis | null)[];
}

/** Key of the end at a place of the list: known to whoever makes the network, and to the process of the ends. */
export function endKey(index: number): PrivateKey {
  return PrivateKey.fromBytes(createHash("sha256").update(`end ${index} of a bench`).digest());
}

const READY_TIMEOUT: Millis = 120_000;

/** Many agents in one process that answer for real: bench/ends-process.ts. */
export class ManyEnds implements AsyncDisposable {
  readonly #process: ChildProcess;

  private constructor(child: ChildProcess) {
    this.#process = child;
  }

  /** Resolves when signal and relay know all of them. */
  static async start(host: Host, order: Omit<EndsOrder, "interfaces">): Promise<ManyEnds> {
    const { address } = host;
    const net0 = { address, netmask: "255.255.255.0", family: "IPv4", mac: "", internal: false, cidr: null } as const;
    const script = join(import.meta.dirname, "ends-process.ts");
    const whole: EndsOrder = { ...order, interfaces: { net0: [net0] } };
    const child = host.spawnNode(script, [JSON.stringify(whole)], { stdio: ["ignore", "inherit", "inherit", "ipc"] });
    const ends = new ManyEnds(child);
    try {
      await ends.#next("ready", READY_TIMEOUT);
      return ends;
    } catch (error) {
      await ends[Symbol.asyncDispose]();
      throw error;
    }
  }

  async report(): Promise<EndsReport> {
    const report = this.#next("report", READY_TIMEOUT);
    this.#process.send("report");
    return report;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const child = this.#process;
    if (child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise<void>((resolve) => child.once("exit", () => resolve()));
    child.kill("SIGKILL");
    await gone;
  }

  #next<Kind extends EndsMessage["kind"]>(
    kind: Kind,
    timeoutMs: Millis,
  ): Promise<Extract<EndsMessage, { readonly kind: Kind }>> {
    const child = this.#process;
    return new Promise((resolve, reject) => {
      const end = (): void => {
        clearTimeout(timeout);
        child.off("message", listen);
        child.off("exit", exited);
      };
      const fail = (why: string): void => {
        end();
        reject(new Error(`the process of the ends ${why}`));
      };
      const listen = (message: EndsMessage): void => {
        if (message.kind !== kind) return;
        end();
        resolve(message as Extract<EndsMessage, { readonly kind: Kind }>);
      };
      const exited = (code: number | null): void => fail(`ended with ${code}`);
      const timeout = setTimeout(() => fail(`did not say ${kind} within ${timeoutMs} ms`), timeoutMs);
      child.on("message", listen);
      child.on("exit", exited);
    });
  }
}

/** Connects to port 22 of all addresses within `withinMs`, from programs of that host. */
export async function touchAll(host: Host, addresses: readonly string[], withinMs: Millis): Promise<TouchReport> {
  const patienceMs = 60_000;
  const script = join(import.meta.dirname, "touch-process.ts");
  const args = [22, withinMs, patienceMs].map(String);
  const { code, stdout, stderr } = await host.execNode(script, args, {
    input: addresses.join("\n"),
    timeoutMs: withinMs + patienceMs + 30_000,
  });
  if (code !== 0) throw new Error(`cannot connect to ${addresses.length} addresses: ${stderr}`);
  return JSON.parse(stdout) as TouchReport;
}

/** Most of `times` (ms) within any second. */
export function busiestSecond(times: readonly Millis[]): number {
  const sorted = [...times].sort((a, b) => a - b);
  let most = 0;
  for (let from = 0, to = 0; to < sorted.length; to++) {
    while (sorted[to]! - sorted[from]! >= 1000) from++;
    most = Math.max(most, to - from + 1);
  }
  return most;
}
