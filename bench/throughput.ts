import { type ChildProcess, execFile, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { PrivateKey } from "#base/keys.ts";
import type { Bench, BenchOptions, BenchResult } from "./bench.ts";
import type { EndOptions } from "./throughput-end.ts";

const run = promisify(execFile);
const MTU = 1420;
const PORT = 51820;
const SERVER_START_MS = 300;

/**
 * Two devices in two namespaces, with iperf3 and ping through them:
 *
 *   bench-a  10.99.0.1 [wg0] 192.0.2.1 ---veth--- 192.0.2.2 [wg0] 10.99.0.2  bench-b
 */
interface Tunnel {
  /** Processes whose memory is the tunnel's, both ends. */
  readonly pids: readonly number[];
  stop(): Promise<void>;
}

type Start = (a: string, b: string) => Promise<Tunnel>;

const namespaces = [`perch-bench-a-${process.pid}`, `perch-bench-b-${process.pid}`] as const;
const ip = (...args: string[]): void => void execFileSync("ip", args, { stdio: "ignore" });

/** `perch`, then `wireguard-go`, in turn, as often as asked; the mean of each figure. */
export const bench: Bench = async (options) => {
  const programs: readonly (readonly [string, Start])[] = [
    ["perch", startPerch],
    ["wireguard-go", startWireguardGo],
  ];
  const rounds = options.quick ? 1 : 3;
  const sums = new Map<string, Map<string, { unit: string; values: number[] }>>();
  for (let round = 0; round < rounds; round++) {
    for (const [program, start] of programs) {
      options.say(`${program}, round ${round + 1} of ${rounds}`);
      for (const { name, unit, value } of await measure(start, options)) {
        const figures = sums.get(name) ?? new Map<string, { unit: string; values: number[] }>();
        sums.set(name, figures);
        const figure = figures.get(program) ?? { unit, values: [] };
        figures.set(program, figure);
        figure.values.push(value);
      }
    }
  }
  return [...sums].map(([name, figures]): BenchResult => {
    const mean = (program: string): number => {
      const values = figures.get(program)?.values ?? [];
      return values.reduce((sum, value) => sum + value, 0) / values.length;
    };
    const { unit = "", values = [] } = figures.get("perch") ?? {};
    return {
      name,
      unit,
      perch: mean("perch"),
      others: { "wireguard-go": mean("wireguard-go") },
      samples: values.length,
    };
  });
};

interface Figure {
  readonly name: string;
  readonly unit: string;
  readonly value: number;
}

async function measure(start: Start, { quick, say }: BenchOptions): Promise<Figure[]> {
  const [a, b] = namespaces;
  const seconds = quick ? "1" : "5";
  ip("netns", "add", a);
  ip("netns", "add", b);
  let tunnel: Tunnel | undefined;
  try {
    ip("link", "add", "v0", "netns", a, "type", "veth", "peer", "name", "v0", "netns", b);
    addresses(a, "v0", "192.0.2.1/24");
    addresses(b, "v0", "192.0.2.2/24");
    tunnel = await start(a, b);
    addresses(a, "wg0", "10.99.0.1/24");
    addresses(b, "wg0", "10.99.0.2/24");
    await inside(a, "ping", "-c", "3", "-i", "0.2", "-W", "3", "10.99.0.2");

    const figures: Figure[] = [];
    const add = (name: string, unit: string, value: number): void => {
      say(`  ${name}: ${value.toFixed(value < 10 ? 2 : 0)} ${unit}`);
      figures.push({ name, unit, value });
    };
    const tcp = async (...args: string[]): Promise<number> => (await iperf("-t", seconds, ...args)).bits / 1e6;
    add("TCP, one stream", "Mbit/s", await tcp());
    add("TCP, one stream back", "Mbit/s", await tcp("-R"));
    add("TCP, four streams", "Mbit/s", await tcp("-P", "4"));
    add("TCP, four streams back", "Mbit/s", await tcp("-P", "4", "-R"));
    const udp = await iperf("-t", seconds, "-u", "-b", "0", "-l", "64");
    add("UDP of 64 bytes received", "1000/s", udp.bits / 8 / 64 / 1000);
    const flood = await inside(a, "ping", "-f", "-q", "-c", quick ? "500" : "5000", "10.99.0.2");
    add("ping -f, mean round trip", "us", Number(/= [\d.]+\/([\d.]+)/.exec(flood)?.[1]) * 1000);
    add("memory, larger end", "MB", Math.max(...tunnel.pids.map(residentBytes)) / 1e6);
    return figures;
  } finally {
    await tunnel?.stop();
    ip("netns", "del", a);
    ip("netns", "del", b);
  }
}

function addresses(namespace: string, device: string, address: string): void {
  ip("-n", namespace, "addr", "add", address, "dev", device);
  ip("-n", namespace, "link", "set", device, "up");
}

async function startPerch(a: string, b: string): Promise<Tunnel> {
  const keys = [PrivateKey.generate(), PrivateKey.generate()] as const;
  const script = new URL("./throughput-end.ts", import.meta.url).pathname;
  const end = async (namespace: string, me: 0 | 1): Promise<ChildProcess> => {
    const other = 1 - me;
    const options: EndOptions = {
      privateKey: keys[me].toBase64(),
      peer: keys[other as 0 | 1].publicKey,
      endpoint: `192.0.2.${other + 1}:${PORT}`,
      allowedIp: `10.99.0.${other + 1}/32`,
      port: PORT,
      mtu: MTU,
    };
    const child = spawn("ip", ["netns", "exec", namespace, process.execPath, script, JSON.stringify(options)], {
      stdio: ["pipe", "pipe", "inherit"],
    });
    await once(child.stdout, "data");
    return child;
  };
  const ends = [await end(a, 0), await end(b, 1)];
  return {
    pids: ends.map((child) => child.pid!),
    stop: async () => {
      await Promise.all(
        ends.map(async (child) => {
          const ended = once(child, "exit");
          child.stdin!.end();
          await ended;
        }),
      );
    },
  };
}

async function startWireguardGo(a: string, b: string): Promise<Tunnel> {
  const keys = [PrivateKey.generate(), PrivateKey.generate()] as const;
  const ends = [a, b].map((namespace) =>
    // Each end needs a directory of its own for its control socket: the names are equal.
    spawn("ip", ["netns", "exec", namespace, "unshare", "-m", "sh", "-c", GO_SCRIPT], {
      stdio: ["pipe", "pipe", "ignore"],
    }),
  );
  await Promise.all(
    ends.map(async (child, me) => {
      const other = (1 - me) as 0 | 1;
      child.stdin.end(
        `[Interface]\nPrivateKey = ${keys[me as 0 | 1].toBase64()}\nListenPort = ${PORT}\n[Peer]\n` +
          `PublicKey = ${keys[other].publicKey}\nEndpoint = 192.0.2.${other + 1}:${PORT}\nAllowedIPs = 10.99.0.${other + 1}/32\n`,
      );
      await once(child.stdout, "data");
    }),
  );
  for (const namespace of [a, b]) ip("-n", namespace, "link", "set", "wg0", "mtu", String(MTU));
  return {
    pids: ends.map((child) => child.pid!),
    stop: async () => {
      await Promise.all(
        ends.map(async (child) => {
          const ended = once(child, "exit");
          child.kill();
          await ended;
        }),
      );
    },
  };
}

/** Configures wireguard-go from stdin once its socket is there, says so, and becomes it in the foreground. */
const GO_SCRIPT = `
mount -t tmpfs tmpfs /var/run
config=$(cat)
( while ! wg show wg0 >/dev/null 2>&1; do sleep 0.05; done; echo "$config" | wg setconf wg0 /dev/stdin; echo ready ) &
exec wireguard-go -f wg0`;

/** One iperf3 run from a to b; what arrived. */
async function iperf(...args: string[]): Promise<{ bits: number }> {
  const [a, b] = namespaces;
  const server = spawn("ip", ["netns", "exec", b, "iperf3", "-s", "-1"], { stdio: "ignore" });
  try {
    await sleep(SERVER_START_MS);
    const text = await inside(a, "iperf3", "-c", "10.99.0.2", "-J", ...args);
    const { end } = JSON.parse(text) as { end: { sum_received: { bits_per_second: number } } };
    return { bits: end.sum_received.bits_per_second };
  } finally {
    server.kill();
  }
}

async function inside(namespace: string, program: string, ...args: string[]): Promise<string> {
  const { stdout } = await run("ip", ["netns", "exec", namespace, program, ...args], {
    maxBuffer: 16 << 20,
    timeout: 60_000,
  });
  return stdout;
}

function residentBytes(pid: number): number {
  return Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) * 1024;
}
