import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { ExternalDeviceError } from "./external-error.ts";

/** What nft says when it fails, for a message. */
const ERROR_MAX_BYTES = 1000;

export interface Nft {
  /**
   * Carries out a text in the language of nft(8) as one transaction: whole or not at all; with `check` it is only tried. Throws
   * ExternalDeviceError `program-missing`, `not-permitted`, `kernel-unsupported` or `control-failed`.
   */
  run(text: string, options?: { readonly check?: boolean }): Promise<void>;
  /** Packets that a counter of a table (`FAMILY NAME`) has counted. Throws as `run`. */
  count(table: string, counter: string): Promise<number>;
  /** Tells of tables that go, whoever takes them away, as `FAMILY NAME`. Best effort. The returned function ends it. */
  watchRemovals(removed: (table: string) => void): () => void;
}

/** nft as a program; `command` with what comes before its options. */
export function nftProgram(command: readonly [string, ...string[]] = ["nft"]): Nft {
  const [program, ...before] = command;
  // Debian has it where the PATH of a plain user does not look.
  const env = { ...process.env, PATH: `${process.env.PATH ?? ""}:/usr/sbin:/sbin`, LC_ALL: "C" };
  const run = (args: readonly string[], text: string): Promise<string> =>
    new Promise((resolve, reject) => {
      const child = spawn(program, [...before, ...args], { stdio: ["pipe", "pipe", "pipe"], env });
      let output = "";
      let errors = "";
      child.stdout.setEncoding("utf8").on("data", (more: string) => {
        output += more;
      });
      child.stderr.setEncoding("utf8").on("data", (more: string) => {
        if (errors.length < ERROR_MAX_BYTES) errors += more;
      });
      child.on("error", (cause: NodeJS.ErrnoException) => {
        const isMissing = cause.code === "ENOENT";
        const reason = isMissing ? `${program} is not installed (Debian: nftables)` : cause.message;
        const code = isMissing ? "program-missing" : "control-failed";
        reject(new ExternalDeviceError(code, `access rules: ${reason}`, { cause }));
      });
      child.on("close", (code, signal) => {
        if (code === 0) resolve(output);
        else reject(refusal(errors.slice(0, ERROR_MAX_BYTES).trim() || `nft ended with ${signal ?? code}`));
      });
      child.stdin.on("error", () => {});
      child.stdin.end(text);
    });
  return {
    async run(text, { check = false } = {}) {
      await run([...(check ? ["--check"] : []), "-f", "-"], text);
    },
    async count(table, counter) {
      const text = await run(["list", "counter", ...table.split(" "), counter], "");
      return Number(/packets (\d+)/.exec(text)?.[1] ?? 0);
    },
    watchRemovals(removed) {
      const monitor = [...command, "monitor", "destroy", "tables"];
      let child: ChildProcess;
      let ended = false;
      const start = ([first, ...args]: readonly string[], instead: readonly string[] | undefined): void => {
        child = spawn(first!, args, { stdio: ["ignore", "pipe", "ignore"], env });
        child.on("error", () => {
          if (instead && !ended) start(instead, undefined);
        });
        createInterface({ input: child.stdout! }).on("line", (line) => {
          if (!ended && line.startsWith("delete table ")) removed(line.slice("delete table ".length).trim());
        });
        child.unref();
        // A pipe is a socket, whatever its type says.
        (child.stdout as unknown as { unref(): void }).unref();
      };
      start(["setpriv", "--pdeathsig", "KILL", ...monitor], monitor);
      return () => {
        ended = true;
        child.kill("SIGKILL");
      };
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
