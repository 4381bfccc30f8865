import { type ChildProcess, execFile, spawn } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { type Endpoint, parseEndpoint } from "#base/ip.ts";
import { PrivateKey, type PublicKey } from "#base/keys.ts";
import type { DevicePath, DevicePeerStats, WakeCause } from "#wireguard/device.ts";
import { packetCounterArguments, packetCounterRules, packetsIn } from "../../../lab/packet-counter.ts";
import { ip, Wire } from "../data-plane/wire.ts";
import type { DeviceProcessOptions } from "./device-process.ts";

const run = promisify(execFile);

export type DeviceKind = DeviceProcessOptions["kind"];

export interface DeviceEvent {
  readonly event: string;
  readonly payload: { readonly key: PublicKey; readonly cause?: WakeCause; readonly source?: unknown };
}

interface Started {
  readonly name: string;
  readonly port: number;
  readonly key: PublicKey;
}

/** Message type 4, in hexadecimal digits. */
const DATA = "04";
/** Of an emulated machine that starts four at once. */
const START_PATIENCE_MS = 30_000;

let devices = 0;

/** A device in a process and a network namespace of its own. */
export class DeviceEnd {
  readonly kind: DeviceKind;
  readonly namespace: string;
  /** Inner. */
  readonly address: string;
  /** All but `relay-out`. */
  readonly events: DeviceEvent[] = [];
  /** Where `relay-out` goes. */
  relay: (datagram: { readonly hex: string }) => void = () => {};
  started: Started = { name: "", port: 0, key: "" as PublicKey };
  readonly #process: ChildProcess;
  readonly #pending = new Map<number, PromiseWithResolvers<unknown>>();
  #next = 1;
  #notify: (() => void)[] = [];
  #errors = "";

  constructor(kind: DeviceKind, namespace: string, address: string) {
    this.kind = kind;
    this.namespace = namespace;
    this.address = address;
    // Control sockets of all namespaces share a directory.
    const interfaceName = `pd${process.pid % 1_000_000}n${devices++}`;
    const options: DeviceProcessOptions = { kind, interfaceName, privateKey: PrivateKey.generate().toBase64() };
    const script = new URL("./device-process.ts", import.meta.url).pathname;
    this.#process = spawn("ip", ["netns", "exec", namespace, process.execPath, script, JSON.stringify(options)], {
      stdio: ["pipe", "pipe", "pipe"],
    });
    this.#process.stderr!.on("data", (text: Buffer) => {
      this.#errors += text.toString();
    });
    this.#process.once("exit", () => {
      const error = new Error(`the process ended: ${this.#errors}`);
      for (const { reject } of this.#pending.values()) reject(error);
      this.#pending.clear();
    });
    createInterface({ input: this.#process.stdout! }).on("line", (line) => this.#take(line));
  }

  async start(): Promise<void> {
    const { payload } = await this.event("started", () => true, START_PATIENCE_MS);
    this.started = payload as unknown as Started;
    this.events.length = 0;
    this.setUpLink();
    await this.exec("nft", packetCounterRules(this.started.name));
  }

  /** Addresses the interface and brings it up; also again. */
  setUpLink(): void {
    const { namespace, address, started } = this;
    ip("-n", namespace, "addr", "replace", `${address}/24`, "dev", started.name);
    ip("-n", namespace, "link", "set", started.name, "mtu", "1420", "up");
    ip("-n", namespace, "route", "replace", "100.64.0.0/10", "dev", started.name);
  }

  /** The first event with this name that fits, waiting for it. */
  async event(
    name: string,
    fits: (payload: DeviceEvent["payload"]) => boolean = () => true,
    timeoutMs = 5_000,
  ): Promise<DeviceEvent> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const found = this.events.find(({ event, payload }) => event === name && fits(payload));
      if (found) return found;
      const left = deadline - performance.now();
      if (left <= 0)
        throw new Error(`no ${name} in ${timeoutMs} ms; got ${JSON.stringify(this.events)} ${this.#errors}`);
      await Promise.race([
        sleep(left, undefined, { ref: false }),
        new Promise<void>((done) => this.#notify.push(done)),
      ]);
    }
  }

  count(name: string): number {
    return this.events.filter(({ event }) => event === name).length;
  }

  /** Calls the device and waits for its answer. */
  call<Result = unknown>(method: string, ...args: unknown[]): Promise<Result> {
    const id = this.#next++;
    const answer = Promise.withResolvers<unknown>();
    this.#pending.set(id, answer);
    this.#write([id, method, ...args]);
    return answer.promise as Promise<Result>;
  }

  /** Gives the device a relayed datagram; nobody waits. */
  inject(from: PublicKey, datagram: { readonly hex: string }): void {
    this.#write([0, "injectRelayed", from, datagram]);
  }

  stats(key: PublicKey): Promise<DevicePeerStats> {
    return this.call("peerStats", key);
  }

  /** Packets that came in through the tunnel. */
  async delivered(): Promise<number> {
    return packetsIn(await this.exec("nft", ...packetCounterArguments(this.started.name)));
  }

  /** Runs a program in the end's namespace and returns its output, whether it succeeds or not. */
  async exec(program: string, ...args: string[]): Promise<string> {
    try {
      const { stdout } = await run("ip", ["netns", "exec", this.namespace, program, ...args], { timeout: 15_000 });
      return stdout;
    } catch (error) {
      return String((error as { stdout?: string }).stdout ?? error);
    }
  }

  /** Pings that were answered. */
  async ping(address: string, count: number, intervalS: number, ...options: string[]): Promise<number> {
    const output = await this.exec("ping", "-c", `${count}`, "-i", `${intervalS}`, ...options, address);
    return Number(/(\d+) received/.exec(output)?.[1] ?? Number.NaN);
  }

  /** Kills what carries the packets; resolves when another carries them. */
  async restart(): Promise<void> {
    this.events.length = 0;
    await this.killProgram();
    await this.event("worker-restarted");
    this.setUpLink();
  }

  /** Kills what carries the packets. */
  async killProgram(): Promise<void> {
    if (this.kind === "embedded") return void (await this.call("killWorker"));
    for (const pid of readdirSync("/proc").filter((entry) => /^\d+$/.test(entry))) {
      if (isProgramOf(pid, this.started.name)) process.kill(Number(pid), "SIGKILL");
    }
  }

  async stop(): Promise<void> {
    const { exitCode, signalCode } = this.#process;
    if (exitCode !== null || signalCode !== null) return;
    const ended = new Promise((resolve) => this.#process.once("exit", resolve));
    this.#write([0, "close"]);
    await Promise.race([ended, sleep(3_000, undefined, { ref: false })]);
    this.#process.kill("SIGKILL");
    await ended;
  }

  #write(message: unknown): void {
    this.#process.stdin!.write(`${JSON.stringify(message)}\n`);
  }

  #take(line: string): void {
    const message = JSON.parse(line) as { id?: number; result?: unknown } & DeviceEvent;
    if (message.id !== undefined) {
      this.#pending.get(message.id)?.resolve(message.result);
      this.#pending.delete(message.id);
      return;
    }
    if (message.event === "relay-out")
      return this.relay((message.payload as unknown as { datagram: { hex: string } }).datagram);
    this.events.push(message);
    for (const done of this.#notify.splice(0)) done();
  }
}

function isProgramOf(pid: string, interfaceName: string): boolean {
  try {
    const [program, ...args] = readFileSync(`/proc/${pid}/cmdline`, "latin1").split("\0");
    return program!.endsWith("wireguard-go") && args.includes(interfaceName);
  } catch {
    return false;
  }
}

/**
 * Two devices that know each other, at the ends of a wire; the test process is the relay between them.
 *
 *   a  10.78.0.1 [tunnel] 192.0.2.1 ---wire--- 192.0.2.2 [tunnel] 10.78.0.2  b
 */
export class DevicePair implements AsyncDisposable {
  readonly a: DeviceEnd;
  readonly b: DeviceEnd;
  /** Datagrams that the relay passed on. */
  relayed = 0;
  /** Those of them that are data. */
  relayedData = 0;
  readonly #wire: Wire;

  private constructor(wire: Wire, kinds: readonly [DeviceKind, DeviceKind]) {
    this.#wire = wire;
    this.a = new DeviceEnd(kinds[0], wire.ends[0].namespace, "10.78.0.1");
    this.b = new DeviceEnd(kinds[1], wire.ends[1].namespace, "10.78.0.2");
    for (const end of [this.a, this.b]) {
      end.relay = (datagram) => {
        this.relayed++;
        if (datagram.hex.startsWith(DATA)) this.relayedData++;
        this.other(end).inject(end.started.key, datagram);
      };
    }
  }

  static start(...kinds: readonly [DeviceKind, DeviceKind]): Promise<DevicePair> {
    return DevicePair.over(Wire.cable(), ...kinds);
  }

  /** At the ends of that wire, which it owns. */
  static async over(wire: Wire, ...kinds: readonly [DeviceKind, DeviceKind]): Promise<DevicePair> {
    const pair = new DevicePair(wire, kinds);
    try {
      await Promise.all([pair.a.start(), pair.b.start()]);
      return pair;
    } catch (error) {
      await pair[Symbol.asyncDispose]();
      throw error;
    }
  }

  other(end: DeviceEnd): DeviceEnd {
    return end === this.a ? this.b : this.a;
  }

  /** The path to an end over the wire. */
  direct(to: DeviceEnd): DevicePath & { readonly endpoint: Endpoint } {
    const { address } = this.#wire.ends[to === this.a ? 0 : 1];
    return { kind: "udp", endpoint: parseEndpoint(`${address}:${to.started.port}`) };
  }

  /** Both know each other anew, asleep, and nobody does anything by itself. */
  async reset(): Promise<void> {
    for (const end of [this.a, this.b]) {
      const { key } = this.other(end).started;
      await end.call("agent", null);
      await end.call("removePeer", key);
    }
    await Promise.all([this.sleep(this.a), this.sleep(this.b)]);
    // What was under way before is over.
    await sleep(50);
    for (const end of [this.a, this.b]) end.events.length = 0;
    this.relayed = 0;
    this.relayedData = 0;
  }

  /** Each wakes its peer onto that kind of path when it is called, or has something to say. */
  async automate(kind: "relay" | "udp", ...ends: readonly DeviceEnd[]): Promise<void> {
    for (const end of ends.length > 0 ? ends : [this.a, this.b]) {
      const other = this.other(end);
      await end.call("agent", `${other.address}/32`, kind === "relay" ? { kind } : this.direct(other));
    }
  }

  sleep(end: DeviceEnd): Promise<unknown> {
    const other = this.other(end);
    return end.call("peer", other.started.key, "asleep", `${other.address}/32`);
  }

  /** An end's path to the other, from now on. */
  async path(end: DeviceEnd, kind: "relay" | "udp"): Promise<void> {
    const other = this.other(end);
    await end.call("setPath", other.started.key, kind === "relay" ? { kind } : this.direct(other));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.a.stop(), this.b.stop()]);
    await this.#wire[Symbol.asyncDispose]();
  }
}
