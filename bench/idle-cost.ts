import { setTimeout as sleep } from "node:timers/promises";
import { SIGNAL_BURST, SIGNAL_RATE } from "#agent/connections/message-budget.ts";
import { forgetSessions } from "../lab/foreign-session.ts";
import type { LabAgent, PerchNetwork } from "../lab/perch-network.ts";
import { ensurePrivileges } from "../lab/rootless.ts";
import { WakePair } from "../lab/wake-pair.ts";
import { missingPackages } from "../scripts/system-packages.ts";
import { type Bench, type BenchResult, quantile } from "./bench.ts";
import { askProbe, BigLab } from "./big-lab.ts";
import { Crowd } from "./crowd.ts";
import { DeviceFilling } from "./device-filling.ts";
import { countDescriptors, countSleeps, processorTime, processTree, residentBytes } from "./process-cost.ts";

const WATCH_MS = 10_000;
/** Local ends that were moved at the start are closed by then. */
const QUICK_SETTLE_MS = 6_000;
const CHANGES = 5;
/** Within which a crowd is touched. */
const TOUCH_MS = 1000;
/** The bars: resident memory of an idle peer in bytes, main thread of a change, the longest turn of its loop. */
const MEMORY_BAR = 1500;
const CHANGE_BAR_MS = 5;
const STALL_BAR_MS = 50;

/** A real agent on a network of that size. */
interface Setup {
  readonly peers: number;
  readonly device: "embedded" | "wireguard-go";
  /** Up to so many peers have a local socket each, where the device is not ours. */
  readonly localSocketsMax?: number;
}

interface Cost extends Setup {
  readonly rss: number;
  readonly heap: number;
  readonly descriptors: number;
  readonly sockets: number;
  readonly timers: number;
  readonly sleeps: number;
  /** Within WATCH_MS: processor time, and UDP datagrams of all programs of the host. */
  readonly idleCpuMs: number;
  readonly idleDatagrams: number;
  readonly startMs: number;
  readonly startTurnMs: number;
  readonly startLoopMs: number;
  /** Of maps with one peer less each, the first after a collection that threw compiled code away. */
  readonly changes: readonly number[];
  /** From the program's first packet until the agent began the wake; to the first reply. */
  readonly wakeDelays: readonly number[];
  readonly wakes: readonly number[];
  readonly program: ProgramCost | undefined;
}

/** What the program that is the device costs beside the agent. */
interface ProgramCost {
  readonly rss: number;
  readonly descriptors: number;
  readonly idleCpuMs: number;
  readonly sleeps: number;
  /** From the start of the daemon, and from when the agent had applied the map, until the device had all peers. */
  readonly allPeersMs: number;
  readonly allPeersBehindMapMs: number;
}

function setups(quick: boolean): Setup[] {
  const sizes = quick ? [10, 1_000] : [10, 1_000, 10_000, 50_000];
  // The threshold is far from both 1,000 and 10,000, wherever it is.
  const external: Setup[] = [
    { device: "wireguard-go", peers: 1_000, localSocketsMax: 2_000 },
    ...sizes.slice(quick ? 1 : 2).map((peers): Setup => ({ device: "wireguard-go", peers })),
  ];
  const missing = missingPackages([{ name: "wireguard-go", command: "wireguard-go" }]);
  return [...sizes.map((peers): Setup => ({ device: "embedded", peers })), ...(missing.length === 0 ? external : [])];
}

function nameOf({ device, peers, localSocketsMax }: Setup): string {
  if (device === "embedded") return `${peers} idle peers`;
  return `${device}, ${peers} idle peers, ${localSocketsMax === undefined ? "one shared socket" : "a socket each"}`;
}

/**
 * What peers that sleep cost a real agent on a network of that size: memory, descriptors, timers, processor time and
 * datagrams without traffic, times its threads go to
 * sleep in 10 s without traffic (each is a wake-up), the start with a whole map, maps with one peer less, and the wake of one
 * of them. Memory is measured after a collection, when the system has got back what it freed. Descriptors and timers may be
 * as many as the agent with the fewest peers has. With wireguard-go as device the same, and what the program takes.
 *
 * At last thousands of peers that answer are touched within a second. The turns of the start are counted from when the daemon
 * listens, in processor time: what other programs take from a turn is in the stall beside it.
 */
export const bench: Bench = async ({ quick, say }) => {
  await ensurePrivileges();
  const costs: Cost[] = [];
  for (const setup of setups(quick)) {
    say(nameOf(setup));
    costs.push(await measure(setup, quick, say));
  }
  const embedded = costs.filter(({ device }) => device === "embedded");
  const [few] = embedded as [Cost, ...Cost[]];
  const [small, large] = embedded.slice(-2) as [Cost, Cost];
  const slope = (of: "rss" | "heap"): number => (large[of] - small[of]) / (large.peers - small.peers);
  const between = `between ${small.peers} and ${large.peers}`;
  const one = { others: {}, samples: 1 };
  return [
    ...embedded.flatMap((cost) => agentLines(cost, undefined, few)),
    { name: `memory per idle peer, ${between}`, unit: "B", perch: slope("rss"), bar: MEMORY_BAR, ...one },
    { name: `heap per idle peer, ${between}`, unit: "B", perch: slope("heap"), ...one },
    ...costs
      .filter(({ device }) => device !== "embedded")
      .flatMap((cost) => [
        ...agentLines(
          cost,
          embedded.find(({ peers }) => peers === cost.peers),
        ),
        ...programLines(cost),
      ]),
    ...(await touchCrowd(quick ? 200 : 2_000, say)),
  ];
};

/** `beside`: the same network with the embedded device. `few`: whose descriptors and timers are the bar. */
function agentLines(cost: Cost, beside?: Cost, few?: Cost): BenchResult[] {
  const line = (what: string, unit: string, of: (cost: Cost) => number, bar?: number, samples = 1): BenchResult => ({
    name: `${nameOf(cost)}: ${what}`,
    ...{ unit, perch: of(cost), samples },
    others: beside ? { "embedded device": of(beside) } : {},
    ...(bar !== undefined && { bar }),
  });
  const { changes, wakes } = cost;
  return [
    line("memory", "MB", ({ rss }) => rss / 1e6),
    line("descriptors", "", ({ descriptors }) => descriptors, few?.descriptors),
    line("sockets", "", ({ sockets }) => sockets, few?.sockets),
    line("timers", "", ({ timers }) => timers, few?.timers),
    line("wake-ups in 10 s", "", ({ sleeps }) => sleeps),
    line("processor in 10 s", "ms", ({ idleCpuMs }) => idleCpuMs),
    line("UDP datagrams sent in 10 s", "", ({ idleDatagrams }) => idleDatagrams, 0),
    line("start to ready", "ms", ({ startMs }) => startMs),
    line("longest turn of the loop during the start", "ms", ({ startTurnMs }) => startTurnMs, STALL_BAR_MS),
    line("longest stall of the start, with what else runs here", "ms", ({ startLoopMs }) => startLoopMs),
    line(
      "map with one peer less applied, median",
      "ms",
      (each) => quantile(each.changes, 0.5),
      CHANGE_BAR_MS,
      changes.length,
    ),
    line("the first of these, with code that is compiled anew", "ms", (each) => each.changes[0]!, CHANGE_BAR_MS),
    line("first packet to wake, median", "ms", (each) => quantile(each.wakeDelays, 0.5), undefined, wakes.length),
    line("first reply of a wake, median", "ms", (each) => quantile(each.wakes, 0.5), undefined, wakes.length),
  ];
}

function programLines(cost: Cost): BenchResult[] {
  const { program, device } = cost;
  if (!program) return [];
  const line = (what: string, unit: string, perch: number): BenchResult => ({
    name: `${nameOf(cost)}: ${what}`,
    ...{ unit, perch, samples: 1, others: {} },
  });
  return [
    line(`memory of ${device}`, "MB", program.rss / 1e6),
    line(`memory of ${device} per peer`, "B", program.rss / cost.peers),
    line(`descriptors of ${device}`, "", program.descriptors),
    line(`wake-ups of ${device} in 10 s`, "", program.sleeps),
    line(`processor of ${device} in 10 s`, "ms", program.idleCpuMs),
    line("start until the device has all peers", "ms", program.allPeersMs),
    line("map applied until the device has all peers", "ms", program.allPeersBehindMapMs),
  ];
}

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

async function measure(setup: Setup, quick: boolean, say: (line: string) => void): Promise<Cost> {
  const { peers, device, localSocketsMax } = setup;
  const environment = localSocketsMax === undefined ? {} : { PERCH_LOCAL_SOCKETS_MAX: String(localSocketsMax) };
  await using lab = await BigLab.start(peers, { device, environment });
  const { network } = lab;
  const agent = network.agent("alder");
  const filling = device === "embedded" ? undefined : await DeviceFilling.of(agent);
  const startedAt = performance.now();
  const restarted = network.restartAgent("alder").then(() => performance.now() - startedAt);
  // Those of the store, and birch.
  const filled = filling?.until(peers + 1);
  const [startMs, fill] = await Promise.all([restarted, filled]);
  const { turnMaxMs: startTurnMs, loopMaxMs: startLoopMs } = await lab.probe(agent);
  const memory = await lab.settled(agent, quick ? QUICK_SETTLE_MS : undefined);
  process.kill(agent.pid!, "SIGWINCH");
  await sleep(100);
  const program = processTree(agent.pid!).find((pid) => pid !== agent.pid);
  const sockets = countDescriptors(agent.pid!).sockets;
  const idle = await watchIdle(agent, program, quick);
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
  const wakes = await wakeAgainAndAgain(network, quick ? 2 : 20);
  return {
    ...setup,
    ...{ rss, heap, descriptors, sockets, timers, startMs, startTurnMs, startLoopMs, changes },
    ...{ sleeps: idle.agent.sleeps, idleCpuMs: idle.agent.cpuMs, idleDatagrams: idle.datagrams, ...wakes },
    program:
      program === undefined || !fill || !idle.program
        ? undefined
        : {
            ...{ rss: residentBytes(program), descriptors: countDescriptors(program).all },
            ...{ idleCpuMs: idle.program.cpuMs, sleeps: idle.program.sleeps },
            ...{ allPeersMs: fill.at - startedAt, allPeersBehindMapMs: fill.behindMapMs },
          },
  };
}

interface Idleness {
  readonly sleeps: number;
  readonly cpuMs: number;
}

/** What an agent without traffic and the program that is its device do within WATCH_MS. */
async function watchIdle(agent: LabAgent, program: number | undefined, quick: boolean) {
  const pids = program === undefined ? [agent.pid!] : [agent.pid!, program];
  const read = () => pids.map((pid): Idleness => ({ sleeps: countSleeps(pid), cpuMs: processorTime(pid) }));
  const datagrams = await countDatagrams(agent);
  const before = read();
  await sleep(quick ? WATCH_MS / 10 : WATCH_MS);
  const idle = read().map(
    ({ sleeps, cpuMs }, index): Idleness => ({
      sleeps: sleeps - before[index]!.sleeps,
      cpuMs: cpuMs - before[index]!.cpuMs,
    }),
  );
  return { agent: idle[0]!, program: idle[1], datagrams: (await countDatagrams(agent)) - datagrams };
}

/** UDP datagrams that programs of an agent's host have sent so far, to itself as well. */
async function countDatagrams({ host }: LabAgent): Promise<number> {
  const { stdout } = await host.exec("cat", ["/proc/net/snmp", "/proc/net/snmp6"]);
  const [, names = "", values = ""] = /^Udp: (.*)\nUdp: (.*)$/m.exec(stdout) ?? [];
  const v4 = values.split(" ")[names.split(" ").indexOf("OutDatagrams")];
  const v6 = /^Udp6OutDatagrams\s+(\d+)/m.exec(stdout)?.[1];
  return Number(v4) + Number(v6);
}

/** Wakes of the pair of real agents, one after the other. */
async function wakeAgainAndAgain(network: PerchNetwork, count: number): Promise<Pick<Cost, "wakes" | "wakeDelays">> {
  const wakes: number[] = [];
  const wakeDelays: number[] = [];
  await using pair = await WakePair.start(network, "alder", "birch");
  for (let wake = 0; wake <= count; wake++) {
    const { result, timeline } = await pair.wake("udp", { settleMs: 300 });
    await pair.sleep();
    await forgetSessions(pair);
    // The first is the one that finds an endpoint.
    if (wake === 0) continue;
    wakes.push(result.firstMs);
    wakeDelays.push((timeline[0]?.at ?? Number.NaN) - result.startedAt);
  }
  return { wakes, wakeDelays };
}
