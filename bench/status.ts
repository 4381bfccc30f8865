import { readdirSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { createDaemonClient } from "#agent/daemon/daemon-client.ts";
import type { LabAgent } from "../lab/perch-network.ts";
import { ensurePrivileges } from "../lab/rootless.ts";
import { type Bench, type BenchResult, quantile } from "./bench.ts";
import { BigLab } from "./big-lab.ts";

/** The daemon has written its answer, and freed it, this long after the command ended. */
const SETTLE_MS = 150;
const FORMS = [[], ["-d"], ["--json"], ["--yaml"]] as const;

/** What is promised for 10,000 peers, in ms. */
const BARS = {
  whole: { "-d": 500, "--json": 400 } as Readonly<Record<string, number>>,
  daemon: 50,
  turn: 20,
} as const;
const BARS_FOR = 10_000;

/**
 * `perch status` on an agent with many peers: the whole command as a user runs it, and what it does to the daemon: the
 * processor time that one answer takes, and the longest time that the daemon's event loop was held up by it.
 */
export const bench: Bench = async ({ quick, say }) => {
  await ensurePrivileges();
  const results: BenchResult[] = [];
  for (const peers of quick ? [1_000] : [10_000, 50_000]) {
    say(`${peers} peers`);
    results.push(...(await measure(peers, quick ? 2 : 9)));
  }
  return results;
};

async function measure(peers: number, rounds: number): Promise<BenchResult[]> {
  await using lab = await BigLab.start(peers);
  const agent = lab.network.agent("alder");
  // The probe's timers of 1 ms run from the start.
  process.kill(agent.pid!, "SIGWINCH");
  const results: BenchResult[] = [];
  const add = (name: string, samples: readonly number[], bar?: number): void =>
    void results.push({
      name: `${peers} peers, ${name}`,
      ...{ unit: "ms", perch: quantile(samples, 0.5), others: {}, samples: samples.length },
      ...(bar !== undefined && peers === BARS_FOR ? { bar } : {}),
    });
  for (const flags of FORMS) {
    const form = flags.join(" ");
    const command = `perch status ${form}`.trim();
    const { wall, cpu } = await runs(agent, flags, rounds);
    add(`${command}: whole command`, wall, BARS.whole[form]);
    add(`${command}: processor time of the daemon`, cpu, BARS.daemon);
    const { cold, stall, turn } = await probes(lab, agent, flags, rounds);
    add(`${command}: whole command, after the daemon dropped compiled code`, cold);
    add(`${command}: longest turn of the daemon, processor time`, turn, BARS.turn);
    add(`${command}: longest stall of the daemon, other programs included`, stall);
  }
  add("daemon's answer with all peers", await answers(agent.socket, rounds));
  return results;
}

/** One command after the other, with nothing that measures in the daemon; the first one is left out. */
async function runs(agent: LabAgent, flags: readonly string[], rounds: number) {
  const wall: number[] = [];
  const cpu: number[] = [];
  for (let round = 0; round <= rounds; round++) {
    const before = cpuMs(agent.pid!);
    const startedAt = performance.now();
    await agent.mustPerch(["status", ...flags]);
    wall.push(performance.now() - startedAt);
    await sleep(SETTLE_MS);
    cpu.push(cpuMs(agent.pid!) - before);
  }
  return { wall: wall.slice(1), cpu: cpu.slice(1) };
}

/** Each command between two probes, the first of which makes the daemon drop its compiled code and garbage. */
async function probes(lab: BigLab, agent: LabAgent, flags: readonly string[], rounds: number) {
  const cold: number[] = [];
  const stall: number[] = [];
  const turn: number[] = [];
  for (let round = 0; round < rounds; round++) {
    await lab.probe(agent);
    const startedAt = performance.now();
    await agent.mustPerch(["status", ...flags]);
    cold.push(performance.now() - startedAt);
    const { loopMaxMs, turnMaxMs } = await lab.probe(agent);
    stall.push(loopMaxMs);
    turn.push(turnMaxMs);
  }
  process.kill(agent.pid!, "SIGWINCH");
  return { cold, stall, turn };
}

/** Processor time of all threads of a process since each began, ms. */
function cpuMs(pid: number): number {
  let ns = 0;
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    ns += Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, "utf8").split(" ")[0]);
  }
  return ns / 1e6;
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
