import type { Millis } from "#base/time.ts";
import { ProgramMonitor } from "#net/program-monitor.ts";
import { ExternalDeviceError } from "./external-error.ts";
import { runProgram } from "./run-program.ts";

/**
 * For a transaction. The rules of 50,000 peers took up to 1.1 s on two busy cores; one that is ended too early takes the interface
 * down, and one that hangs keeps it from ever closing.
 */
const PATIENCE: Millis = 60_000;

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
      const told = "delete table ";
      const monitor = new ProgramMonitor({
        command: [...command, "monitor", "destroy", "tables"],
        line: (line) => {
          if (line.startsWith(told)) removed(line.slice(told.length).trim());
        },
        settled: () => removed(undefined),
      });
      return () => monitor.close();
    },
  };
}

function refusal(reason: string): ExternalDeviceError {
  if (/Operation not permitted|must be root/i.test(reason))
    return new ExternalDeviceError("not-permitted", `nft may not change the packet filter: ${reason}`);
  if (/Operation not supported|Protocol not supported|Unable to initialize Netlink/i.test(reason))
    return new ExternalDeviceError("kernel-unsupported", `this kernel cannot filter packets by nftables: ${reason}`);
  return new ExternalDeviceError("control-failed", `nft refused the rules: ${reason}`);
}
