import { liveRandomly } from "./random-life.ts";

/*
 * Random lives outside of the test runner, for long hunts and for telling one life:
 *
 *   node test/sim/run-lives.ts FIRST COUNT        a line for each life that broke a promise, sums at the end
 *   node test/sim/run-lives.ts SEED               one life, told line by line
 */
const [first = 1, count] = process.argv.slice(2).map(Number);
const print = (line: string): void => void process.stdout.write(`${line}\n`);

if (count === undefined) {
  const report = await liveRandomly(first, { trace: print });
  print(JSON.stringify(report, undefined, 2));
} else {
  const startedAt = performance.now();
  const sums: Record<string, number> = {};
  let broken = 0;
  for (let seed = first; seed < first + count; seed++) {
    const { story, violations, fingerprint: _, ...numbers } = await liveRandomly(seed);
    for (const [name, value] of Object.entries(numbers)) sums[name] = (sums[name] ?? 0) + value;
    if (violations.length === 0) continue;
    broken++;
    print(`seed ${seed} (${story}):\n  ${violations.slice(0, 5).join("\n  ")}`);
  }
  const { seed: __, ...rest } = sums;
  const seconds = Math.round((performance.now() - startedAt) / 1000);
  if (broken > 0) print("tell one line by line: node test/sim/run-lives.ts SEED");
  print(`${broken} of ${count} lives broke a promise, ${seconds} s: ${JSON.stringify(rest)}`);
}
