import { type FSWatcher, watch } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { Millis } from "#base/time.ts";
import { createRandom, type Random } from "../../../lab/random.ts";
import { RESOLVER_SHAPES, type ResolverShape } from "./own-etc-host.ts";

/** What the agent is doing when it is killed. `mending`: it, or `perch state clean`, is undoing an earlier crash. */
export const PHASES = ["starting", "foreground", "coming-up", "running", "going-down", "stopping", "mending"] as const;
export type Phase = (typeof PHASES)[number];

/** Files whose appearance tells that the narrow steps come now: the record of a change, its draft, the file, the lock. */
const SIGHTS = {
  record: /^resolver\.json/,
  draft: /^resolv\.conf\.perch$/,
  resolver: /^resolv\.conf$/,
  lock: /^daemon\.lock/,
} as const;
export type Sight = keyof typeof SIGHTS;

/** One crash, drawn beforehand. */
export interface Moment {
  readonly index: number;
  readonly phase: Phase;
  readonly shape: ResolverShape;
  readonly recovery: "start" | "clean";
  /** Killed so long after the phase began, or after the sight in it. */
  readonly delayMs: Millis;
  readonly sight: Sight | undefined;
  /** Another program rewrites the resolver file this long before. */
  readonly rewrittenMs: Millis | undefined;
}

/** What is to be seen in each phase; in a run only when another program rewrites the file. */
const PHASE_SIGHTS: Readonly<Record<Phase, readonly Sight[]>> = {
  starting: ["lock", "record", "draft", "resolver"],
  foreground: ["lock", "record", "draft", "resolver"],
  "coming-up": ["record", "draft", "resolver"],
  running: ["record", "draft", "resolver"],
  "going-down": ["draft", "resolver", "record"],
  stopping: ["draft", "resolver", "record", "lock"],
  mending: ["lock", "draft", "resolver", "record"],
};

/** How long each phase takes, about, and a little more. */
const SPANS: Readonly<Record<Phase, Millis>> = {
  starting: 800,
  foreground: 800,
  "coming-up": 350,
  running: 900,
  "going-down": 120,
  stopping: 150,
  mending: 900,
};
/** A sight that does not come any more. */
const SIGHT_LIMIT: Millis = 1500;

/** As many moments, the same for the same seed; phases and ways of recovery take turns, the rest is drawn. */
export function drawMoments(count: number, seed: number): Moment[] {
  const random = createRandom(seed);
  return Array.from({ length: count }, (_, index) => {
    const phase = PHASES[index % PHASES.length]!;
    const rewrittenMs = phase === "running" && random() < 0.6 ? random() * 900 : undefined;
    const hasSights = phase !== "running" || rewrittenMs !== undefined;
    const sight = hasSights && random() < 0.5 ? pick(random, PHASE_SIGHTS[phase]) : undefined;
    const share = random();
    return {
      index,
      phase,
      shape: pick(random, RESOLVER_SHAPES),
      recovery: index % 2 === 0 ? "clean" : "start",
      sight,
      // Steps follow each other within milliseconds: half of all moments are in the first quarter of the span.
      delayMs: sight ? share * share * 8 : share * share * SPANS[phase],
      rewrittenMs,
    };
  });
}

export function describeMoment({ index, phase, shape, recovery, delayMs, sight, rewrittenMs }: Moment): string {
  const after = sight ? `after the sight of ${sight}` : "after its begin";
  const rewritten = rewrittenMs === undefined ? "" : `, rewritten ${rewrittenMs.toFixed()} ms before`;
  return `moment ${index}: ${phase}, ${delayMs.toFixed(1)} ms ${after}, resolver ${shape}${rewritten}, then ${recovery}`;
}

/** Waits for the moment; made before the phase begins, so that nothing is missed. */
export class MomentWatch implements Disposable {
  readonly #moment: Moment;
  readonly #seen = Promise.withResolvers<void>();
  readonly #watchers: FSWatcher[];

  constructor(moment: Moment, directories: readonly string[]) {
    this.#moment = moment;
    const { sight } = moment;
    this.#watchers = directories.map((directory) =>
      watch(directory, (_, name) => {
        if (sight && name && SIGHTS[sight].test(name)) this.#seen.resolve();
      }),
    );
  }

  async come(): Promise<void> {
    const { sight, delayMs } = this.#moment;
    if (sight) {
      const limit = new AbortController();
      await Promise.race([this.#seen.promise, sleep(SIGHT_LIMIT, undefined, { signal: limit.signal })]);
      limit.abort();
    }
    if (delayMs >= 0.5) await sleep(delayMs);
  }

  [Symbol.dispose](): void {
    for (const watcher of this.#watchers) watcher.close();
  }
}

function pick<T>(random: Random, from: readonly T[]): T {
  return from[Math.floor(random() * from.length)]!;
}
