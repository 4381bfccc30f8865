import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { buildForeign, WIREGUARD_GO } from "../lab/foreign-program.ts";
import type { FloodOptions } from "../lab/handshake-flooder.ts";
import { ensurePrivileges } from "../lab/rootless.ts";
import { type Bench, type BenchOptions, type BenchResult, quantile } from "./bench.ts";
import { OUTER_PORT, type Program, TunnelPair } from "./tunnel-pair.ts";

/** A session's own timers (10 s, 15 s) are over, and V8 has stopped looking for garbage to collect every 8 s (3 minutes). */
const SETTLE_MS = 200_000;
const IDLE_SECONDS = 10;
const IDLE_PEERS = 50_000;
/** Measured beside the others in the first setup, to see what access rules cost. */
const FILTERED: Program = { kind: "perch", name: "perch, filter on", rules: "limited" };
const FLOOD_PER_SECOND = 2_000;
const BARE = { kind: "wireguard-go", name: "wireguard-go (Debian)", binary: "wireguard-go" } as const satisfies Program;
/** What access rules need of the kernel, without the rules. */
const TRACKED: Program = { ...BARE, name: "wireguard-go (Debian), tracked", tracking: true };
/**
 * What the device alone costs; with a network's default policy, everybody may do everything; and with rules that say less, which
 * need the kernel to track connections, so that they are no more than shown.
 */
const EXTERNAL = [
  { kind: "perch", name: "perch --device wireguard-go", device: "wireguard-go" },
  { kind: "perch", name: "perch --device wireguard-go, all allowed", device: "wireguard-go", rules: "all" },
  { kind: "perch", name: "perch --device wireguard-go, limited rules", device: "wireguard-go", rules: "limited" },
] as const satisfies readonly Program[];
/** The bar: of what bare wireguard-go does on the same links. */
const EXTERNAL_SHARE = 0.95;
/** The bar is for the median of shares, each of two neighbours in time; of so few they differ by less than the bar leaves. */
const EXTERNAL_ROUNDS = 11;

/** What is measured of each tunnel in each round. */
interface Figure {
  readonly name: string;
  readonly unit: string;
  /** The smaller the better. */
  readonly isCost?: boolean;
  measure(tunnel: TunnelPair): Promise<number>;
}

interface Setup {
  readonly label: string;
  readonly innerMtu: number;
  readonly segmentation: "on" | "off";
  readonly figures: readonly Figure[];
}

/**
 * Tunnels of all programs stand side by side, idle but for the one that is measured. Each round asks for one figure after
 * the other, and for each figure one program after the other, so that a slow moment of the machine hits neighbours alike.
 * What is shown are medians over the rounds.
 *
 * PERCH_BENCH_BASELINE names a directory with another state of Perch, which is then measured beside this one.
 */
export const bench: Bench = async (options) => {
  await ensurePrivileges();
  const programs: Program[] = [{ kind: "perch", name: "perch" }, BARE];
  const built = await buildForeign(WIREGUARD_GO, "newest");
  if (built.kind === "missing") options.say(`without the newest wireguard-go: ${built.reason}`);
  else programs.push({ kind: "wireguard-go", name: `wireguard-go ${built.version}`, binary: built.binary });
  const { PERCH_BENCH_BASELINE: checkout } = process.env;
  if (checkout !== undefined) programs.push({ kind: "perch", name: `perch in ${checkout}`, checkout });
  // The first start after a change of the source compiles it, and its memory keeps what that took.
  await (await TunnelPair.start(programs[0]!, { innerMtu: 1280 }))[Symbol.asyncDispose]();
  const results: BenchResult[] = [];
  for (const [index, setup] of setups(options).entries())
    results.push(...(await compare(setup, index === 0 ? [...programs, FILTERED] : programs, options)));
  results.push(...(await external(programs[0]!, options)));
  results.push(...(await floods(options)));
  results.push(...(await idle([...programs, EXTERNAL[1]], options)));
  return results;
};

function setups({ quick }: BenchOptions): Setup[] {
  const seconds = quick ? 1 : 2;
  const tcp = (name: string, ...args: string[]): Figure => ({
    name,
    unit: "Mbit/s",
    measure: async (tunnel) => (await tunnel.iperf(seconds, ...args)) / 1e6,
  });
  const streams = [
    tcp("TCP, one stream"),
    tcp("TCP, one stream back", "-R"),
    tcp("TCP, four streams", "-P", "4"),
    tcp("TCP, four streams back", "-P", "4", "-R"),
  ];
  const small: Figure = {
    name: "UDP of 64 bytes received",
    unit: "1000/s",
    measure: async (tunnel) => (await tunnel.iperf(seconds, "-u", "-b", "0", "-l", "64")) / 8 / 64 / 1000,
  };
  const flood: Figure = {
    name: "ping -f, mean round trip",
    unit: "us",
    isCost: true,
    measure: async (tunnel) =>
      Number(/= [\d.]+\/([\d.]+)/.exec(await tunnel.ping("-f", "-c", quick ? "500" : "5000"))?.[1]) * 1000,
  };
  const memory: Figure = {
    name: "memory after load, larger end",
    unit: "MB",
    isCost: true,
    measure: async (tunnel) => tunnel.residentBytes() / 1e6,
  };
  return [
    { label: "MTU 1280", innerMtu: 1280, segmentation: "on", figures: [...streams, small, flood, memory] },
    { label: "MTU 1420", innerMtu: 1420, segmentation: "on", figures: streams },
    { label: "MTU 1280, plain card", innerMtu: 1280, segmentation: "off", figures: streams },
  ];
}

async function compare(setup: Setup, programs: readonly Program[], options: BenchOptions): Promise<BenchResult[]> {
  const rounds = options.quick ? 1 : 5;
  const samples = await measureRounds(setup, programs, rounds, options);
  return setup.figures.map(({ name, unit }): BenchResult => {
    const medianOf = (program: Program): number => quantile(samples.get(name)!.get(program)!, 0.5);
    const others = Object.fromEntries(programs.slice(1).map((program) => [program.name, medianOf(program)]));
    return { name: `${name}, ${setup.label}`, unit, perch: medianOf(programs[0]!), others, samples: rounds };
  });
}

/** What two devices over wireguard-go lose of what it does alone, beside the embedded device. Packets do not pass us there. */
async function external(embedded: Program, options: BenchOptions): Promise<BenchResult[]> {
  const { quick } = options;
  const rounds = quick ? 1 : EXTERNAL_ROUNDS;
  const [whole] = setups(options) as [Setup];
  const setup = quick ? { ...whole, figures: whole.figures.filter((_, index) => index % 3 === 0) } : whole;
  const samples = await measureRounds(setup, [embedded, BARE, TRACKED, ...EXTERNAL], rounds, options);
  const rows = ({ name, unit, isCost }: Figure): BenchResult[] => {
    const of = (program: Program): readonly number[] => samples.get(name)!.get(program)!;
    const median = (program: Program): number => quantile(of(program), 0.5);
    /** Of each round, so that what the machine does meanwhile is the same for both. */
    const share = (program: Program): number =>
      quantile(
        of(program).map((value, round) => 100 * (isCost ? of(BARE)[round]! / value : value / of(BARE)[round]!)),
        0.5,
      );
    const others = { [BARE.name]: median(BARE), [TRACKED.name]: median(TRACKED), "embedded device": median(embedded) };
    return EXTERNAL.flatMap((program): BenchResult[] => {
      const title = `${name}, ${setup.label}, ${program.name.replace("perch ", "")}`;
      const absolute = { name: title, unit, perch: median(program), others, samples: rounds };
      if (unit === "MB") return [absolute];
      const shares = { name: `${title}: share of bare`, unit: "%", perch: share(program), samples: rounds };
      const bar = program === EXTERNAL[2] ? {} : { least: 100 * EXTERNAL_SHARE };
      return [absolute, { ...shares, others: { [TRACKED.name]: share(TRACKED) }, ...bar }];
    });
  };
  return setup.figures.flatMap(rows);
}

/** By the figure's name and by program, one for each round. */
type Samples = ReadonlyMap<string, ReadonlyMap<Program, readonly number[]>>;

/** One program after the other, in each round the other way round than before, so that none always comes behind the same. */
async function measureRounds(
  setup: Setup,
  programs: readonly Program[],
  rounds: number,
  { say }: BenchOptions,
): Promise<Samples> {
  const all = new Map<string, Map<Program, number[]>>();
  await using stack = new AsyncDisposableStack();
  const tunnels: TunnelPair[] = [];
  for (const program of programs) tunnels.push(stack.use(await TunnelPair.start(program, setup)));
  for (let round = 1; round <= rounds; round++) {
    for (const figure of setup.figures) {
      const line: string[] = [];
      const samples = all.get(figure.name) ?? new Map<Program, number[]>();
      all.set(figure.name, samples);
      for (const tunnel of round % 2 === 0 ? tunnels.toReversed() : tunnels) {
        const { program } = tunnel;
        const value = await figure.measure(tunnel);
        line.push(`${program.name} ${value.toFixed(0)}`);
        samples.set(program, [...(samples.get(program) ?? []), value]);
      }
      say(`${setup.label}, round ${round} of ${rounds}: ${figure.name}, ${figure.unit}: ${line.join(", ")}`);
    }
  }
  return all;
}

/** How much of its rate one TCP stream keeps while handshakes arrive at the end that receives it. */
async function floods({ quick, say }: BenchOptions): Promise<BenchResult[]> {
  const rounds = quick ? 1 : 3;
  const seconds = quick ? 1 : 2;
  const results: BenchResult[] = [];
  await using tunnel = await TunnelPair.start({ kind: "perch", name: "perch" }, { innerMtu: 1280 });
  const { left, right } = tunnel.pair;
  const script = fileURLToPath(new URL("../lab/handshake-flooder.ts", import.meta.url));
  for (const kind of ["bogus", "stranger"] as const) {
    const shares: number[] = [];
    for (let round = 0; round < rounds; round++) {
      const before = await tunnel.iperf(seconds);
      const options: FloodOptions = {
        kind,
        to: right.address,
        port: OUTER_PORT,
        publicKey: tunnel.keys[1].publicKey,
        perSecond: FLOOD_PER_SECOND,
        seconds: seconds + 1,
      };
      const flooder = left.spawnNode(script, [JSON.stringify(options)], { stdio: ["pipe", "pipe", "inherit"] });
      await once(flooder.stdout!, "data");
      const ended = once(flooder, "exit");
      flooder.stdin!.write("\n");
      await sleep(300);
      const during = await tunnel.iperf(seconds);
      await ended;
      const after = await tunnel.iperf(seconds);
      shares.push((100 * during) / ((before + after) / 2));
      say(`${FLOOD_PER_SECOND} handshakes a second, ${kind}: ${shares.at(-1)!.toFixed(0)} % of the rate`);
    }
    const what = kind === "bogus" ? "with a wrong mac1" : "of strangers";
    results.push({
      name: `TCP kept under ${FLOOD_PER_SECOND} handshakes/s ${what}`,
      unit: "%",
      perch: quantile(shares, 0.5),
      others: {},
      samples: rounds,
    });
  }
  return results;
}

/** Wake-ups of both ends together while nothing happens, all tunnels at the same time. */
async function idle(programs: readonly Program[], { quick, say }: BenchOptions): Promise<BenchResult[]> {
  const seconds = quick ? 1 : IDLE_SECONDS;
  await using stack = new AsyncDisposableStack();
  const tunnels: TunnelPair[] = [];
  for (const program of programs) tunnels.push(stack.use(await TunnelPair.start(program, { innerMtu: 1280 })));
  const many = stack.use(await TunnelPair.start(programs[0]!, { innerMtu: 1280, asleepPeers: IDLE_PEERS }));
  say(`idle: waiting ${quick ? 1 : SETTLE_MS / 1000} s for the sessions' own timers, then counting for ${seconds} s`);
  await sleep(quick ? 1000 : SETTLE_MS);
  const all = [...tunnels, many];
  const before = all.map((tunnel) => tunnel.wakeUps());
  await sleep(seconds * 1000);
  const counts = all.map((tunnel, index) => tunnel.wakeUps() - before[index]!);
  const others = Object.fromEntries(programs.slice(1).map(({ name }, index) => [name, counts[index + 1]!]));
  const unit = `in ${seconds} s`;
  return [
    { name: "wake-ups of both ends, idle, 1 peer", unit, perch: counts[0]!, others, samples: 1 },
    { name: `the same with ${IDLE_PEERS} sleeping peers`, unit, perch: counts.at(-1)!, others: {}, samples: 1 },
  ];
}
