import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { createDaemonClient } from "#agent/daemon/daemon-client.ts";
import { PublicKey } from "#base/keys.ts";
import type { Millis } from "#base/time.ts";
import type { Peer } from "#management/server/model.ts";
import { type LabAgent, PerchNetwork } from "../lab/perch-network.ts";
import { createVethStar, type VethStar } from "../lab/veth-star.ts";
import { PROBED } from "./big-lab.ts";
import { fillStore } from "./big-network.ts";
import { busiestSecond, type EndsReport, endKey, ManyEnds, type TouchReport, touchAll } from "./many-ends.ts";

const AGENT = "alder";

/** What touching all ends came to. */
export interface CrowdReport {
  readonly touch: TouchReport;
  /** As the agent sees its peers afterwards. */
  readonly connected: number;
  readonly ends: EndsReport;
  /** Most signal messages of the agent that came to the ends within a second. */
  readonly busiestSecond: number;
}

/**
 * One real agent with a probe in it, a real server, and many ends that answer (ManyEnds), among further peers that belong to nobody.
 * Cables without delay: the processors of the machine are what there is too little of.
 */
export class Crowd implements AsyncDisposable {
  readonly network: PerchNetwork;
  readonly #star: VethStar;
  readonly #ends: ManyEnds;
  readonly #peers: readonly Peer[];

  private constructor(star: VethStar, network: PerchNetwork, ends: ManyEnds, peers: readonly Peer[]) {
    this.#star = star;
    this.network = network;
    this.#ends = ends;
    this.#peers = peers;
  }

  /** `peers`: all there are; the first `ends` of them answer. */
  static async start(ends: number, peers: number): Promise<Crowd> {
    await using undo = new AsyncDisposableStack();
    const star = undo.use(await createVethStar(["hub", AGENT, "ends"]));
    let stored: readonly Peer[] = [];
    const network = undo.use(
      await PerchNetwork.start(star, {
        server: "hub",
        agents: [AGENT],
        daemonEnvironment: PROBED,
        prepareServer: async (directory) => {
          mkdirSync(directory, { mode: 0o700 });
          const keyOf = (index: number): PublicKey => endKey(index).publicKey;
          stored = await fillStore(join(directory, "perch.db"), peers, keyOf);
        },
      }),
    );
    const answering = stored.slice(0, ends);
    const agent = network.agent(AGENT);
    const many = undo.use(
      await ManyEnds.start(star.host("ends"), {
        url: network.managementUrl,
        ends: answering.map(({ address }) => address),
        bits: 16,
        agent: { key: await keyOf(agent), address: agent.address },
      }),
    );
    undo.move();
    return new Crowd(star, network, many, answering);
  }

  get agent(): LabAgent {
    return this.network.agent(AGENT);
  }

  /** Programs of the agent's machine connect to every end within `withinMs`. */
  async touch(withinMs: Millis): Promise<CrowdReport> {
    const addresses = this.#peers.map(({ address }) => address);
    const touch = await touchAll(this.#star.host(AGENT), addresses, withinMs);
    const ends = await this.#ends.report();
    return { touch, connected: await countConnected(this.agent), ends, busiestSecond: busiestSecond(ends.messages) };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#ends[Symbol.asyncDispose]();
    await this.network.close();
    await this.#star.close();
  }
}

async function keyOf(agent: LabAgent): Promise<PublicKey> {
  for await (const { head } of createDaemonClient(agent.socket).getStatus({}))
    if (head) return PublicKey.fromBytes(head.publicKey);
  throw new Error(`${agent.name} does not tell its key`);
}

async function countConnected(agent: LabAgent): Promise<number> {
  for await (const { head } of createDaemonClient(agent.socket).getStatus({}))
    if (head?.peers) return head.peers.connected;
  throw new Error(`${agent.name} does not tell how many peers are connected`);
}
