import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { join } from "node:path";
import { describe, test } from "node:test";

/** One of the lab's tests of agents, run with other devices. */
interface Run {
  /** Of the agents, in turn. */
  readonly devices: string;
  readonly file: string;
  /** Of the names of its tests; absent: all. */
  readonly tests?: string;
}

/** What is tested: `wireguard-go`, and `kernel` where there is one. */
const BOTH = process.env.PERCH_EXTERNAL_DEVICE ?? "wireguard-go";
const MIXED = [`${BOTH},embedded`, `embedded,${BOTH}`] as const;
/** Not `burst`: other devices keep 128 packets for a sleeper, however large. */
const FILES = ["nat-matrix", "wake", "path-switch", "access-rules"];

/** PERCH_DEVICE_SUITES=all runs everything with every pair of devices, a quarter of an hour; else what says most in a minute. */
const RUNS: readonly Run[] =
  process.env.PERCH_DEVICE_SUITES === "all"
    ? FILES.flatMap((file) => [BOTH, ...MIXED].map((devices) => ({ devices, file })))
    : [
        { devices: MIXED[0], file: "nat-matrix", tests: "every pair of NATs round 3" },
        { devices: BOTH, file: "path-switch", tests: "takes over from the relay" },
        { devices: BOTH, file: "wake", tests: "in the same instant" },
        { devices: BOTH, file: "access-rules" },
      ];
const WAKES = process.env.PERCH_TEST_WAKES ?? "8";
const TIMEOUT = 400_000;
const isRoot = process.getuid?.() === 0;

describe("the lab's tests hold with other devices", { skip: !isRoot && "needs root" }, () => {
  for (const { devices, file, tests } of RUNS) {
    test(`${file}${tests ? ` (${tests})` : ""} with ${devices}`, { timeout: TIMEOUT }, async (t) => {
      const { code, output } = await runTests(devices, file, tests);
      for (const line of output.match(/^ *# (?!Subtest|tests|suites|cancelled|skipped|todo|duration).*$/gm) ?? [])
        t.diagnostic(line.trim().slice(2));
      assert.equal(code, 0, output);
      assert.match(output, /^# pass [1-9]/m, "some test ran");
    });
  }
});

function runTests(devices: string, file: string, tests?: string): Promise<{ code: unknown; output: string }> {
  const pattern = tests === undefined ? [] : [`--test-name-pattern=${tests}`];
  const args = ["--test", "--test-reporter=tap", ...pattern, join(import.meta.dirname, `${file}.test.ts`)];
  const env = {
    ...process.env,
    PERCH_LAB_DEVICES: devices,
    PERCH_TEST_WAKES: WAKES,
    // Otherwise it would report to the runner of this test.
    NODE_TEST_CONTEXT: undefined,
  };
  return new Promise((resolve) => {
    execFile(process.execPath, args, { env, maxBuffer: 16 << 20, timeout: TIMEOUT }, (error, output) =>
      resolve({ code: error ? (error.code ?? error.signal) : 0, output }),
    );
  });
}
