import { setTimeout as sleep } from "node:timers/promises";
import { createDaemonClient } from "#agent/daemon/daemon-client.ts";
import type { Millis } from "#base/time.ts";
import { UapiControl, uapiPath } from "#wireguard/external/uapi-control.ts";
import type { LabAgent } from "../lab/perch-network.ts";

const PATIENCE: Millis = 180_000;
const DAY: Millis = 86_400_000;

export interface Filled {
  /** By `performance.now()`. */
  readonly at: Millis;
  /** After the agent had applied its map. */
  readonly behindMapMs: Millis;
}

/**
 * When the device of an agent that is about to be restarted has all its peers again, asked of the device itself, which is a
 * program with a control socket.
 */
export class DeviceFilling {
  readonly #agent: LabAgent;
  readonly #path: string;
  readonly #pid: number | undefined;
  readonly #logged: number;

  private constructor(agent: LabAgent, interfaceName: string) {
    this.#agent = agent;
    this.#path = uapiPath(interfaceName);
    this.#pid = agent.pid;
    this.#logged = agent.log.length;
  }

  /** Called before the restart. */
  static async of(agent: LabAgent): Promise<DeviceFilling> {
    for await (const { head } of createDaemonClient(agent.socket).getStatus({}))
      if (head) return new DeviceFilling(agent, head.interfaceName);
    throw new Error(`${agent.name} does not tell its interface`);
  }

  async until(count: number): Promise<Filled> {
    for (const deadline = performance.now() + PATIENCE; ; ) {
      const at = performance.now();
      const size = await this.#size();
      if (size >= count) return { at, behindMapMs: performance.timeOrigin + at - this.#mapAppliedAt(count) };
      if (at > deadline) throw new Error(`the device of ${this.#agent.name} has ${size} of ${count} peers`);
      // Being asked holds the device up: for a quarter of the time at most.
      await sleep(Math.max(20, 3 * (performance.now() - at)));
    }
  }

  async #size(): Promise<number> {
    const { pid } = this.#agent;
    if (pid === undefined || pid === this.#pid) return 0;
    await using control = new UapiControl(this.#path);
    try {
      return (await control.read()).peers.size;
    } catch {
      // There is none yet.
      return 0;
    }
  }

  /** Wall clock. */
  #mapAppliedAt(count: number): Millis {
    for (const [, time, peers] of this.#agent.log
      .slice(this.#logged)
      .matchAll(/^(\d+:\d+:\d+\.\d+).*network map applied.* peers=(\d+) /gm)) {
      if (Number(peers) < count) continue;
      const sinceMidnight = Date.parse(`1970-01-01T${time}Z`);
      const now = Date.now();
      return now - ((now - sinceMidnight) % DAY);
    }
    return Number.NaN;
  }
}
