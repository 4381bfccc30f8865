import type { TestEvent } from "node:test/reporters";

interface Counts {
  tests: number;
  suites: number;
  passed: number;
  failed: number;
  cancelled: number;
  skipped: number;
  todo: number;
}

export interface SkippedTest {
  readonly name: string;
  readonly reason: string;
}

/** Adds up several runs of node's test runner, so that they can end in one closing summary of node's form. */
export interface Totals {
  readonly counts: Readonly<Counts>;
  /** True while every run so far succeeded by node's own judgement. */
  readonly success: boolean;
  readonly skipped: readonly SkippedTest[];
  /** Takes one event of a run; false when it belongs to that run's own summary and is not to be reported. */
  note(event: TestEvent): boolean;
  /** The closing events, for the reporter. */
  summary(): readonly TestEvent[];
}

/** Begins the reason of a test that needs what the tests must not ask of a machine: it is said, and never a failure. */
export const WITHOUT_COMPILER = "only where there is a compiler: ";

/** The lines with which node closes a run. */
const SUMMARY_LINE = /^(tests|suites|pass|fail|cancelled|skipped|todo|duration_ms) [\d.]+$/;

export function createTotals(): Totals {
  const counts: Counts = { tests: 0, suites: 0, passed: 0, failed: 0, cancelled: 0, skipped: 0, todo: 0 };
  const skipped: SkippedTest[] = [];
  let success = true;
  let durationMs = 0;
  return {
    counts,
    skipped,
    get success() {
      return success;
    },
    note(event) {
      switch (event.type) {
        case "test:pass":
        case "test:fail": {
          const { skip, name } = event.data;
          if (skip !== undefined && skip !== false)
            skipped.push({ name, reason: typeof skip === "string" ? skip : "" });
          return true;
        }
        case "test:summary":
          // Each file has a summary too; the run's own names no file.
          if (event.data.file !== undefined) return true;
          success &&= event.data.success;
          durationMs += event.data.duration_ms;
          // The type of node's counts lacks `failed`, which is there.
          for (const key of Object.keys(counts) as (keyof Counts)[])
            counts[key] += (event.data.counts as unknown as Counts)[key] ?? 0;
          return false;
        case "test:diagnostic":
          return !(event.data.nesting === 0 && event.data.file === undefined && SUMMARY_LINE.test(event.data.message));
        default:
          return true;
      }
    },
    summary: () =>
      [
        `tests ${counts.tests}`,
        `suites ${counts.suites}`,
        `pass ${counts.passed}`,
        `fail ${counts.failed}`,
        `cancelled ${counts.cancelled}`,
        `skipped ${counts.skipped}`,
        `todo ${counts.todo}`,
        `duration_ms ${durationMs}`,
      ].map((message): TestEvent => ({ type: "test:diagnostic", data: { nesting: 0, message, level: "info" } })),
  };
}
