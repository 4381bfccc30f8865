import assert from "node:assert/strict";
import { test } from "node:test";
import { liveRandomly } from "./random-life.ts";

/*
 * PERCH_SIM_RUNS=10000 runs more lives, PERCH_SIM_SEED=4711 begins at another seed; one life is told line by line by
 * PERCH_SIM_TRACE=seed.
 */
const RUNS = Number(process.env.PERCH_SIM_RUNS ?? 80);
const FIRST = Number(process.env.PERCH_SIM_SEED ?? 1);
const TRACED = Number(process.env.PERCH_SIM_TRACE ?? Number.NaN);

test(`${RUNS} random lives from seed ${FIRST} keep every promise`, async (t) => {
  const failures: string[] = [];
  const sums = { packets: 0, lost: 0, wakes: 0, pairs: 0, directPossible: 0, direct: 0 };
  for (let seed = FIRST; seed < FIRST + RUNS; seed++) {
    const trace = seed === TRACED ? { trace: (line: string) => t.diagnostic(line) } : {};
    const report = await liveRandomly(seed, trace);
    for (const name of Object.keys(sums) as (keyof typeof sums)[]) sums[name] += report[name];
    if (report.violations.length === 0) continue;
    failures.push(`seed ${seed} (${report.story}):\n  ${report.violations.join("\n  ")}`);
  }
  t.diagnostic(`seeds ${FIRST} to ${FIRST + RUNS - 1}: ${JSON.stringify(sums)}`);
  const replay = "tell one line by line: node test/sim/run-lives.ts SEED";
  assert.equal(
    failures.length,
    0,
    `${failures.length} of ${RUNS} lives broke a promise (${replay}):\n${failures.slice(0, 8).join("\n")}`,
  );
});

test("a seed told twice is the same life", async () => {
  // In 2009 both ends begin a handshake at once, and the session indices decide which of the two stays.
  for (const seed of [1, 2, 3, 4, 2009, 2009, 2009]) {
    const [first, second] = [await liveRandomly(seed), await liveRandomly(seed)];
    assert.equal(first.fingerprint, second.fingerprint, `seed ${seed}`);
    assert.ok(first.packets > 0);
  }
});
