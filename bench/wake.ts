import { setTimeout as sleep } from "node:timers/promises";
import { createDaemonClient, type DaemonClient } from "#agent/daemon/daemon-client.ts";
import { forgetSessions } from "../lab/foreign-session.ts";
import { createLab, type Lab } from "../lab/lab.ts";
import { NAT } from "../lab/nat.ts";
import { type LabAgent, PerchNetwork } from "../lab/perch-network.ts";
import { ensurePrivileges } from "../lab/rootless.ts";
import { Traffic } from "../lab/traffic.ts";
import { type WakeEnd, WakePair } from "../lab/wake-pair.ts";
import { ensurePackages } from "../scripts/system-packages.ts";
import { BareTunnel } from "./bare-handshake.ts";
import { type Bench, type BenchOptions, type BenchResult, quantile } from "./bench.ts";
import { NebulaNetwork, nebulaVersion } from "./nebula.ts";

/** Half of the one-way delay between two sites: 20 ms from any host to any other. */
const SITE_LATENCY_MS = 10;
/** What an agent does after its start is over by then. */
const SETTLE_MS = 400;
/** A nebula that loses a packet of its handshake tries again within this. */
const NEBULA_TIMEOUT_MS = 10_000;

/** The bars, ms. */
const BARS = { cold: [170, 190], known: [110, 130] } as const;
const DIRECT_BAR = 220;

/** A pair of hosts, and what its wakes have in common. `restart`: the first wake of both processes. */
interface Kind {
  readonly name: string;
  readonly from: string;
  readonly to: string;
  readonly mode: "cold" | "known" | "session-left" | "restart" | "both-sides";
  readonly isDirect: boolean;
  readonly wakes: number;
}

/** Of both agents; with one that is not ours, those kinds are measured that say most. */
type Device = "embedded" | "wireguard-go";

const PAIRS = [
  { name: "both behind NATs", from: "alder", to: "birch", isDirect: true, nebula: true },
  { name: "one behind a NAT", from: "alder", to: "dune", isDirect: true, nebula: true },
  { name: "no NAT", from: "elm", to: "dune", isDirect: true, nebula: true },
  { name: "relayed, symmetric NAT", from: "alder", to: "cedar", isDirect: false, nebula: true },
  // Without UDP there is nothing nebula could use.
  { name: "relayed, UDP blocked", from: "alder", to: "fir", isDirect: false, nebula: false },
] as const;

const FIRST_REPLY = "first byte: reply";
/** What the waking side's story, and the other side's, say of a wake: ms since it began. In this order in the table. */
const STAGES = [
  "queue and signal: offer sent",
  "relay: other side woken",
  "candidates: other side's answer sent",
  "handshake: session",
] as const;
type Stage = (typeof STAGES)[number];

interface Sample {
  readonly firstMs: number;
  readonly directMs: number | undefined;
  readonly stages: ReadonlyMap<Stage, number>;
}

/**
 * Wakes by a UDP datagram into a sleeping pair with 20 ms one way between any two hosts: time to the first reply as the
 * program sees it, to the direct path, and to the stages in between.
 *
 *   cold        both tunnels were taken down and up before, nothing is known of the other side
 *   known       a later wake of the same pair; devices that are wireguard-go have forgotten its session
 *   session-left  the same, of wireguard-go that has not: within three minutes
 *   restart     both processes were restarted before: their very first wake
 *   both-sides  cold, and a program at either end sends in the same instant
 *
 * First with the embedded device in all agents, then the main kinds with wireguard-go in all of them, beside the embedded one.
 * In the same run on the same links, in turn: wireguard-go's bare handshake between two ends that know each other's
 * endpoint, and Debian's nebula as restarted nodes that know only their lighthouse.
 */
export const bench: Bench = async (options) => {
  await ensurePrivileges();
  const site = (name: string) => ({ name, latencyMs: SITE_LATENCY_MS });
  const names = ["hub", "alder", "birch", "cedar", "dune", "elm", "fir"];
  await using lab = await createLab({
    sites: [
      site("hub"),
      { ...site("alder"), nat: NAT.portRestricted },
      { ...site("birch"), nat: NAT.addressRestricted },
      { ...site("cedar"), nat: NAT.symmetric },
      site("dune"),
      site("elm"),
      { ...site("fir"), nat: NAT.portRestricted, udp: "blocked" },
    ],
    hosts: names.map((name) => ({ name, site: name })),
  });
  const linkMs = await roundTrip(lab);
  const missing = new Set(ensurePackages(BENCH_PACKAGES, options.say).map(({ name }) => name));
  const agents = names.slice(1);
  const embedded = await measurePerch(lab, agents, "embedded", options);
  const canBeExternal = !missing.has("wireguard-go") && !missing.has("wireguard-tools");
  const external = !canBeExternal ? [] : await measurePerch(lab, agents, "wireguard-go", options);
  const medians = new Map(embedded.map(({ name, perch }) => [name, perch]));
  const others = await measureOthers(lab, missing, options);
  return [
    { name: "round trip of the links (40 meant)", unit: "ms", perch: linkMs, others: {}, samples: 20 },
    ...embedded.map((result) => ({ ...result, others: others.get(result.name) ?? {} })),
    ...external.map((result) => ({
      ...result,
      name: `wireguard-go, ${result.name}`,
      others: medians.has(result.name) ? { "embedded device": medians.get(result.name)! } : {},
    })),
  ];
};

/** What ping says of two hosts: how exact the lab's delay is on this machine now. */
async function roundTrip(lab: Lab): Promise<number> {
  const { stdout } = await lab.host("elm").exec("ping", ["-q", "-c20", "-i0.05", lab.host("dune").address]);
  return Number(/= [\d.]+\/([\d.]+)\//.exec(stdout)?.[1] ?? Number.NaN);
}

function kindsOf(device: Device, quick: boolean): Kind[] {
  const many = quick ? 2 : 50;
  const some = quick ? 2 : 20;
  const [natted] = PAIRS;
  const isOurs = device === "embedded";
  const kinds: Kind[] = [];
  for (const pair of PAIRS) {
    const isMain = pair === natted || pair.name === "relayed, symmetric NAT";
    if (!isMain && !isOurs) continue;
    const wakes = isMain ? many : some;
    kinds.push({ ...pair, mode: "cold", wakes });
    if (pair.isDirect) kinds.push({ ...pair, mode: "known", wakes });
    if (pair.isDirect && !isOurs) kinds.push({ ...pair, mode: "session-left", wakes: some });
  }
  kinds.push({ ...natted, mode: "both-sides", wakes: some }, { ...natted, mode: "restart", wakes: quick ? 1 : 12 });
  return kinds;
}

async function measurePerch(
  lab: Lab,
  agents: readonly string[],
  device: Device,
  { quick, say }: BenchOptions,
): Promise<BenchResult[]> {
  const upFlags = (): string[] => ["--device", device];
  await using network = await PerchNetwork.start(lab, { server: "hub", agents, upFlags });
  const results: BenchResult[] = [];
  for (const kind of kindsOf(device, quick)) {
    say(`perch with ${device}, ${kind.name}, ${kind.mode}: ${kind.wakes} wakes`);
    results.push(...lines(kind, await measureKind(network, kind)));
  }
  return results;
}

async function measureKind(network: PerchNetwork, kind: Kind): Promise<Sample[]> {
  const samples: Sample[] = [];
  const agents = [kind.from, kind.to].map((name) => network.agent(name));
  const open = (): Promise<WakePair> => WakePair.start(network, kind.from, kind.to);
  await forgetAll(agents);
  let pair = await open();
  try {
    const isLater = kind.mode === "known" || kind.mode === "session-left";
    // The first makes the other side known.
    for (let wake = isLater ? -1 : 0; wake < kind.wakes; wake++) {
      if (kind.mode === "restart") {
        await pair[Symbol.asyncDispose]();
        await Promise.all([kind.from, kind.to].map((name) => network.restartAgent(name)));
        pair = await open();
      }
      if (kind.mode === "cold" || kind.mode === "both-sides") {
        await forgetAll(agents);
        await pair.asleep();
      }
      if (!isLater) await sleep(SETTLE_MS);
      else if (kind.mode === "known" && wake >= 0) await forgetSessions(pair);
      const ends = kind.mode === "both-sides" ? [pair.from, pair.to] : [pair.from];
      const measured = await Promise.all(ends.map((end) => measureWake(pair, end, kind.isDirect)));
      if (wake >= 0) samples.push(...measured);
      if (isLater) await pair.sleep();
    }
  } finally {
    await pair[Symbol.asyncDispose]();
  }
  return samples;
}

/** Takes tunnels down and up again in the processes that run; resolves when they have their servers. */
async function forgetAll(agents: readonly LabAgent[]): Promise<void> {
  const daemons = agents.map(({ socket }) => createDaemonClient(socket));
  await Promise.all(daemons.map((daemon) => daemon.down({})));
  await Promise.all(
    daemons.map(async (daemon) => {
      for await (const _ of daemon.up({}));
      while (!(await hasServers(daemon))) await sleep(20);
    }),
  );
}

async function hasServers(daemon: DaemonClient): Promise<boolean> {
  for await (const { head } of daemon.getStatus({}))
    if (head) return head.signal?.connected === true && head.relays.some(({ available }) => available);
  return false;
}

async function measureWake(pair: WakePair, end: WakeEnd, isDirect: boolean): Promise<Sample> {
  const other = end === pair.from ? pair.to : pair.from;
  const { result } = await pair.wake("udp", { settleMs: 20 }, end);
  const directMs = isDirect ? await pair.direct(end) : undefined;
  const [own, others] = await Promise.all([pair.story(end), pair.story(other)]);
  const stages = new Map<Stage, number>();
  const wokeAt = own[0]?.at ?? Number.NaN;
  const note = (stage: Stage, ms: number | undefined): void => void (ms !== undefined && stages.set(stage, ms));
  const at = (story: typeof own, event: string): number | undefined => story.find((entry) => entry.event === event)?.at;
  const since = (time: number | undefined): number | undefined => (time === undefined ? undefined : time - wokeAt);
  note("queue and signal: offer sent", since(at(own, "offer-sent")));
  note("relay: other side woken", since(at(others, "wake")));
  note("candidates: other side's answer sent", since(at(others, "answer-sent")));
  note("handshake: session", since(at(own, "connected")));
  return { firstMs: result.firstMs, directMs, stages };
}

function lines(kind: Kind, samples: readonly Sample[]): BenchResult[] {
  const name = `${kind.name}, ${kind.mode}`;
  const bars = kind.mode === "known" ? BARS.known : BARS.cold;
  const line = (what: string, times: readonly number[], bar?: number, barP95?: number): BenchResult => ({
    name: `${name}: ${what}`,
    unit: "ms",
    perch: quantile(times, 0.5),
    p95: quantile(times, 0.95),
    others: {},
    samples: times.length,
    ...(bar !== undefined && { bar }),
    ...(barP95 !== undefined && { barP95 }),
  });
  const direct = samples.flatMap(({ directMs }) => directMs ?? []);
  const results = [
    line(
      FIRST_REPLY,
      samples.map(({ firstMs }) => firstMs),
      ...bars,
    ),
  ];
  if (direct.length > 0) results.push(line("checks: direct path", direct, undefined, DIRECT_BAR));
  for (const stage of STAGES) {
    const times = samples.flatMap(({ stages }) => stages.get(stage) ?? []);
    if (times.length > 0) results.push(line(`  ${stage}`, times));
  }
  return results;
}

type Others = Map<string, Record<string, number>>;

/** Values of other programs by the name of the line they stand in. */
async function measureOthers(lab: Lab, missing: ReadonlySet<string>, { quick, say }: BenchOptions): Promise<Others> {
  const others: Others = new Map();
  const note = (line: string, program: string, times: readonly number[]): void => {
    const name = `${line}: ${FIRST_REPLY}`;
    others.set(name, { ...others.get(name), [program]: quantile(times, 0.5) });
  };
  const traffic = new Map<string, Traffic>();
  try {
    for (const name of ["alder", "birch", "cedar", "dune", "elm"])
      traffic.set(name, await Traffic.start(lab.host(name)));
    if (missing.has("wireguard-go") || missing.has("wireguard-tools")) {
      say("NO FLOOR: wireguard-go or wireguard-tools are missing");
    } else {
      say("wireguard-go: bare handshakes");
      note("no NAT, known", "wireguard-go", await measureBare(lab, traffic.get("elm")!, quick ? 2 : 50));
    }
    if (missing.has("nebula")) {
      say("NO COMPARISON: nebula is missing");
    } else {
      const program = `nebula ${await nebulaVersion()}`;
      const nodes = ["alder", "birch", "cedar", "dune", "elm"].map((name) => lab.host(name));
      await using nebula = await NebulaNetwork.start(lab.host("hub"), nodes);
      for (const { name, from, to, nebula: isPossible } of PAIRS) {
        if (!isPossible) continue;
        say(`${program}, ${name}`);
        const times: number[] = [];
        for (let wake = 0; wake < (quick ? 1 : 10); wake++) {
          await Promise.all([nebula.restart(from), nebula.restart(to)]);
          const options = { timeoutMs: NEBULA_TIMEOUT_MS, settleMs: 20 };
          times.push((await traffic.get(from)!.udp(nebula.addressOf(to), options)).firstMs);
        }
        note(
          `${name}, cold`,
          program,
          times.map((ms) => (Number.isNaN(ms) ? Number.POSITIVE_INFINITY : ms)),
        );
      }
    }
    return others;
  } finally {
    for (const each of traffic.values()) await each[Symbol.asyncDispose]();
  }
}

async function measureBare(lab: Lab, from: Traffic, count: number): Promise<number[]> {
  await using tunnel = await BareTunnel.start(lab.host("elm"), lab.host("dune"));
  const times: number[] = [];
  for (let wake = 0; wake < count; wake++) {
    await tunnel.forget();
    times.push((await from.udp(tunnel.address, { settleMs: 20 })).firstMs);
  }
  return times;
}

/** What the comparison needs of the system. */
const BENCH_PACKAGES = [
  { name: "nebula", command: "nebula-cert" },
  { name: "wireguard-go", command: "wireguard-go" },
  { name: "wireguard-tools", command: "wg" },
];
