import { type ChildProcess, execFile } from "node:child_process";
import { once } from "node:events";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { PrivateKey } from "#base/keys.ts";
import type { Host } from "../lab/host.ts";
import { createVethPair, type VethOptions, type VethPair } from "../lab/veth.ts";
import { countSleeps, processTree, residentBytes } from "./process-cost.ts";
import type { BenchRules, EndOptions } from "./throughput-end.ts";

const run = promisify(execFile);
export const OUTER_PORT = 51820;
const INNER = ["10.99.0.1", "10.99.0.2"] as const;

/** A WireGuard that the bench runs at both ends of a tunnel. */
export type Program =
  /**
   * `device`: default `embedded`. `checkout`: a directory with another state of Perch; default this one. `rules`: what both ends
   * enforce, default `none`.
   */
  | {
      readonly kind: "perch";
      readonly name: string;
      readonly device?: EndOptions["device"];
      readonly checkout?: string;
      readonly rules?: BenchRules;
    }
  /** `tracking`: the kernel tracks connections at both ends, as it does for any firewall that knows replies. */
  | { readonly kind: "wireguard-go"; readonly name: string; readonly binary: string; readonly tracking?: boolean };

export interface TunnelOptions extends VethOptions {
  /** Of the tunnel, bytes. */
  readonly innerMtu: number;
  /** Further asleep peers of each end; Perch only. */
  readonly asleepPeers?: number;
}

/**
 * Two ends of one program in two namespaces, with iperf3 and ping through them:
 *
 *   left  10.99.0.1 [wg0] 10.255.0.1 ---veth--- 10.255.0.2 [wg0] 10.99.0.2  right
 */
export class TunnelPair implements AsyncDisposable {
  readonly program: Program;
  readonly pair: VethPair;
  readonly keys = [PrivateKey.generate(), PrivateKey.generate()] as const;
  readonly #ends: ChildProcess[] = [];
  #iperf: ChildProcess | undefined;

  private constructor(program: Program, pair: VethPair) {
    this.program = program;
    this.pair = pair;
  }

  static async start(program: Program, options: TunnelOptions): Promise<TunnelPair> {
    const tunnel = new TunnelPair(program, await createVethPair(options));
    try {
      await tunnel.#start(options);
    } catch (error) {
      await tunnel[Symbol.asyncDispose]();
      throw error;
    }
    return tunnel;
  }

  get hosts(): readonly [Host, Host] {
    return [this.pair.left, this.pair.right];
  }

  async #start(options: TunnelOptions): Promise<void> {
    // Solicitations of the kernel would count as wake-ups.
    for (const host of this.hosts)
      await host.exec("sysctl", ["-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"]);
    for (const me of [0, 1] as const) {
      const end = this.program.kind === "perch" ? this.#perch(me, options) : this.#wireguardGo(me, this.program.binary);
      this.#ends.push(end);
      await once(end.stdout!, "data");
      await this.#ip(me, "link", "set", "wg0", "mtu", String(options.innerMtu));
      await this.#ip(me, "addr", "add", `${INNER[me]}/24`, "dev", "wg0");
      await this.#ip(me, "link", "set", "wg0", "up");
    }
    if (this.program.kind === "wireguard-go" && this.program.tracking) await this.#track();
    await this.ping("-c3", "-i0.2", "-W3");
    this.#iperf = this.pair.right.spawn("iperf3", ["-s"], { stdio: "ignore" });
    await sleep(200);
  }

  async #ip(me: 0 | 1, ...args: string[]): Promise<void> {
    await run("ip", ["-n", this.hosts[me].namespace, ...args]);
  }

  async #track(): Promise<void> {
    for (const host of this.hosts) {
      const { code, stderr } = await host.exec("nft", ["-f", "-"], { input: TRACKING });
      if (code !== 0) throw new Error(`nft: ${stderr.trim()}`);
    }
  }

  #outer(me: 0 | 1): string {
    return `${this.hosts[me].address}:${OUTER_PORT}`;
  }

  #perch(me: 0 | 1, { innerMtu, asleepPeers = 0 }: TunnelOptions): ChildProcess {
    const other = me === 0 ? 1 : 0;
    const { device = "embedded", checkout, rules = "none" } = this.program as Program & { kind: "perch" };
    const options: EndOptions = {
      device,
      privateKey: this.keys[me].toBase64(),
      peer: this.keys[other].publicKey,
      endpoint: this.#outer(other),
      allowedIp: `${INNER[other]}/32`,
      port: OUTER_PORT,
      mtu: innerMtu,
      asleepPeers,
      address: INNER[me],
      rules,
    };
    const script = join(checkout ?? resolve(import.meta.dirname, ".."), "bench/throughput-end.ts");
    // As scripts/node starts Perch.
    const env = { NODE_COMPILE_CACHE: join(tmpdir(), "perch-bench-cache") };
    return this.hosts[me].spawn(
      "unshare",
      ["-m", "sh", "-c", OWN_RUN_SCRIPT, process.execPath, script, JSON.stringify(options)],
      {
        stdio: ["pipe", "pipe", "inherit"],
        env: { ...process.env, ...env },
      },
    );
  }

  #wireguardGo(me: 0 | 1, binary: string): ChildProcess {
    const other = me === 0 ? 1 : 0;
    const script = ["-m", "sh", "-c", GO_SCRIPT, binary];
    const child = this.hosts[me].spawn("unshare", script, { stdio: ["pipe", "pipe", "ignore"] });
    child.stdin!.end(
      `[Interface]\nPrivateKey = ${this.keys[me].toBase64()}\nListenPort = ${OUTER_PORT}\n[Peer]\n` +
        `PublicKey = ${this.keys[other].publicKey}\nEndpoint = ${this.#outer(other)}\nAllowedIPs = ${INNER[other]}/32\n`,
    );
    return child;
  }

  /** The end's own counters; Perch only. */
  async counters(me: 0 | 1): Promise<Record<string, number>> {
    const { stdin, stdout } = this.#ends[me]!;
    const lines = createInterface({ input: stdout! });
    stdin!.write("counters\n");
    const [line] = (await once(lines, "line")) as [string];
    lines.close();
    return JSON.parse(line) as Record<string, number>;
  }

  /** One iperf3 run from left to right; bits a second that arrived. */
  async iperf(seconds: number, ...args: string[]): Promise<number> {
    const { code, stdout } = await this.pair.left.exec(
      "iperf3",
      ["-c", INNER[1], "-J", "-t", String(seconds), ...args],
      { timeoutMs: 30_000 },
    );
    const { end, error } = JSON.parse(stdout) as {
      end: { sum_received?: { bits_per_second: number } };
      error?: string;
    };
    if (code !== 0 || !end.sum_received) throw new Error(`iperf3 of ${this.program.name}: ${error}`);
    return end.sum_received.bits_per_second;
  }

  /** ping from left to right; what it said. */
  async ping(...args: string[]): Promise<string> {
    return (await this.pair.left.exec("ping", ["-q", ...args, INNER[1]])).stdout;
  }

  /** Resident memory of the larger end with the programs that it runs, bytes. */
  residentBytes(): number {
    const sum = (pids: readonly number[]): number => pids.reduce((bytes, pid) => bytes + residentBytes(pid), 0);
    return Math.max(...this.#ends.map(({ pid }) => sum(processTree(pid!))));
  }

  /** How often threads of both ends went to sleep by themselves so far, which is how often they were woken. */
  wakeUps(): number {
    return this.#ends.flatMap(({ pid }) => processTree(pid!)).reduce((sum, pid) => sum + countSleeps(pid), 0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#iperf?.kill();
    await Promise.all(
      this.#ends.map(async (child) => {
        if (child.exitCode !== null || child.signalCode !== null) return;
        const ended = once(child, "exit");
        if (this.program.kind === "perch") child.stdin!.end();
        else child.kill();
        await ended;
      }),
    );
    await this.pair.close();
  }
}

/** The least rule that makes the kernel track. */
const TRACKING = `table inet bench {
  chain inbound { type filter hook prerouting priority -150; iifname "wg0" ct state established accept; }
}`;

/** Becomes "$0" with a directory of its own for control sockets: both ends' interfaces have the same name. */
const OWN_RUN_SCRIPT = 'mount -t tmpfs tmpfs /var/run && exec "$0" "$@"';

/** Configures wireguard-go ($0) from stdin once its socket is there, says so, and becomes it in the foreground. */
const GO_SCRIPT = `
mount -t tmpfs tmpfs /var/run
config=$(cat)
( while ! wg show wg0 >/dev/null 2>&1; do sleep 0.05; done; echo "$config" | wg setconf wg0 /dev/stdin; echo ready ) &
exec "$0" -f wg0`;
