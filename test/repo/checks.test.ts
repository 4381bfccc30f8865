import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { ROOT } from "./source-files.ts";

/** More than this of a tool's findings helps nobody. */
const MAX_OUTPUT_CHARACTERS = 20_000;

/** Throws what the tool says, unless it ends with 0. */
function runTool(name: string, ...args: readonly string[]): void {
  const { status, stdout, stderr, error } = spawnSync(
    process.execPath,
    [join(ROOT, "node_modules/.bin", name), ...args],
    {
      cwd: ROOT,
      encoding: "utf8",
      maxBuffer: 64 * 1024 * 1024,
    },
  );
  if (error) throw error;
  if (status === 0) return;
  const failure = new Error(`${name} ended with ${status}\n${stdout}\n${stderr}`.slice(0, MAX_OUTPUT_CHARACTERS));
  failure.stack = failure.message;
  throw failure;
}

test("tsc finds nothing", () => {
  runTool("tsc");
});

test("biome finds nothing: lint, formatting, order of imports; warnings count", () => {
  runTool("biome", "check", "--error-on-warnings", "--colors=off", ".");
});
