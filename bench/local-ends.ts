import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { type Bench, type BenchResult, quantile } from "./bench.ts";
import type { LocalEndsCost, LocalEndsPlan } from "./local-ends-process.ts";

const run = promisify(execFile);

const PLANS: readonly Omit<LocalEndsPlan, "samples" | "datagrams">[] = [
  { kind: "loopback-sockets", peers: 1_000 },
  { kind: "loopback-addresses", peers: 1_000 },
  { kind: "loopback-addresses", peers: 10_000 },
  { kind: "loopback-addresses", peers: 50_000 },
  { kind: "loopback-mac1", peers: 10_000 },
  { kind: "loopback-mac1", peers: 50_000 },
];

/**
 * What the local ends of sleeping peers of an external device cost: memory and descriptors beyond those of a process that has
 * none (the port thread apart, which the raw port needs as well), the time to open them, and the time from the datagram that a device sends to an end to the event. Then how many datagrams of
 * 1,280 bytes one relayed peer gets through in each direction. The device is a plain UDP socket of the same process.
 */
export const bench: Bench = async ({ quick, say }) => {
  const results: BenchResult[] = [];
  for (const plan of quick ? PLANS.slice(0, 3) : PLANS) {
    say(`${plan.kind}, ${plan.peers} peers`);
    const cost = await measure({ ...plan, samples: quick ? 20 : 100, datagrams: quick ? 2_000 : 100_000 });
    const name = (what: string): string => `${plan.kind}, ${plan.peers} peers: ${what}`;
    const one = (what: string, unit: string, perch: number): BenchResult => ({
      name: name(what),
      ...{ unit, perch, samples: 1, others: {} },
    });
    results.push(
      one("memory", "MB", (cost.rss - cost.threadRss) / 1e6),
      ...(cost.threadRss > 0 ? [one("the port thread's memory", "MB", cost.threadRss / 1e6)] : []),
      one("descriptors", "", cost.descriptors),
      one("opened in", "ms", cost.openMs),
      {
        name: name("first packet to event"),
        unit: "ms",
        perch: quantile(cost.wakes, 0.5),
        p95: quantile(cost.wakes, 0.95),
        samples: cost.wakes.length,
        others: {},
      },
      one("from the device", "1,000/s", cost.receivedPerSecond / 1000),
      one("to the device", "1,000/s", cost.deliveredPerSecond / 1000),
    );
  }
  return results;
};

async function measure(plan: LocalEndsPlan): Promise<LocalEndsCost> {
  const file = fileURLToPath(new URL("./local-ends-process.ts", import.meta.url));
  const { stdout } = await run(process.execPath, ["--expose-gc", file, JSON.stringify(plan)], { timeout: 120_000 });
  return JSON.parse(stdout) as LocalEndsCost;
}
