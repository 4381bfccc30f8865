/**
 * `npm test`: every layer in order, one closing summary.
 *
 *     npm test                                all of it
 *     npm test -- --layer unit                one layer (may be repeated)
 *     npm test -- --layer unit wireguard ice  of it, the files whose path contains one of the words
 *
 * With CI=true a skipped test is a failure: there the machine is set up so that everything can run, but for programs that
 * have to be compiled first.
 */
import { globSync } from "node:fs";
import { dirname, join } from "node:path";
import { run } from "node:test";
import { spec } from "node:test/reporters";
import { parseArgs } from "node:util";
import { ensurePackages, TEST_PACKAGES } from "./system-packages.ts";
import { createTotals, WITHOUT_COMPILER } from "./test-totals.ts";

interface Layer {
  readonly name: string;
  /** What it proves, printed above it. */
  readonly about: string;
  readonly files: readonly string[];
  /** Test files at a time. Layers that own the machine's namespaces and clocks run one by one. */
  readonly concurrency: number;
}

const LAYERS: readonly Layer[] = [
  {
    name: "checks",
    about: "types, lint, formatting, import direction, generated files, documents that must match the code",
    files: ["test/repo/**/*.test.ts"],
    concurrency: 1,
  },
  {
    name: "unit",
    about: "each part alone",
    files: [
      "src/**/*.test.ts",
      "lab/**/*.test.ts",
      "bench/**/*.test.ts",
      "scripts/**/*.test.ts",
      "test/fuzz/**/*.test.ts",
    ],
    concurrency: 2,
  },
  {
    name: "sim",
    about: "whole agents on a virtual network with a moving clock",
    files: ["test/sim/**/*.test.ts"],
    concurrency: 2,
  },
  {
    name: "integration",
    about: "real processes, interfaces and network namespaces (root)",
    files: ["test/integration/**/*.test.ts"],
    concurrency: 1,
  },
  {
    name: "browser",
    about: "the web page in Debian's Chromium",
    files: ["test/browser/**/*.test.ts"],
    concurrency: 1,
  },
  {
    name: "interop",
    about: "against programs that are not ours",
    files: ["test/interop/**/*.test.ts"],
    concurrency: 1,
  },
];

/** A test that takes longer than this is stuck. */
const TEST_TIMEOUT_MS = 120_000;

/** The whole run is stopped, and fails, after this. */
const RUN_TIMEOUT_MS = 19 * 60_000;

const root = dirname(import.meta.dirname);
const say = (line: string): void => void process.stdout.write(`${line}\n`);

async function main(): Promise<number> {
  const { layers, words } = parseCommandLine();
  process.chdir(root);
  // Tests start `node`, `tsc` and `biome` by name; a script started without npm finds them too.
  process.env.PATH = `${join(root, "node_modules", ".bin")}:${process.env.PATH ?? ""}:/usr/sbin:/sbin`;
  const isCi = process.env.CI === "true";
  const isRoot = process.getuid?.() === 0;
  const unprepared = layers.some(({ name }) => name !== "checks") ? ensurePackages(TEST_PACKAGES, say) : [];
  if (!isRoot)
    say("NOT ROOT: tests that make network namespaces and interfaces are skipped; run `sudo npm test` for all.");

  const totals = createTotals();
  const reporter = new spec();
  reporter.pipe(process.stdout);
  const stop = AbortSignal.timeout(RUN_TIMEOUT_MS);
  for (const layer of layers) {
    const files = filesOf(layer, words);
    if (files.length === 0) continue;
    say(`\n== ${layer.name}: ${layer.about} (${files.length} ${files.length === 1 ? "file" : "files"})`);
    const events = run({ files, concurrency: layer.concurrency, timeout: TEST_TIMEOUT_MS, signal: stop, cwd: root });
    for await (const event of events) if (totals.note(event)) reporter.write(event);
  }

  say("");
  const unexcused = totals.skipped.filter(({ reason }) => !reason.startsWith(WITHOUT_COMPILER));
  if (totals.skipped.length > 0) {
    say(isCi && unexcused.length > 0 ? "SKIPPED, which with CI=true is a failure:" : "SKIPPED:");
    for (const { name, reason } of totals.skipped) say(`  ${name}${reason ? ` (${reason})` : ""}`);
  }
  if (unprepared.length > 0) say(`MISSING from the system: ${unprepared.map(({ name }) => name).join(" ")}`);
  if (stop.aborted) say(`STOPPED: the run took longer than ${RUN_TIMEOUT_MS / 60_000} minutes.`);
  if (totals.counts.tests === 0) say("NO TEST matched.");
  for (const event of totals.summary()) reporter.write(event);
  reporter.end();
  const failed = !totals.success || stop.aborted || totals.counts.tests === 0 || (isCi && unexcused.length > 0);
  return failed ? 1 : 0;
}

function parseCommandLine(): { layers: readonly Layer[]; words: readonly string[] } {
  const names = LAYERS.map(({ name }) => name);
  try {
    const { values, positionals } = parseArgs({
      options: { layer: { type: "string", multiple: true, default: names } },
      allowPositionals: true,
    });
    const unknown = values.layer.find((name) => !names.includes(name));
    if (unknown !== undefined) throw new Error(`no layer ${JSON.stringify(unknown)}`);
    return { layers: LAYERS.filter(({ name }) => values.layer.includes(name)), words: positionals };
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : error}; layers are: ${names.join(", ")}\n`);
    process.exit(2);
  }
}

function filesOf(layer: Layer, words: readonly string[]): string[] {
  return globSync([...layer.files], { cwd: root })
    .filter((file) => words.length === 0 || words.some((word) => file.includes(word)))
    .sort()
    .map((file) => join(root, file));
}

process.exitCode = await main();
