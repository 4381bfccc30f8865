import { type ChildProcess, execFile, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, rmSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { PrivateKey, type PublicKey } from "#base/keys.ts";
import type { DeviceEvents } from "#wireguard/device.ts";
import { LabChild } from "./lab-child.ts";
import type { DeviceEvent, DeviceRequest, DeviceSetup } from "./wireguard-device.ts";

const run = promisify(execFile);

/** Why these tests cannot run here, undefined when they can. */
export function missingForLab(): string | undefined {
  if (process.platform !== "linux") return "needs Linux";
  if (process.getuid?.() !== 0) return "needs root (network namespaces and TUN)";
  if (!existsSync("/dev/net/tun")) return "needs /dev/net/tun";
  for (const [program, packageName] of [
    ["ip", "iproute2"],
    ["ping", "iputils-ping"],
    ["wg", "wireguard-tools"],
    ["wireguard-go", "wireguard-go"],
  ] as const) {
    try {
      execFileSync("sh", ["-c", `command -v ${program}`], { stdio: "ignore" });
    } catch {
      return `needs ${program} (Debian package ${packageName})`;
    }
  }
  return undefined;
}

let interfaces = 0;

/**
 * Two hosts on one wire.
 *
 *   here (our device)                         there (the judge)
 *   10.77.0.1, fd77::1  ---- veth pair ----   10.77.0.2, fd77::2
 */
export class Lab implements AsyncDisposable {
  readonly here: string;
  readonly there: string;
  readonly #children: ChildProcess[] = [];

  private constructor(tag: string) {
    this.here = `perch-${tag}-a`;
    this.there = `perch-${tag}-b`;
  }

  static async create(): Promise<Lab> {
    const lab = new Lab(`${process.pid.toString(36)}${Math.random().toString(36).slice(2, 5)}`);
    try {
      for (const name of [lab.here, lab.there]) {
        await run("ip", ["netns", "add", name]);
        await lab.ip(name, "link", "set", "lo", "up");
      }
      await lab.ip(lab.here, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", lab.there);
      for (const [name, host] of [
        [lab.here, 1],
        [lab.there, 2],
      ] as const) {
        await lab.ip(name, "addr", "add", `10.77.0.${host}/24`, "dev", "wire");
        await lab.ip(name, "addr", "add", `fd77::${host}/64`, "dev", "wire", "nodad");
        await lab.ip(name, "link", "set", "wire", "up");
      }
    } catch (error) {
      await lab[Symbol.asyncDispose]();
      throw error;
    }
    return lab;
  }

  /** Runs a program in a namespace; rejects when it fails. */
  async exec(namespace: string, program: string, ...args: readonly string[]): Promise<string> {
    const { stdout } = await run("ip", ["netns", "exec", namespace, program, ...args], { timeout: 15_000 });
    return stdout;
  }

  async ip(namespace: string, ...args: readonly string[]): Promise<void> {
    await run("ip", ["-n", namespace, ...args]);
  }

  /** `silent`: all output is dropped (wireguard-go greets with a banner). `ipc`: with a channel for messages. `input`: with stdin. */
  spawn(
    namespace: string,
    program: string,
    args: readonly string[],
    mode: "plain" | "silent" | "ipc" | "input" = "plain",
  ): ChildProcess {
    const stdin = mode === "input" ? "pipe" : "ignore";
    const child = spawn("ip", ["netns", "exec", namespace, program, ...args], {
      stdio: mode === "silent" ? "ignore" : [stdin, "pipe", "inherit", ...(mode === "ipc" ? (["ipc"] as const) : [])],
    });
    this.#children.push(child);
    return child;
  }

  /** Interface names are unique: wireguard-go's control sockets share one directory. */
  interfaceName(): string {
    return `pt${process.pid % 100_000}n${interfaces++}`;
  }

  /** Ends a child by request (wireguard-go then removes its socket), after a second by force. */
  async end(child: ChildProcess): Promise<void> {
    if (child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, "exit");
    child.kill("SIGTERM");
    const force = setTimeout(() => child.kill("SIGKILL"), 1000);
    await exited;
    clearTimeout(force);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#children.map((child) => this.end(child)));
    for (const name of [this.here, this.there]) await run("ip", ["netns", "del", name]).catch(() => {});
  }
}

/** Packets sent and received by a ping that has ended, and its round trips in ms. */
export interface PingResult {
  readonly sent: number;
  readonly received: number;
}

export async function ping(lab: Lab, namespace: string, ...args: readonly string[]): Promise<PingResult> {
  const text = await lab.exec(namespace, "ping", ...args).catch((error: { stdout?: string }) => error.stdout ?? "");
  const match = /(\d+) packets transmitted, (\d+) received/.exec(text);
  if (!match) throw new Error(`ping said: ${text}`);
  return { sent: Number(match[1]), received: Number(match[2]) };
}

/**
 * Packets that `device` wrote to its TUN while `work` ran, waited for until they are `expected` or a second has passed.
 * ping alone is no judge of loss: after its last packet it waits for two round trips, which a busy machine exceeds.
 */
export async function delivered(device: OurDevice, expected: number, work: () => Promise<unknown>): Promise<number> {
  const before = await device.counter("tun-write");
  await work();
  for (let tries = 0; ; tries++) {
    const count = (await device.counter("tun-write")) - before;
    if (count >= expected || tries === 50) return count;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** A program that runs a WireGuard interface and is configured by `wg`. */
export interface JudgeProgram {
  readonly binary: string;
  /** Before the interface's name. */
  readonly args: readonly string[];
}

/** Debian's. */
export const DEBIAN_WIREGUARD_GO: JudgeProgram = { binary: "wireguard-go", args: ["-f"] };

/** Another WireGuard in `there`, with one peer. */
export class Judge {
  readonly name: string;
  readonly publicKey: PublicKey;
  readonly #lab: Lab;
  readonly #privateKey: PrivateKey;

  private constructor(lab: Lab, name: string) {
    this.#lab = lab;
    this.name = name;
    this.#privateKey = PrivateKey.generate();
    this.publicKey = this.#privateKey.publicKey;
  }

  /** `addresses`: of the tunnel interface, with prefix length. */
  static async start(
    lab: Lab,
    addresses: readonly string[],
    port: number,
    program: JudgeProgram = DEBIAN_WIREGUARD_GO,
  ): Promise<Judge> {
    const judge = new Judge(lab, lab.interfaceName());
    const socket = `/var/run/wireguard/${judge.name}.sock`;
    const child = lab.spawn(lab.there, program.binary, [...program.args, judge.name], "silent");
    // boringtun leaves its socket behind.
    child.once("exit", () => rmSync(socket, { force: true }));
    for (let tries = 0; !existsSync(socket); tries++) {
      if (tries > 100 || child.exitCode !== null) throw new Error(`${program.binary} does not start`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await judge.#feed(["private-key"], judge.#privateKey.toBase64());
    await judge.set("listen-port", String(port));
    await lab.ip(lab.there, "link", "set", judge.name, "mtu", "1420", "up");
    for (const address of addresses)
      await lab.ip(lab.there, "addr", "add", address, "dev", judge.name, ...(address.includes(":") ? ["nodad"] : []));
    return judge;
  }

  async set(...args: readonly string[]): Promise<void> {
    await this.#lab.exec(this.#lab.there, "wg", "set", this.name, ...args);
  }

  async setPeer(
    key: PublicKey,
    options: { allowedIps: readonly string[]; endpoint?: string; presharedKey?: string | undefined },
  ): Promise<void> {
    const args = ["peer", key, "allowed-ips", options.allowedIps.join(",")];
    if (options.endpoint) args.push("endpoint", options.endpoint);
    if (options.presharedKey) await this.#feed([...args, "preshared-key"], options.presharedKey);
    else await this.set(...args);
  }

  /** Endpoint of the only peer, as the judge sees it. */
  async endpoint(): Promise<string> {
    return (await this.#lab.exec(this.#lab.there, "wg", "show", this.name, "endpoints")).trim().split("\t")[1]!;
  }

  async transfer(): Promise<{ rx: number; tx: number }> {
    const fields = (await this.#lab.exec(this.#lab.there, "wg", "show", this.name, "transfer")).trim().split("\t");
    return { rx: Number(fields[1]), tx: Number(fields[2]) };
  }

  /** `wg set` whose last argument is a secret; by a file, because wg cannot open a socket as /dev/stdin. */
  async #feed(args: readonly string[], secret: string): Promise<void> {
    const folder = await mkdtemp(join(tmpdir(), "perch-wg-"));
    try {
      const file = join(folder, "secret");
      await writeFile(file, `${secret}\n`, { mode: 0o600 });
      await this.set(...args, file);
    } finally {
      await rm(folder, { recursive: true });
    }
  }
}

/** Our device, in `here` unless told otherwise. */
export class OurDevice extends LabChild<DeviceRequest, DeviceEvent> {
  readonly name: string;
  readonly privateKey = PrivateKey.generate();
  listenPort = 0;
  features: readonly string[] = [];

  private constructor(lab: Lab, namespace: string, name: string) {
    super(lab, namespace, new URL("./wireguard-device.ts", import.meta.url));
    this.name = name;
  }

  get publicKey(): PublicKey {
    return this.privateKey.publicKey;
  }

  static async start(
    lab: Lab,
    addresses: readonly string[],
    setup: Partial<Omit<DeviceSetup, "privateKey" | "interfaceName">> = {},
    namespace: string = lab.here,
  ): Promise<OurDevice> {
    const device = new OurDevice(lab, namespace, lab.interfaceName());
    const value = await device.request({
      op: "start",
      setup: {
        listenPort: 51820,
        mtu: 1420,
        ...setup,
        interfaceName: device.name,
        privateKey: device.privateKey.toBase64(),
      },
    });
    ({ listenPort: device.listenPort, features: device.features } = value as {
      listenPort: number;
      features: readonly string[];
    });
    for (const address of addresses)
      await lab.ip(namespace, "addr", "add", address, "dev", device.name, ...(address.includes(":") ? ["nodad"] : []));
    await lab.ip(namespace, "link", "set", device.name, "up");
    return device;
  }

  count(name: keyof DeviceEvents): number {
    return this.events.filter((event) => event.name === name).length;
  }

  /** The next or an earlier event of that name. */
  async waitFor(name: keyof DeviceEvents, timeoutMs = 5000): Promise<DeviceEvent["payload"]> {
    const earlier = this.events.find((event) => event.name === name);
    if (earlier) return earlier.payload;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`no ${name} in ${timeoutMs} ms`)), timeoutMs);
      this.onEvent((event) => {
        if (event.name !== name) return;
        clearTimeout(timer);
        resolve(event.payload);
      });
    });
  }

  /** Events come over a channel: what a packet caused may be told after the packet arrived. */
  async waitForCount(name: keyof DeviceEvents, count: number): Promise<void> {
    for (let tries = 0; this.count(name) < count; tries++) {
      if (tries === 100) throw new Error(`${this.count(name)} of ${count} events ${name} in 2 s`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  async counter(name: string): Promise<number> {
    return ((await this.request({ op: "counters" })) as Record<string, number>)[name] ?? 0;
  }
}
