import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { createDaemonClient, type DaemonClient } from "#agent/daemon/daemon-client.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { LabAgent, PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { hostPerSite } from "../../lab/topology.ts";
import { filesBelow, readMachine } from "./machine-state.ts";

const INTERFACE = `pg${process.pid.toString(36)}`;
const isRoot = process.getuid?.() === 0;

describe("a start that is given up while the device is made", { skip: !isRoot && "needs root" }, () => {
  let lab: Lab;
  let network: PerchNetwork;
  let agent: LabAgent;
  let client: DaemonClient;

  before(async () => {
    lab = await createLab(hostPerSite({ hub: {}, box: {} }));
    network = await PerchNetwork.start(lab, { server: "hub", agents: [] });
    agent = new LabAgent(lab.host("box"), join(network.directory, "box"));
    client = createDaemonClient(agent.socket);
    agent.startDaemon();
    await waitFor(() => agent.isListening(), "the daemon", 20_000);
    await agent.up([...network.joinFlags("box"), "--interface-name", INTERFACE]);
    await agent.mustPerch(["down"]);
  });

  after(async () => {
    await agent?.stop();
    await network?.close();
    await lab?.close();
  });

  async function reason(): Promise<string> {
    for await (const { head } of client.getStatus({})) if (head) return head.reason;
    return "";
  }

  /** `perch up`, and Ctrl-C the moment the daemon says that it makes the interface. */
  async function giveUp(device: string): Promise<void> {
    const abort = new AbortController();
    let going = true;
    const over = (async () => {
      for await (const _ of client.up({ flags: { device } }, { signal: abort.signal }));
    })().finally(() => {
      going = false;
    });
    over.catch(() => {});
    while (going && (await reason()) !== "creating the interface");
    abort.abort(new Error("given up"));
    await assert.rejects(over, /given up/);
  }

  for (const device of ["embedded", "wireguard-go"]) {
    test(`leaves nothing of ${device}, and the next one is alone`, { timeout: 60_000 }, async () => {
      const before = [await readMachine(agent.host), filesBelow(agent.directory)];
      await giveUp(device);
      // Ends behind what the order before it takes back.
      await agent.mustPerch(["down"]);
      assert.deepEqual([await readMachine(agent.host), filesBelow(agent.directory)], before);
      await agent.mustPerch(["up", "--device", device]);
      await agent.mustPerch(["status", "--check", "ready"]);
      await agent.mustPerch(["down"]);
      assert.doesNotMatch(agent.log, /registered again|exists already|already, which is not ours/);
    });
  }
});
