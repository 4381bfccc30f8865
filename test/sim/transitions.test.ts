import assert from "node:assert/strict";
import { test } from "node:test";
import { runTransition, TRANSITIONS } from "./transitions.ts";

/* PERCH_SIM_RUNS=1000 runs each transition so often, PERCH_SIM_SEED=4711 begins at another seed. */
const RUNS = Number(process.env.PERCH_SIM_RUNS ?? 25);
const FIRST = Number(process.env.PERCH_SIM_SEED ?? 1);

for (const kind of TRANSITIONS) {
  test(`${kind}: no packet is lost in ${RUNS} runs from seed ${FIRST}`, async (t) => {
    const failures: string[] = [];
    let packets = 0;
    for (let seed = FIRST; seed < FIRST + RUNS; seed++) {
      const report = await runTransition(kind, seed);
      packets += report.packets;
      if (report.failures.length > 0)
        failures.push(`seed ${seed} (${report.story}):\n  ${report.failures.slice(0, 5).join("\n  ")}`);
    }
    t.diagnostic(`${kind}: ${packets} packets`);
    const replay = `again: PERCH_SIM_RUNS=1 PERCH_SIM_SEED=SEED node --test test/sim/transitions.test.ts`;
    assert.equal(
      failures.length,
      0,
      `${failures.length} of ${RUNS} failed (${replay}):\n${failures.slice(0, 8).join("\n")}`,
    );
  });
}
