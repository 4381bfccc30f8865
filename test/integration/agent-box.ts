import assert from "node:assert/strict";
import { join } from "node:path";
import type { Millis } from "#base/time.ts";
import type { Host } from "../../lab/host.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { LabAgent, PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { hostPerSite } from "../../lab/topology.ts";
import { type MachineState, readMachine } from "./machine-state.ts";

/** A machine with its packet filter. */
export interface BoxState extends MachineState {
  readonly nft: string;
}

export interface AgentBoxOptions {
  /** Of `perch up`, besides what joins the network. */
  readonly upFlags: readonly string[];
  readonly patienceMs: Millis;
}

/** A host `box` with rules of its own in its packet filter and one agent, which is up; `birch` is its peer. */
export class AgentBox implements AsyncDisposable {
  readonly network: PerchNetwork;
  readonly host: Host;
  readonly agent: LabAgent;
  /** Before there was an agent. */
  readonly untouched: BoxState;
  readonly #lab: Lab;
  readonly #patienceMs: Millis;

  private constructor(lab: Lab, network: PerchNetwork, agent: LabAgent, untouched: BoxState, patienceMs: Millis) {
    this.#lab = lab;
    this.network = network;
    this.host = agent.host;
    this.agent = agent;
    this.untouched = untouched;
    this.#patienceMs = patienceMs;
  }

  static async start({ upFlags, patienceMs }: AgentBoxOptions): Promise<AgentBox> {
    await using undo = new AsyncDisposableStack();
    const lab = await createLab(hostPerSite({ hub: {}, box: { ipv6: true }, birch: {} }));
    undo.defer(() => lab.close());
    const network = await PerchNetwork.start(lab, { server: "hub", agents: ["birch"] });
    undo.defer(() => network.close());
    const host = lab.host("box");
    const own = "table inet own { chain input { type filter hook input priority 0; ct state established accept; }; }";
    assert.equal((await host.exec("nft", [own])).code, 0);
    const agent = new LabAgent(host, join(network.directory, "box"));
    undo.defer(() => agent.stop());
    const box = new AgentBox(lab, network, agent, await readBox(host), patienceMs);
    await box.startDaemon();
    await agent.up([...network.joinFlags("box"), ...upFlags]);
    undo.move();
    return box;
  }

  async startDaemon(): Promise<void> {
    this.agent.startDaemon();
    await waitFor(() => this.agent.isListening(), "the daemon", this.#patienceMs);
  }

  /** Starts the daemon and waits until it has brought its tunnel up. */
  async resume(): Promise<void> {
    await this.startDaemon();
    await waitFor(() => this.isUp(), "up again by itself", this.#patienceMs);
  }

  state(): Promise<BoxState> {
    return readBox(this.host);
  }

  async isUp(): Promise<boolean> {
    return (await this.agent.perch(["status", "--check", "ready"])).code === 0;
  }

  /** Each ping to the peer is answered. */
  async ping(count = 1): Promise<void> {
    const { address } = this.network.agent("birch");
    const { stdout } = await this.host.exec("ping", ["-c", String(count), "-i", "0.2", "-W", "5", address]);
    assert.match(stdout, new RegExp(`${count} packets transmitted, ${count} received`));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.agent.stop();
    await this.network.close();
    await this.#lab.close();
  }
}

async function readBox(host: Host): Promise<BoxState> {
  return { ...(await readMachine(host)), nft: (await host.exec("nft", ["list", "ruleset"])).stdout };
}

export function withoutPrograms({ programs: _, ...rest }: BoxState): Omit<BoxState, "programs"> {
  return rest;
}

/** `ip -o` begins with the interface's number, which a new one has not. */
export function withoutNumber(lines: readonly string[]): string[] {
  return lines.map((line) => line.replace(/^\d+: /, "")).sort();
}
