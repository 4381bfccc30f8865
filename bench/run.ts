import { cpus, release, totalmem } from "node:os";
import { parseArgs } from "node:util";
import { messageOf } from "#base/errors.ts";
import type { Bench, BenchResult } from "./bench.ts";

/** Name to module; a module is loaded when it is asked for. */
const BENCHES: Readonly<Record<string, () => Promise<{ readonly bench: Bench }>>> = {
  "idle-cost": () => import("./idle-cost.ts"),
  "local-ends": () => import("./local-ends.ts"),
  netmap: () => import("./netmap.ts"),
  relay: () => import("./relay.ts"),
  status: () => import("./status.ts"),
  throughput: () => import("./throughput.ts"),
  wake: () => import("./wake.ts"),
};

const HELP = `npm run bench -- NAME [--json] [--quick]

  NAME     ${Object.keys(BENCHES).join(", ")}
  --json   the last line of stdout is one JSON object {bench, machine, results}
  --quick  a few samples only: shows that the bench works, not how fast anything is`;

function machine(): string {
  const [cpu] = cpus();
  return `${cpus().length} x ${cpu?.model.trim()}, ${Math.round(totalmem() / 2 ** 30)} GiB, Linux ${release()}, Node ${process.version}`;
}

function table(results: readonly BenchResult[]): string {
  const programs = [...new Set(results.flatMap(({ others }) => Object.keys(others)))];
  // A column that no line fills is left out.
  const has = (field: "p95" | "bar" | "barP95" | "least"): boolean =>
    results.some((result) => result[field] !== undefined);
  const columns = [
    ...[
      { title: "", of: ({ name }: BenchResult) => name },
      { title: "unit", of: ({ unit }: BenchResult) => unit },
    ],
    { title: has("p95") ? "perch, median" : "perch", of: ({ perch }: BenchResult) => format(perch) },
    ...(has("bar") ? [{ title: "at most", of: ({ perch, bar }: BenchResult) => verdict(perch, bar) }] : []),
    ...(has("least") ? [{ title: "at least", of: ({ perch, least }: BenchResult) => verdictLeast(perch, least) }] : []),
    ...(has("p95") ? [{ title: "p95", of: ({ p95 }: BenchResult) => format(p95) }] : []),
    ...(has("barP95") ? [{ title: "at most", of: ({ p95, barP95 }: BenchResult) => verdict(p95, barP95) }] : []),
    // Behind each program: how many times Perch's value is its value.
    ...programs.flatMap((program) => [
      { title: program, of: ({ others }: BenchResult) => format(others[program]) },
      { title: "ratio", of: ({ perch, others }: BenchResult) => ratio(perch, others[program]) },
    ]),
    { title: "samples", of: ({ samples }: BenchResult) => String(samples) },
  ];
  const head = columns.map(({ title }) => title);
  const rows = results.map((result) => columns.map(({ of }) => of(result)));
  const widths = head.map((title, column) => Math.max(title.length, ...rows.map((row) => row[column]!.length)));
  return [head, ...rows]
    .map((row) =>
      row.map((cell, column) => (column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!))).join("  "),
    )
    .join("\n");
}

function verdict(value = Number.NaN, bar?: number): string {
  if (bar === undefined) return "";
  return `${format(bar)} ${value <= bar ? "ok" : "MISSED"}`;
}

function verdictLeast(value: number, least?: number): string {
  if (least === undefined) return "";
  return `${format(least)} ${value >= least ? "ok" : "MISSED"}`;
}

function ratio(perch: number, other: number | undefined): string {
  return other === undefined || other === 0 ? "-" : (perch / other).toFixed(2);
}

function format(value: number | undefined): string {
  if (value === undefined) return "-";
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { json: { type: "boolean" }, quick: { type: "boolean" }, help: { type: "boolean", short: "h" } },
  });
  const name = positionals[0];
  const load = name === undefined ? undefined : BENCHES[name];
  if (values.help || !load) {
    const wrong = name === undefined || values.help ? "" : `there is no bench ${JSON.stringify(name)}\n\n`;
    process.stderr.write(`${wrong}${HELP}\n`);
    process.exitCode = values.help ? 0 : 2;
    return;
  }
  const { bench } = await load();
  const results = await bench({ quick: values.quick === true, say: (line) => process.stderr.write(`${line}\n`) });
  process.stdout.write(`${name} on ${machine()}\n\n${table(results)}\n`);
  if (values.json) process.stdout.write(`${JSON.stringify({ bench: name, machine: machine(), results })}\n`);
}

main().catch((error: unknown) => {
  process.stderr.write(`bench: ${messageOf(error)}\n`);
  process.exitCode = 1;
});
