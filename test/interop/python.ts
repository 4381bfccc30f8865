import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/* Foreign judges written in Python: which interpreter, what is missing, and how to talk to one. */

/** Debian's interpreter, whose modules come from packages; never one that happens to be first in PATH. */
const PYTHON = "/usr/bin/python3";

/** Why a test cannot run: the Debian packages whose modules do not import. Undefined when all is there. */
export function missingPython(
  modules: Readonly<Record<string, string>>,
  commands: readonly string[] = [],
): string | undefined {
  const missing: string[] = [];
  for (const [module, debianPackage] of Object.entries(modules)) {
    try {
      execFileSync(PYTHON, ["-c", `import ${module}`], { stdio: "ignore" });
    } catch {
      missing.push(debianPackage);
    }
  }
  for (const command of commands) {
    try {
      execFileSync(command, ["--version"], { stdio: "ignore" });
    } catch {
      missing.push(command);
    }
  }
  return missing.length === 0 ? undefined : `needs ${missing.join(", ")} (apt-get install)`;
}

/** A running script that writes one JSON value per line. */
export interface Judge extends AsyncDisposable {
  /** The next value; rejects with what the script wrote to stderr when it ends first, or after 10 s. */
  next(): Promise<unknown>;
  say(line: string): void;
}

/** Starts a script of this folder. */
export function startJudge(script: string, ...args: string[]): Judge {
  const path = fileURLToPath(new URL(script, import.meta.url));
  const child: ChildProcess = spawn(PYTHON, ["-u", path, ...args], { stdio: ["pipe", "pipe", "pipe"] });
  let stderr = "";
  child.stderr?.on("data", (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  const lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  const exited = new Promise<void>((resolve) => child.once("close", () => resolve()));
  return {
    async next() {
      let timer: NodeJS.Timeout | undefined;
      const late = new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(new Error(`${script} says nothing for 10 s: ${stderr}`)), 10_000);
      });
      try {
        const line = await Promise.race([lines.next(), late]);
        if (line.done) throw new Error(`${script} ended: ${stderr}`);
        return JSON.parse(line.value);
      } finally {
        clearTimeout(timer);
      }
    },
    say(line) {
      child.stdin?.write(`${line}\n`);
    },
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await exited;
    },
  };
}
