import { setTimeout as sleep } from "node:timers/promises";
import { SIGNAL_BURST, SIGNAL_RATE } from "#agent/connections/message-budget.ts";
import { ensurePrivileges } from "../lab/rootless.ts";
import { WakePair } from "../lab/wake-pair.ts";
import { type Bench, type BenchResult, quantile } from "./bench.ts";
import { askProbe, BigLab } from "./big-lab.ts";
import { Crowd } from "./crowd.ts";
import { countSleeps } from "./process-cost.ts";

const WATCH_MS = 10_000;
const CHANGES = 5;
/** Within which a crowd is touched. */
const TOUCH_MS = 1000;
/** The bars: resident memory of an idle peer in bytes, main thread of a change, the longest turn of its loop. */
const MEMORY_BAR = 1500;
const CHANGE_BAR_MS = 5;
const STALL_BAR_MS = 50;

interface Cost {
  readonly peers: number;
  readonly rss: number;
  readonly heap: number;
  readonly descriptors: number;
  readonly timers: number;
  readonly sleeps: number;
  readonly startMs: number;
  readonly startTurnMs: number;
  readonly startLoopMs: number;
  /** Of maps with one peer less each, the first after a collection that threw compiled code away. */
  readonly changes: readonly number[];
  readonly wakes: readonly number[];
}

/**
 * What peers that sleep cost a real agent on a network of that size: memory, descriptors, timers, times its threads go to
 * sleep in 10 s without traffic (each is a wake-up), the start with a whole map, maps with one peer less, and the wake of one
 * of them. Memory is measured after a collection, when the system has got back what it freed. Descriptors and timers may be
 * as many as the agent with the fewest peers has. At last thousands of peers that answer are touched within a second. The turns of the start are counted from when the daemon listens, in
 * processor time: what other programs take from a turn is in the stall beside it.
 */
export const bench: Bench = async ({ quick, say }) => {
  await ensurePrivileges();
  const costs: Cost[] = [];
  for (const peers of quick ? [10, 1_000] : [10, 10_000, 50_000]) {
    say(`${peers} peers`);
    costs.push(await measure(peers, quick ? 2 : 20, say));
  }
  const [few] = costs as [Cost, ...Cost[]];
  const results: BenchResult[] = costs.flatMap((cost) => {
    const line = (name: string, unit: string, perch: number, bar?: number, samples = 1): BenchResult => ({
      name: `${cost.peers} idle peers: ${name}`,
      ...{ unit, perch, samples, others: {} },
      ...(bar !== undefined && { bar }),
    });
    return [
      line("memory", "MB", cost.rss / 1e6),
      line("descriptors", "", cost.descriptors, few.descriptors),
      line("timers", "", cost.timers, few.timers),
      line("wake-ups in 10 s", "", cost.sleeps),
      line("start to ready", "ms", cost.startMs),
      line("longest turn of the loop during the start", "ms", cost.startTurnMs, STALL_BAR_MS),
      line("longest stall of the start, with what else runs here", "ms", cost.startLoopMs),
      line(
        "map with one peer less applied, median",
        "ms",
        quantile(cost.changes, 0.5),
        CHANGE_BAR_MS,
        cost.changes.length,
      ),
      line("the first of these, with code that is compiled anew", "ms", cost.changes[0]!, CHANGE_BAR_MS),
      line("first reply of a wake, median", "ms", quantile(cost.wakes, 0.5), undefined, cost.wakes.length),
    ];
  });
  const [small, large] = costs.slice(-2) as [Cost, Cost];
  const slope = (of: "rss" | "heap"): number => (large[of] - small[of]) / (large.peers - small.peers);
  const between = `between ${small.peers} and ${large.peers}`;
  return [
    ...results,
    {
      name: `memory per idle peer, ${between}`,
      unit: "B",
      perch: slope("rss"),
      bar: MEMORY_BAR,
      others: {},
      samples: 1,
    },
    { name: `heap per idle peer, ${between}`, unit: "B", perch: slope("heap"), others: {}, samples: 1 },
    ...(await touchCrowd(quick ? 200 : 2_000, say)),
  ];
};

/** Sleeping peers that answer for real (ManyEnds), to each of which a program connects, all within TOUCH_MS. */
async function touchCrowd(count: number, say: (line: string) => void): Promise<BenchResult[]> {
  say(`${count} peers touched within ${TOUCH_MS} ms`);
  await using crowd = await Crowd.start(count, count);
  await askProbe(crowd.agent);
  const { touch, connected, ends, busiestSecond } = await crowd.touch(TOUCH_MS);
  const { turnMaxMs, loopMaxMs } = await askProbe(crowd.agent);
  const times = touch.times.filter((time) => time !== null);
  const line = (name: string, unit: string, perch: number, bar?: number): BenchResult => ({
    name: `${count} sleeping peers touched within ${TOUCH_MS} ms: ${name}`,
    ...{ unit, perch, samples: 1, others: {} },
    ...(bar !== undefined && { bar }),
  });
  return [
    // Bars are upper ones: what is counted is who is missing.
    line("programs not connected", "", count - times.length, 0),
    line("peers not connected", "", count - connected, 0),
    line("until all are connected", "ms", touch.allMs),
    line("a program's wait, median", "ms", quantile(times, 0.5)),
    line("signal messages of the agent", "", ends.messages.length),
    line("signal messages in the busiest second", "", busiestSecond, SIGNAL_RATE + SIGNAL_BURST),
    line("longest turn of the loop", "ms", turnMaxMs, STALL_BAR_MS),
    line("longest stall, with what else runs here", "ms", loopMaxMs),
  ];
}

async function measure(peers: number, wakes: number, say: (line: string) => void): Promise<Cost> {
  await using lab = await BigLab.start(peers);
  const { network } = lab;
  const agent = network.agent("alder");
  const startedAt = performance.now();
  await network.restartAgent("alder");
  const startMs = performance.now() - startedAt;
  const { turnMaxMs: startTurnMs, loopMaxMs: startLoopMs } = await lab.probe(agent);
  const memory = await lab.settled(agent);
  process.kill(agent.pid!, "SIGWINCH");
  await sleep(100);
  const before = countSleeps(agent.pid!);
  await sleep(WATCH_MS);
  const sleeps = countSleeps(agent.pid!) - before;
  const applied = (): number[] =>
    [...agent.log.matchAll(/network map applied.* added=(\d+) changed=(\d+) .*elapsedMs=([\d.]+)/g)].map((match) =>
      Number(match[3]),
    );
  const changes: number[] = [];
  for (let change = 0; change < CHANGES; change++) {
    const seen = applied().length;
    const name = `host-${String(change).padStart(5, "0")}`;
    const { code, stderr } = await network.perchServer(["peers", "delete", name]);
    if (code !== 0) throw new Error(`cannot delete a peer: ${stderr}`);
    for (let tries = 0; tries < 100 && applied().length === seen; tries++) await sleep(50);
    changes.push(applied()[seen] ?? Number.NaN);
  }
  const { rss, heapUsed: heap, descriptors, timers } = memory;
  say(
    `  ${(rss / 1e6).toFixed(0)} MB, changes took ${changes.join(", ")} ms, the longest turn ${startTurnMs.toFixed(0)} ms`,
  );
  const first: number[] = [];
  await using pair = await WakePair.start(network, "alder", "birch");
  for (let wake = 0; wake <= wakes; wake++) {
    const { result } = await pair.wake("udp", { settleMs: 300 });
    await pair.sleep();
    // The first is the one that finds an endpoint.
    if (wake > 0) first.push(result.firstMs);
  }
  return { peers, rss, heap, descriptors, timers, sleeps, startMs, startTurnMs, startLoopMs, changes, wakes: first };
}
