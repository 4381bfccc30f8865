import { createDaemonClient } from "#agent/daemon/daemon-client.ts";
import { ensurePrivileges } from "../lab/rootless.ts";
import { type Bench, type BenchResult, quantile } from "./bench.ts";
import { BigLab } from "./big-lab.ts";

/**
 * `perch status` on an agent with many peers: the whole command as a user runs it, and what it does to the daemon: the
 * processor time that one answer takes, and the longest time that the daemon's event loop was held up by it.
 */
export const bench: Bench = async ({ quick, say }) => {
  await ensurePrivileges();
  const results: BenchResult[] = [];
  for (const peers of quick ? [1_000] : [10_000, 50_000]) {
    say(`${peers} peers`);
    results.push(...(await measure(peers, quick ? 2 : 5)));
  }
  return results;
};

async function measure(peers: number, rounds: number): Promise<BenchResult[]> {
  await using lab = await BigLab.start(peers);
  const agent = lab.network.agent("alder");
  const results: BenchResult[] = [];
  const add = (name: string, samples: readonly number[]): void =>
    void results.push({
      name: `${peers} peers, ${name}`,
      ...{ unit: "ms", perch: quantile(samples, 0.5), others: {}, samples: samples.length },
    });
  for (const flags of [[], ["-d"], ["--json"]]) {
    const wall: number[] = [];
    const stall: number[] = [];
    const cpu: number[] = [];
    const turn: number[] = [];
    for (let round = 0; round <= rounds; round++) {
      // A probe collects garbage: what the second of two takes is what the third will.
      const first = await lab.probe(agent);
      const before = await lab.probe(agent);
      const startedAt = performance.now();
      await agent.mustPerch(["status", ...flags]);
      const wallMs = performance.now() - startedAt;
      const after = await lab.probe(agent);
      // The first one warms the daemon up.
      if (round === 0) continue;
      wall.push(wallMs);
      stall.push(after.loopMaxMs);
      cpu.push(after.cpuMs - before.cpuMs - (before.cpuMs - first.cpuMs));
      turn.push(after.turnMaxMs);
    }
    const command = ["perch", "status", ...flags].join(" ");
    add(`${command}: whole command`, wall);
    add(`${command}: longest stall of the daemon`, stall);
    add(`${command}: longest turn of the daemon, processor time`, turn);
    add(`${command}: processor time of the daemon`, cpu);
  }
  add("daemon's answer with all peers", await answers(agent.socket, rounds));
  return results;
}

/** Time until the last part of a whole answer is here, read by a program that does nothing else. */
async function answers(socket: string, rounds: number): Promise<number[]> {
  const client = createDaemonClient(socket);
  const times: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const startedAt = performance.now();
    for await (const _ of client.getStatus({ withPeers: true }));
    times.push(performance.now() - startedAt);
  }
  return times;
}
