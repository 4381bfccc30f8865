import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { Millis } from "#base/time.ts";
import type { Host } from "../../lab/host.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { NAT } from "../../lab/nat.ts";
import { LabAgent, PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import { hostPerSite } from "../../lab/topology.ts";
import { filesBelow, type MachineState, readMachine } from "./machine-state.ts";

/** When after the start of `perch up` the daemon is killed: before, during and after login, interface and map. */
const KILL_AFTER: readonly Millis[] = [0, 200, 300, 450];
/** Files of an agent that was up once. */
const KEPT = ["daemon.log", "state/", "state/handshake-timestamp", "state/private.key", "state/settings.json"];

type NetworkState = Omit<MachineState, "programs">;

describe("what perch made is gone when it ends", { skip: await skipWithoutLab() }, () => {
  let lab: Lab;
  let network: PerchNetwork;
  let box: Host;
  let agent: LabAgent;
  let untouched: MachineState;

  before(async () => {
    lab = await createLab(hostPerSite({ hub: {}, box: { nat: NAT.portRestricted, ipv6: true }, birch: {} }));
    network = await PerchNetwork.start(lab, { server: "hub", agents: ["birch"] });
    box = lab.host("box");
    untouched = await readMachine(box);
    agent = new LabAgent(box, `${network.directory}/box`);
    await start(agent);
    await agent.up(network.joinFlags("box"));
  });

  after(async () => {
    await agent?.stop();
    await network?.close();
    await lab?.close();
  });

  async function start(which: LabAgent): Promise<void> {
    which.startDaemon();
    await waitFor(async () => (await which.perch(["status"])).code === 0, "the daemon");
  }

  const isUp = async (which = agent): Promise<boolean> =>
    (await which.perch(["status", "--check", "ready"])).code === 0;
  const wake = async (): Promise<void> => {
    const { code, stdout } = await box.exec("ping", ["-c1", "-W5", network.agent("birch").address]);
    assert.equal(code, 0, stdout);
  };
  /** The machine without its programs: a daemon that is down still runs. */
  const readNetwork = async (): Promise<NetworkState> => networkOf(await readMachine(box));

  test("down takes interface, addresses, routes and port away, and up brings them back", async () => {
    await wake();
    const up = await readNetwork();
    assert.ok(up.links.some((line) => line.includes("perch0")) && up.routes.some((line) => line.includes("perch0")));
    await agent.mustPerch(["down"]);
    assert.deepEqual(await readNetwork(), networkOf(untouched));
    await agent.mustPerch(["up"]);
    assert.deepEqual(withoutIndex(await readNetwork()), withoutIndex(up));
  });

  for (const isConnected of [false, true]) {
    test(`SIGTERM of a daemon with a peer that is ${isConnected ? "connected" : "asleep"} leaves settings and identity alone`, async () => {
      if (isConnected) await wake();
      await agent.stop("SIGTERM");
      assert.deepEqual(await readMachine(box), untouched);
      assert.deepEqual(filesBelow(agent.directory), KEPT);
      await start(agent);
      await waitFor(isUp, "up again by itself");
    });

    test(`SIGKILL with a peer that is ${isConnected ? "connected" : "asleep"} leaves no interface, and the next start cleans the files`, async () => {
      if (isConnected) await wake();
      await agent.stop("SIGKILL");
      assert.deepEqual(await readMachine(box), untouched);
      await start(agent);
      await waitFor(isUp, "up again by itself");
      await wake();
      await agent.stop("SIGTERM");
      assert.deepEqual(filesBelow(agent.directory), KEPT);
      await start(agent);
      await waitFor(isUp, "up again by itself");
    });
  }

  test("SIGKILL at any moment of up leaves nothing in the way of the next up", { timeout: 60_000 }, async () => {
    for (const delay of KILL_AFTER) {
      await agent.mustPerch(["down"]);
      const up = agent.perch(["up"]);
      await sleep(delay);
      await agent.stop("SIGKILL");
      await up;
      assert.deepEqual(await readMachine(box), untouched, `killed after ${delay} ms`);
      await start(agent);
      await agent.mustPerch(["up"]);
      assert.ok(await isUp());
    }
    await wake();
  });

  test("SIGTERM at any moment of up leaves nothing but files that stay", { timeout: 60_000 }, async () => {
    for (const delay of KILL_AFTER) {
      await agent.mustPerch(["down"]);
      const up = agent.perch(["up"]);
      await sleep(delay);
      await agent.stop("SIGTERM");
      await up;
      assert.deepEqual(await readMachine(box), untouched, `ended after ${delay} ms`);
      assert.deepEqual(filesBelow(agent.directory), KEPT);
      await start(agent);
    }
    await agent.mustPerch(["up"]);
  });

  test("deregister: the server forgets the machine, the machine needs a key again", async () => {
    await agent.mustPerch(["deregister", "--yes"]);
    assert.deepEqual(await readNetwork(), networkOf(untouched));
    assert.doesNotMatch((await network.perchServer(["peers", "list"])).stdout, /^box\./m);
    const again = await agent.perch(["up"]);
    assert.equal(again.code, 4, again.stderr);
    assert.match(again.stderr, /^perch: .*give a setup key/m);
    assert.equal((await agent.perch(["status", "--check", "ready"])).code, 4);
    await agent.mustPerch(["up", "--setup-key", network.setupKey]);
    await waitFor(isUp, "up with a key");
  });

  test("a machine that was deleted on the server takes its tunnel down and says what to do", async () => {
    await wake();
    const { code, stderr } = await network.perchServer(["peers", "delete", "box"]);
    assert.equal(code, 0, stderr);
    await waitFor(async () => (await agent.perch(["status", "--check", "ready"])).code === 4, "needs login");
    assert.deepEqual(await readNetwork(), networkOf(untouched));
    const { stdout } = await agent.perch(["status"]);
    assert.match(stdout, /^Agent: +needs login.*setup-key/m);
    // Neither a restart nor time changes that, and nobody is asked over and over.
    await agent.stop();
    await start(agent);
    await waitFor(async () => (await agent.perch(["status", "--check", "ready"])).code === 4, "needs login still");
    await agent.mustPerch(["up", "--setup-key", network.setupKey]);
    await wake();
  });

  test("several agents on one machine keep out of each other's way", { timeout: 60_000 }, async () => {
    const second = new LabAgent(box, `${network.directory}/second`);
    try {
      const first = await readMachine(box);
      await start(second);
      const join = network.joinFlags("second");
      const taken = await second.perch(["up", ...join]);
      assert.equal(taken.code, 1);
      assert.match(taken.stderr, /^perch: .*--(wireguard-port|interface-name)/m);
      await second.up([...join, "--interface-name", "perch1", "--wireguard-port", "51821"]);
      assert.notEqual(second.address, agent.address);
      assert.ok((await isUp()) && (await isUp(second)));
      const both = await readMachine(box);
      assert.ok(first.links.every((line) => both.links.includes(line)));
      assert.ok(first.routes.every((line) => both.routes.includes(line)));
      await wake();
      await second.mustPerch(["deregister", "--yes"]);
      await second.stop();
      assert.deepEqual(await readMachine(box), first);
      await wake();
    } finally {
      await second.stop();
    }
  });
});

function networkOf({ programs: _, ...state }: MachineState): NetworkState {
  return state;
}

/** The kernel numbers a new interface anew. */
function withoutIndex(state: NetworkState): NetworkState {
  const strip = (lines: readonly string[]): string[] => lines.map((line) => line.replace(/^\d+: /, "")).sort();
  return { ...state, links: strip(state.links), addresses: strip(state.addresses) };
}
