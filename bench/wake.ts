import { createLab } from "../lab/lab.ts";
import { NAT } from "../lab/nat.ts";
import { PerchNetwork } from "../lab/perch-network.ts";
import { ensurePrivileges } from "../lab/rootless.ts";
import { WakePair } from "../lab/wake-pair.ts";
import { type Bench, type BenchResult, quantile } from "./bench.ts";

/** Half of the one-way delay between two sites: 20 ms from any host to any other. */
const SITE_LATENCY_MS = 10;

interface Samples {
  readonly first: number[];
  readonly direct: number[];
  readonly stages: Map<string, number[]>;
}

/**
 * Cold wakes by a UDP datagram into a sleeping pair with 20 ms one way between any two hosts: time to the first reply as
 * the program sees it, and to the direct path. `cold` restarts both agents before each wake, so that nothing is known of
 * the other side; `known` is a later wake of the same pair.
 */
export const bench: Bench = async ({ quick, say }) => {
  await ensurePrivileges();
  const wakes = quick ? 2 : 50;
  const results: BenchResult[] = [];
  const site = (name: string) => ({ name, latencyMs: SITE_LATENCY_MS });
  await using lab = await createLab({
    sites: [
      site("hub"),
      { ...site("alder"), nat: NAT.portRestricted },
      { ...site("birch"), nat: NAT.addressRestricted },
      { ...site("cedar"), nat: NAT.symmetric },
      site("dune"),
    ],
    hosts: ["hub", "alder", "birch", "cedar", "dune"].map((name) => ({ name, site: name })),
  });
  await using network = await PerchNetwork.start(lab, { server: "hub", agents: ["alder", "birch", "cedar", "dune"] });
  for (const [kind, target] of [
    ["behind NATs", "birch"],
    ["public peer", "dune"],
    ["relay only", "cedar"],
  ] as const) {
    for (const known of [false, true]) {
      say(`${kind}, ${known ? "known" : "cold"}: ${wakes} wakes`);
      const samples = await measure(network, target, { wakes, known, direct: target !== "cedar" });
      const name = `${kind}, ${known ? "known" : "cold"}`;
      results.push(line(`${name}: first reply, median`, quantile(samples.first, 0.5), wakes));
      results.push(line(`${name}: first reply, p95`, quantile(samples.first, 0.95), wakes));
      if (samples.direct.length > 0) {
        results.push(line(`${name}: direct path, median`, quantile(samples.direct, 0.5), wakes));
        results.push(line(`${name}: direct path, p95`, quantile(samples.direct, 0.95), wakes));
      }
      for (const [stage, times] of samples.stages)
        results.push(line(`${name}:   ${stage}`, quantile(times, 0.5), times.length));
    }
  }
  return results;
};

async function measure(
  network: PerchNetwork,
  target: string,
  options: { readonly wakes: number; readonly known: boolean; readonly direct: boolean },
): Promise<Samples> {
  const samples: Samples = { first: [], direct: [], stages: new Map() };
  let pair: WakePair | undefined;
  try {
    for (let wake = 0; wake < options.wakes + 1; wake++) {
      if (!options.known || !pair) {
        await pair?.[Symbol.asyncDispose]();
        await Promise.all(["alder", target].map((name) => network.restartAgent(name)));
        pair = await WakePair.start(network, "alder", target);
      }
      const { result } = await pair.wake("udp", { settleMs: 20 });
      const direct = options.direct ? await pair.direct() : undefined;
      const timeline = await pair.story(pair.from);
      if (options.known) await pair.sleep();
      // The first wake of all is the one that makes the pair known, and warms the programs up.
      if (wake === 0) continue;
      samples.first.push(result.firstMs);
      if (direct !== undefined) samples.direct.push(direct);
      for (const stage of ["offer-sent", "answer", "connected"]) {
        const at = timeline.find(({ event }) => event === stage)?.sinceWakeMs;
        if (at !== undefined) samples.stages.set(stage, [...(samples.stages.get(stage) ?? []), at]);
      }
    }
  } finally {
    await pair?.[Symbol.asyncDispose]();
  }
  return samples;
}

function line(name: string, perch: number, samples: number): BenchResult {
  return { name, unit: "ms", perch, others: {}, samples };
}
