import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import type { Millis } from "#base/time.ts";
import { ExternalDeviceError } from "./external-error.ts";
import { commandThatEndsWithUs, PROGRAM_ENVIRONMENT } from "./find-program.ts";
import { runProgram } from "./run-program.ts";

/**
 * For a transaction. The rules of 50,000 peers took up to 1.1 s on two busy cores; one that is ended too early takes the interface
 * down, and one that hangs keeps it from ever closing.
 */
const PATIENCE: Millis = 60_000;
/** Until a monitor that was started sees everything. */
const MONITOR_SETTLE: Millis = 500;
/** Before one that ended is started again. */
const MONITOR_PAUSE: Millis = 500;

export interface Nft {
  /**
   * Carries out a text in the language of nft(8) as one transaction: whole or not at all; with `check` it is only tried. Throws
   * ExternalDeviceError `program-missing`, `not-permitted`, `kernel-unsupported` or `control-failed`.
   */
  run(text: string, options?: { readonly check?: boolean }): Promise<void>;
  /** Packets that a counter of a table (`FAMILY NAME`) has counted. Throws as `run`. */
  count(table: string, counter: string): Promise<number>;
  /**
   * Tells of tables that go, whoever takes them away, as `FAMILY NAME`; undefined: any may have gone while nobody watched. The
   * returned function ends it.
   */
  watchRemovals(removed: (table: string | undefined) => void): () => void;
}

/** nft as a program; `command` with what comes before its options. */
export function nftProgram(command: readonly [string, ...string[]] = ["nft"]): Nft {
  const [program, ...before] = command;
  const run = async (args: readonly string[], input?: string): Promise<string> => {
    const words = [...before, ...args];
    const call = { program, debianPackage: "nftables", args: words, patience: PATIENCE };
    const { ok, output, complaint } = await runProgram(input === undefined ? call : { ...call, input });
    if (!ok) throw refusal(complaint);
    return output.toString();
  };
  return {
    async run(text, { check = false } = {}) {
      await run([...(check ? ["--check"] : []), "-f", "-"], text);
    },
    async count(table, counter) {
      const text = await run(["list", "counter", ...table.split(" "), counter]);
      return Number(/packets (\d+)/.exec(text)?.[1] ?? 0);
    },
    watchRemovals(removed) {
      const monitor = new NftMonitor(command, removed);
      return () => monitor.close();
    },
  };
}

/** `nft monitor`, again and again until it is closed: what nobody tells of lets everything in. Does not hold the process. */
class NftMonitor {
  readonly #command: readonly string[];
  readonly #removed: (table: string | undefined) => void;
  #child: ChildProcess | undefined;
  #timer: NodeJS.Timeout | undefined;
  #ended = false;

  constructor(command: readonly string[], removed: (table: string | undefined) => void) {
    this.#command = [...command, "monitor", "destroy", "tables"];
    this.#removed = removed;
    void this.#start();
  }

  close(): void {
    this.#ended = true;
    clearTimeout(this.#timer);
    this.#child?.kill("SIGKILL");
  }

  async #start(): Promise<void> {
    const [program, ...args] = [...(await commandThatEndsWithUs("KILL")), ...this.#command];
    if (this.#ended) return;
    const child = spawn(program!, args, { stdio: ["ignore", "pipe", "ignore"], env: PROGRAM_ENVIRONMENT });
    this.#child = child;
    child.on("error", () => {});
    // It does not end by itself: somebody ended it, or it saw more than it could take.
    child.on("close", () => this.#later(MONITOR_PAUSE, () => void this.#start()));
    createInterface({ input: child.stdout }).on("line", (line) => {
      if (!this.#ended && line.startsWith("delete table ")) this.#removed(line.slice("delete table ".length).trim());
    });
    child.unref();
    // A pipe is a socket, whatever its type says.
    (child.stdout as unknown as { unref(): void }).unref();
    this.#later(MONITOR_SETTLE, () => this.#removed(undefined));
  }

  #later(pause: Millis, call: () => void): void {
    clearTimeout(this.#timer);
    if (!this.#ended) this.#timer = setTimeout(call, pause).unref();
  }
}

function refusal(reason: string): ExternalDeviceError {
  if (/Operation not permitted|must be root/i.test(reason))
    return new ExternalDeviceError("not-permitted", `nft may not change the packet filter: ${reason}`);
  if (/Operation not supported|Protocol not supported|Unable to initialize Netlink/i.test(reason))
    return new ExternalDeviceError("kernel-unsupported", `this kernel cannot filter packets by nftables: ${reason}`);
  return new ExternalDeviceError("control-failed", `nft refused the rules: ${reason}`);
}
