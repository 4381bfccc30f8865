import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { PrivateKey } from "#base/keys.ts";
import type { Host } from "../lab/host.ts";

const INTERFACE = "bare0";
const PORT = 51900;
const READY_TRIES = 100;

/**
 * wireguard-go on two hosts that reach each other, each with the other's endpoint: what a tunnel costs when nothing has to
 * be found out. `forget` makes the next packet need a handshake, as the first one did.
 */
export class BareTunnel implements AsyncDisposable {
  readonly #hosts: readonly [Host, Host];
  readonly #keys = [PrivateKey.generate(), PrivateKey.generate()] as const;
  readonly #processes: ChildProcess[] = [];

  private constructor(hosts: readonly [Host, Host]) {
    this.#hosts = hosts;
  }

  static async start(left: Host, right: Host): Promise<BareTunnel> {
    const tunnel = new BareTunnel([left, right]);
    try {
      for (const side of [0, 1] as const) await tunnel.#startSide(side);
      await tunnel.forget();
      return tunnel;
    } catch (error) {
      await tunnel[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Of the right end, inside. */
  readonly address = "10.78.0.2";

  /** Both ends lose the session, and what they know of the other but its endpoint. */
  async forget(): Promise<void> {
    for (const side of [0, 1] as const) {
      const other = side === 0 ? 1 : 0;
      const peer = ["peer", this.#keys[other].publicKey];
      await this.#wg(side, "set", this.#interface(side), ...peer, "remove");
      const endpoint = `${this.#hosts[other].address}:${PORT}`;
      const allowed = ["allowed-ips", `10.78.0.${other + 1}/32`];
      await this.#wg(side, "set", this.#interface(side), ...peer, "endpoint", endpoint, ...allowed);
    }
  }

  /** Control sockets lie beside each other: the names must differ. */
  #interface(side: 0 | 1): string {
    return `${INTERFACE}${process.pid}${side}`.slice(-15);
  }

  async #startSide(side: 0 | 1): Promise<void> {
    const host = this.#hosts[side];
    const name = this.#interface(side);
    this.#processes.push(host.spawn("wireguard-go", ["-f", name], { stdio: "ignore" }));
    for (let tries = 0; (await host.exec("wg", ["show", name])).code !== 0; tries++) {
      if (tries === READY_TRIES) throw new Error(`wireguard-go on ${host.name} does not start`);
      await sleep(50);
    }
    const input = `[Interface]\nPrivateKey = ${this.#keys[side].toBase64()}\nListenPort = ${PORT}\n`;
    // Node's pipes are sockets, which cannot be opened by name.
    await this.#must(side, "sh", ["-c", `cat | wg setconf ${name} /dev/stdin`], input);
    await this.#must(side, "ip", ["address", "add", `10.78.0.${side + 1}/24`, "dev", name]);
    await this.#must(side, "ip", ["link", "set", name, "up"]);
  }

  #wg(side: 0 | 1, ...args: string[]): Promise<void> {
    return this.#must(side, "wg", args);
  }

  async #must(side: 0 | 1, command: string, args: readonly string[], input?: string): Promise<void> {
    const { code, stderr } = await this.#hosts[side].exec(command, args, input === undefined ? {} : { input });
    if (code !== 0) throw new Error(`${command} ${args.join(" ")}: ${stderr.trim()}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(
      this.#processes.map(async (child) => {
        if (child.exitCode !== null || child.signalCode !== null) return;
        const ended = once(child, "exit");
        child.kill();
        await ended;
      }),
    );
  }
}
