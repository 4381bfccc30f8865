import type { TestContext } from "node:test";

/**
 * Random tests with a seed that is printed and may be given back. By default each runs for a fixed number of lives, which
 * takes a few seconds in all.
 *
 *     PERCH_FUZZ_SECONDS=600     each test goes on for so long
 *     PERCH_FUZZ_SEED=123        the first life's seed; the next one has 124
 *     PERCH_FUZZ_LIVES=1         with the seed that failed: just that life
 */
const SECONDS = Number(process.env.PERCH_FUZZ_SECONDS ?? 0);
const SEED = Number(process.env.PERCH_FUZZ_SEED ?? Date.now() % 1_000_000_000);
const LIVES = Number(process.env.PERCH_FUZZ_LIVES ?? 0);

/** Runs `life` with one source of chance after the other. */
export function fuzz(t: TestContext, lives: number, life: (chance: Chance) => void): void {
  t.diagnostic(`first seed ${SEED}`);
  const end = performance.now() + SECONDS * 1000;
  const count = LIVES || lives;
  for (let i = 0; i < count || performance.now() < end; i++) {
    try {
      life(new Chance(SEED + i));
    } catch (cause) {
      const what = cause instanceof Error ? cause.message : String(cause);
      throw new Error(`${what}\nagain: PERCH_FUZZ_SEED=${SEED + i} PERCH_FUZZ_LIVES=1`, { cause });
    }
  }
}

/** The chance of a test with one life, which need not be over when this returns. */
export function firstChance(t: TestContext): Chance {
  t.diagnostic(`seed ${SEED}: again with PERCH_FUZZ_SEED=${SEED}`);
  return new Chance(SEED);
}

/** Pseudo-random numbers (splitmix32): the same for the same seed. */
export class Chance {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 0;
  }

  /** 32 bits, unsigned. */
  word(): number {
    this.#state = (this.#state + 0x9e3779b9) | 0;
    let z = this.#state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return (z ^ (z >>> 15)) >>> 0;
  }

  /** From 0, below `end`. */
  below(end: number): number {
    return this.word() % end;
  }

  between(first: number, last: number): number {
    return first + this.below(last - first + 1);
  }

  of<Value>(values: readonly Value[]): Value {
    return values[this.below(values.length)]!;
  }

  /** True once in `n` times. */
  once(n: number): boolean {
    return this.below(n) === 0;
  }

  bytes(length: number): Uint8Array<ArrayBuffer> {
    const words = new Uint32Array(Math.ceil(length / 4));
    for (let i = 0; i < words.length; i++) words[i] = this.word();
    return new Uint8Array(words.buffer, 0, length);
  }

  /** Mostly near the ends of what 16 bits hold and of what packets have, sometimes anything. */
  u16(): number {
    return this.once(3) ? this.below(65_536) : this.of(EDGES);
  }
}

const EDGES = [
  0, 1, 2, 7, 8, 15, 16, 19, 20, 21, 27, 28, 39, 40, 41, 48, 60, 63, 64, 1280, 1419, 1420, 32_767, 65_534, 65_535,
];
