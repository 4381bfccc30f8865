import { readFileSync } from "node:fs";
import { loadavg } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { type LabAgent, PerchNetwork } from "../lab/perch-network.ts";
import { ensurePrivileges } from "../lab/rootless.ts";
import { createVethStar } from "../lab/veth-star.ts";
import { type Bench, type BenchResult, quantile } from "./bench.ts";

/** Share of the time in which the slow receiver runs, in periods of this length. */
const SLOW_SHARE = 0.1;
const SLOW_PERIOD_MS = 100;
const PING_INTERVAL_S = 0.01;

/**
 * Relayed traffic on one machine: `perch server` and four agents that may not go any other way. alder and birch are
 * measured; cedar sends to dune, a receiver that sleeps most of the time.
 */
export const bench: Bench = async ({ quick, say }) => {
  await ensurePrivileges();
  const rounds = quick ? 1 : 5;
  const seconds = quick ? 1 : 2;
  const agents = ["alder", "birch", "cedar", "dune"];
  await using star = await createVethStar(["hub", ...agents]);
  await using network = await PerchNetwork.start(star, { server: "hub", agents, upFlags: () => ["--force-relay"] });
  const [alder, birch, cedar, dune] = agents.map((name) => network.agent(name)) as [
    LabAgent,
    LabAgent,
    LabAgent,
    LabAgent,
  ];
  for (const receiver of [birch, dune]) receiver.host.spawn("iperf3", ["-s"], { stdio: "ignore" });
  for (const [from, to] of [
    [alder, birch],
    [cedar, dune],
  ] as const)
    await from.host.exec("ping", ["-c3", "-i0.2", "-W3", to.address]);

  // What the round trips under load depend on: how TCP takes a drop, and what else runs here.
  const control = readFileSync("/proc/sys/net/ipv4/tcp_congestion_control", "utf8").trim();
  say(`TCP with ${control}, load of the machine before ${loadavg()[0]!.toFixed(1)}`);

  const figures = {
    there: [] as number[],
    back: [] as number[],
    p50: [] as number[],
    p99: [] as number[],
    lost: [] as number[],
  };
  const quiet: number[] = [];
  const kept: number[] = [];
  const p99Beside: number[] = [];
  for (let round = 1; round <= rounds; round++) {
    quiet.push(quantile(answered(await roundTrips(alder, birch, quick ? 50 : 100)), 0.5));
    const [there, loaded] = await Promise.all([
      iperf(alder, birch, seconds),
      sleep(200).then(() => roundTrips(alder, birch, ((seconds - 0.4) / PING_INTERVAL_S) | 0)),
    ]);
    figures.there.push(there);
    figures.p50.push(quantile(answered(loaded), 0.5));
    figures.p99.push(quantile(answered(loaded), 0.99));
    figures.lost.push((100 * (loaded.length - answered(loaded).length)) / loaded.length);
    figures.back.push(await iperf(alder, birch, seconds, "-R"));
    const slow = slowDown(dune);
    const other = iperf(cedar, dune, seconds + 1).catch(() => 0);
    await sleep(500);
    const [beside, trips] = await Promise.all([
      iperf(alder, birch, seconds),
      sleep(200).then(() => roundTrips(alder, birch, ((seconds - 0.4) / PING_INTERVAL_S) | 0)),
    ]);
    const slowRate = await other;
    slow.stop();
    kept.push((100 * beside) / there);
    p99Beside.push(quantile(answered(trips), 0.99));
    say(
      `round ${round} of ${rounds}: ${there.toFixed(0)} Mbit/s, back ${figures.back.at(-1)!.toFixed(0)}, ` +
        `p99 ${figures.p99.at(-1)!.toFixed(1)} ms, beside a slow receiver (${slowRate.toFixed(1)} Mbit/s) ${beside.toFixed(0)}`,
    );
  }
  const line = (name: string, unit: string, samples: readonly number[]): BenchResult => ({
    name,
    unit,
    perch: quantile(samples, 0.5),
    others: {},
    samples: samples.length,
  });
  return [
    line("TCP through the relay", "Mbit/s", figures.there),
    line("TCP through the relay, back", "Mbit/s", figures.back),
    line("round trip, quiet, median", "ms", quiet),
    line("round trip under load, median", "ms", figures.p50),
    line("round trip under load, p99", "ms", figures.p99),
    line("pings lost under load", "%", figures.lost),
    line("TCP kept beside a slow receiver", "%", kept),
    line("round trip beside it, p99", "ms", p99Beside),
  ];
};

/** Mbit/s that arrived. */
async function iperf(from: LabAgent, to: LabAgent, seconds: number, ...args: string[]): Promise<number> {
  const words = ["-c", to.address, "-J", "-t", String(seconds), ...args];
  const { stdout } = await from.host.exec("iperf3", words, { timeoutMs: 30_000 });
  const { end, error } = JSON.parse(stdout) as { end: { sum_received?: { bits_per_second: number } }; error?: string };
  if (!end.sum_received) throw new Error(`iperf3 from ${from.name} to ${to.name}: ${error}`);
  return end.sum_received.bits_per_second / 1e6;
}

/** Milliseconds, Infinity for a lost ping. */
async function roundTrips(from: LabAgent, to: LabAgent, count: number): Promise<number[]> {
  const words = ["-i", String(PING_INTERVAL_S), "-c", String(count), "-W1", to.address];
  const { stdout } = await from.host.exec("ping", words, { timeoutMs: 30_000 });
  const times = [...stdout.matchAll(/time=([\d.]+) ms/g)].map(([, time]) => Number(time));
  return [...times, ...new Array<number>(Math.max(0, count - times.length)).fill(Number.POSITIVE_INFINITY)];
}

const answered = (times: readonly number[]): number[] => times.filter(Number.isFinite);

/** Lets an agent run for a tenth of the time only. */
function slowDown({ pid }: LabAgent): { stop(): void } {
  const halt = (): void => void process.kill(pid!, "SIGSTOP");
  const resume = (): void => void process.kill(pid!, "SIGCONT");
  let resuming: NodeJS.Timeout | undefined;
  const timer = setInterval(() => {
    resume();
    resuming = setTimeout(halt, SLOW_PERIOD_MS * SLOW_SHARE);
  }, SLOW_PERIOD_MS);
  halt();
  return {
    stop: () => {
      clearInterval(timer);
      clearTimeout(resuming);
      resume();
    },
  };
}
