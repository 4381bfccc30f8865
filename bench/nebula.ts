import { type ChildProcess, execFile } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import type { Host } from "../lab/host.ts";

const run = promisify(execFile);
const PORT = 4242;
const READY_TIMEOUT_MS = 10_000;
/** A node tells the lighthouse where it is right after their handshake. */
const TELL_MS = 500;

/**
 * Debian's nebula on hosts of a lab, as its documentation sets it up: a lighthouse on the first host, which is the relay for
 * pairs without a direct way as well, a node on each of the others.
 */
export class NebulaNetwork implements AsyncDisposable {
  readonly #directory: string;
  readonly #hosts: readonly Host[];
  readonly #running = new Map<string, ChildProcess>();

  private constructor(directory: string, hosts: readonly Host[]) {
    this.#directory = directory;
    this.#hosts = hosts;
  }

  static async start(lighthouse: Host, nodes: readonly Host[]): Promise<NebulaNetwork> {
    const directory = await mkdtemp(join(tmpdir(), "perch-bench-nebula-"));
    const network = new NebulaNetwork(directory, [lighthouse, ...nodes]);
    try {
      await run("nebula-cert", ["ca", "-name", "bench"], { cwd: directory });
      for (const host of network.#hosts) {
        const address = `${network.addressOf(host.name)}/24`;
        await run("nebula-cert", ["sign", "-name", host.name, "-ip", address], { cwd: directory });
        // JSON is YAML.
        writeFileSync(join(directory, `${host.name}.yml`), JSON.stringify(network.#config(host)));
        await network.restart(host.name);
      }
      return network;
    } catch (error) {
      await network[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Inside the tunnel. */
  addressOf(name: string): string {
    return `10.77.0.${1 + this.#hosts.findIndex((host) => host.name === name)}`;
  }

  /** Begins a new process that knows of nobody; resolves when the lighthouse knows it. */
  async restart(name: string): Promise<void> {
    await this.#stop(name);
    const host = this.#hosts.find((each) => each.name === name)!;
    const log = join(this.#directory, `${name}.log`);
    const output = openSync(log, "w");
    const child = host.spawn("nebula", ["-config", join(this.#directory, `${name}.yml`)], {
      stdio: ["ignore", output, output],
    });
    closeSync(output);
    this.#running.set(name, child);
    const isLighthouse = host === this.#hosts[0];
    const ready = isLighthouse ? /Nebula interface is active/ : /Handshake message received/;
    const deadline = performance.now() + READY_TIMEOUT_MS;
    while (!ready.test(readFileSync(log, "utf8"))) {
      if (performance.now() > deadline || child.exitCode !== null)
        throw new Error(`nebula on ${name}: ${readFileSync(log, "utf8").trim().split("\n").at(-1)}`);
      await sleep(20);
    }
    await sleep(TELL_MS);
  }

  #config(host: Host): object {
    const [lighthouse] = this.#hosts as [Host, ...Host[]];
    const isLighthouse = host === lighthouse;
    const overlay = this.addressOf(lighthouse.name);
    const file = (name: string): string => join(this.#directory, name);
    const anybody = [{ port: "any", proto: "any", host: "any" }];
    return {
      pki: { ca: file("ca.crt"), cert: file(`${host.name}.crt`), key: file(`${host.name}.key`) },
      static_host_map: { [overlay]: [`${lighthouse.address}:${PORT}`] },
      lighthouse: { am_lighthouse: isLighthouse, hosts: isLighthouse ? [] : [overlay] },
      listen: { host: "0.0.0.0", port: PORT },
      punchy: { punch: true, respond: true },
      relay: { am_relay: isLighthouse, use_relays: true, relays: isLighthouse ? [] : [overlay] },
      tun: { dev: "nebula0" },
      firewall: { outbound: anybody, inbound: anybody },
    };
  }

  async #stop(name: string): Promise<void> {
    const child = this.#running.get(name);
    this.#running.delete(name);
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit");
    child.kill();
    await ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const name of [...this.#running.keys()]) await this.#stop(name);
    await rm(this.#directory, { recursive: true, force: true });
  }
}

/** As nebula tells it. */
export async function nebulaVersion(): Promise<string> {
  return (await run("nebula", ["-version"])).stdout.replace("Version:", "").trim();
}
