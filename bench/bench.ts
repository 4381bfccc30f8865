/** One line of a bench's table. */
export interface BenchResult {
  readonly name: string;
  readonly unit: string;
  readonly perch: number;
  /** Of the same samples, when `perch` is their median. */
  readonly p95?: number;
  /** The same measured of other programs in the same run, by program. */
  readonly others: Readonly<Record<string, number>>;
  readonly samples: number;
  /** What `perch` and `p95` may be at most. */
  readonly bar?: number;
  readonly barP95?: number;
  /** What `perch` has to be at least. */
  readonly least?: number;
}

export interface BenchOptions {
  /** A few samples only, for CI. */
  readonly quick: boolean;
  /** A line of progress for a person. */
  readonly say: (line: string) => void;
}

export type Bench = (options: BenchOptions) => Promise<BenchResult[]>;

/** The value below which `share` of the samples lie; NaN of none. */
export function quantile(samples: readonly number[], share: number): number {
  const sorted = [...samples].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN;
}
