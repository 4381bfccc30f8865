/**
 * `npm run lab:kernel`: tests on a kernel that has WireGuard, whatever the kernel of this machine is.
 *
 *     npm run lab:kernel                              all of test/kernel
 *     npm run lab:kernel -- control towards           the files whose path contains one of the words
 *     npm run lab:kernel -- --exec 'uname -a; wg'     a script for bash instead
 *
 * Root only, x86-64 Debian. Ends with what failed; a test that is skipped fails too.
 */
import { globSync } from "node:fs";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { messageOf } from "#base/errors.ts";
import { ensurePackages } from "../../scripts/system-packages.ts";
import { fetchKernel, MACHINE_PACKAGES } from "./kernel-files.ts";
import { runMachine } from "./machine.ts";

const FILES = "test/kernel/**/*.test.ts";
const root = dirname(dirname(import.meta.dirname));
const say = (line: string): void => void process.stdout.write(`${line}\n`);

async function main(): Promise<number> {
  const { words, exec, minutes } = parseCommandLine();
  if (process.platform !== "linux" || process.arch !== "x64" || process.getuid?.() !== 0) {
    say("it needs root on an x86-64 Linux");
    return 2;
  }
  const script = exec ?? testScript(words);
  if (ensurePackages(MACHINE_PACKAGES, say).length > 0) return 2;
  const kernel = await fetchKernel(join(root, "node_modules/.cache/perch-machine"), say);
  say(`== Linux ${kernel.version}`);
  const began = performance.now();
  const result = await runMachine({ kernel, script, timeoutMs: minutes * 60_000 });
  const seconds = Math.round((performance.now() - began) / 1000);
  if (result.code !== undefined) {
    say(`== ended with ${result.code} after ${seconds} s`);
    return result.code;
  }
  say(`${result.console.trimEnd()}\n== NOT ENDED within ${seconds} s`);
  return 1;
}

function testScript(words: readonly string[]): string {
  const files = globSync(FILES, { cwd: root }).filter(
    (file) => words.length === 0 || words.some((word) => file.includes(word)),
  );
  if (files.length === 0) throw new Error(`no file of ${FILES} matches`);
  const quoted = [root, join(root, "scripts/node"), ...files.sort()].map(
    (word) => `'${word.replaceAll("'", "'\\''")}'`,
  );
  const [folder, node, ...rest] = quoted;
  // Of a run without a failure, what was skipped is one.
  return `cd ${folder} || exit 2
export PATH=${folder}/node_modules/.bin:$PATH
${node} --test --test-concurrency=1 --test-reporter=spec --test-reporter-destination=stdout \\
  --test-reporter=tap --test-reporter-destination=/tmp/tap ${rest.join(" ")} || exit 1
grep -q '^# skipped 0$' /tmp/tap && grep -q '^# pass [1-9]' /tmp/tap`;
}

function parseCommandLine(): { words: readonly string[]; exec: string | undefined; minutes: number } {
  try {
    const { values, positionals } = parseArgs({
      options: { exec: { type: "string" }, minutes: { type: "string", default: "15" } },
      allowPositionals: true,
    });
    const minutes = Number(values.minutes);
    if (!(minutes > 0)) throw new Error(`--minutes ${values.minutes} is no time`);
    return { words: positionals, exec: values.exec, minutes };
  } catch (error) {
    process.stderr.write(`${messageOf(error)}\n`);
    process.exit(2);
  }
}

process.exitCode = await main();
