import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { createLab, type Lab } from "../lab/lab.ts";
import { type LabAgent, PerchNetwork } from "../lab/perch-network.ts";
import type { ProbeLine } from "./agent-probe.ts";
import { fillStore } from "./big-network.ts";

/** V8 gives pages that a collection freed back to the system some 8 s later. */
const SETTLE_MS = 13_000;
/** Half of the one-way delay between two hosts. */
const SITE_LATENCY_MS = 10;

export interface BigLabOptions {
  /** Of the agent alder; birch has the embedded one. */
  readonly device?: string;
  /** Of the daemons. */
  readonly environment?: Readonly<Record<string, string>>;
}

/** A server whose store was filled before it started, and two real agents with probes in them, in a lab. */
export class BigLab implements AsyncDisposable {
  readonly network: PerchNetwork;
  readonly #lab: Lab;

  private constructor(lab: Lab, network: PerchNetwork) {
    this.#lab = lab;
    this.network = network;
  }

  static async start(peers: number, { device = "embedded", environment = {} }: BigLabOptions = {}): Promise<BigLab> {
    const site = (name: string) => ({ name, latencyMs: SITE_LATENCY_MS });
    const names = ["hub", "alder", "birch"];
    const lab = await createLab({ sites: names.map(site), hosts: names.map((name) => ({ name, site: name })) });
    try {
      const network = await PerchNetwork.start(lab, {
        server: "hub",
        agents: ["alder", "birch"],
        daemonEnvironment: { ...PROBED, ...environment },
        upFlags: (agent) => ["--device", agent === "alder" ? device : "embedded"],
        prepareServer: async (directory) => {
          mkdirSync(directory, { mode: 0o700 });
          await fillStore(join(directory, "perch.db"), peers);
        },
      });
      return new BigLab(lab, network);
    } catch (error) {
      await lab.close();
      throw error;
    }
  }

  /** `askProbe`, for those that have the lab. */
  probe(agent: LabAgent): Promise<ProbeLine> {
    return askProbe(agent);
  }

  /** The same after a collection, when what it freed has gone back to the system. */
  async settled(agent: LabAgent, settleMs = SETTLE_MS): Promise<ProbeLine> {
    await this.probe(agent);
    await sleep(settleMs);
    return this.probe(agent);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.network.close();
    await this.#lab.close();
  }
}

/** Begins a probe's line in the log of a daemon. */
export const PROBE_MARK = "PROBE ";

/** Environment of a daemon with a probe in it. */
export const PROBED = { NODE_OPTIONS: `--import ${import.meta.dirname}/agent-probe.ts` } as const;

/** What the probe in an agent says; what it says of the time before is gone afterwards. */
export async function askProbe(agent: LabAgent): Promise<ProbeLine> {
  const lines = () => agent.log.split("\n").filter((line) => line.startsWith(PROBE_MARK));
  const before = lines().length;
  process.kill(agent.pid!, "SIGUSR2");
  for (let tries = 0; tries < 100; tries++) {
    await sleep(100);
    const line = lines()[before];
    if (line !== undefined) return JSON.parse(line.slice(PROBE_MARK.length)) as ProbeLine;
  }
  throw new Error(`the probe in ${agent.name} does not answer`);
}
