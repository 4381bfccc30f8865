import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import type { Host } from "../../lab/host.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { LabAgent, PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { hostPerSite } from "../../lab/topology.ts";
import { type MachineState, readMachine } from "../integration/machine-state.ts";

const INTERFACE = "pk0";
const PATIENCE_MS = 60_000;

/** A machine with its packet filter. */
interface HostState extends MachineState {
  readonly nft: string;
}

describe("the life of an agent with the kernel's WireGuard", { timeout: 400_000 }, () => {
  let lab: Lab;
  let network: PerchNetwork;
  let box: Host;
  let agent: LabAgent;
  let untouched: HostState;

  before(async () => {
    lab = await createLab(hostPerSite({ hub: {}, box: { ipv6: true }, birch: {} }));
    network = await PerchNetwork.start(lab, { server: "hub", agents: ["birch"] });
    box = lab.host("box");
    const own = "table inet own { chain input { type filter hook input priority 0; ct state established accept; }; }";
    assert.equal((await box.exec("nft", [own])).code, 0);
    agent = new LabAgent(box, join(network.directory, "box"));
    untouched = await readHost();
    await start();
    await agent.up([...joining(), "--device", "auto", "--interface-name", INTERFACE]);
  });

  after(async () => {
    await agent?.stop();
    await network?.close();
    await lab?.close();
  });

  const joining = (): readonly string[] => [
    ...["--management-url", network.managementUrl, "--setup-key", network.setupKey, "--hostname", "box"],
  ];

  async function start(): Promise<void> {
    agent.startDaemon();
    await waitFor(() => agent.isListening(), "the daemon", PATIENCE_MS);
  }

  async function readHost(): Promise<HostState> {
    return { ...(await readMachine(box)), nft: (await box.exec("nft", ["list", "ruleset"])).stdout };
  }

  const isUp = async (): Promise<boolean> => (await agent.perch(["status", "--check", "ready"])).code === 0;
  const ping = async (): Promise<void> => {
    const { address } = network.agent("birch");
    const { stdout } = await box.exec("ping", ["-c", "3", "-i", "0.2", "-W", "5", address]);
    assert.match(stdout, /3 packets transmitted, 3 received/);
  };
  const withoutPrograms = ({ programs: _, ...rest }: HostState): Omit<HostState, "programs"> => rest;

  test("auto is the kernel's, and down takes everything away", async () => {
    await ping();
    const up = await readHost();
    assert.match((await box.exec("ip", ["-d", "link", "show", INTERFACE])).stdout, /wireguard/);
    assert.match(up.nft, new RegExp(`table inet perch-${INTERFACE}`));
    const record = JSON.parse(readFileSync(join(agent.directory, "state/device.json"), "utf8"));
    assert.equal(record.interfaceName, INTERFACE);
    const { perch } = JSON.parse(await agent.mustPerch(["status", "--json"]));
    assert.equal(perch.interface.device, "kernel");
    await agent.mustPerch(["down"]);
    assert.deepEqual(withoutPrograms(await readHost()), withoutPrograms(untouched));
    await agent.mustPerch(["up"]);
    await ping();
  });

  test("SIGKILL of the agent: the next start has one of everything, and `perch state clean` leaves nothing", async () => {
    const before = await readHost();
    await agent.stop("SIGKILL");
    assert.equal((await box.exec("ip", ["link", "show", INTERFACE])).code, 0, "an interface outlives its agent");
    await start();
    await waitFor(isUp, "up again by itself", PATIENCE_MS);
    await ping();
    assert.deepEqual(withoutNumber((await readHost()).addresses), withoutNumber(before.addresses));
    await agent.stop("SIGKILL");
    assert.match((await readHost()).nft, /perch-/, "rules outlive their owner");
    await agent.mustPerch(["state", "clean", "--state-dir", join(agent.directory, "state")]);
    assert.deepEqual(await readHost(), untouched);
    await start();
    await waitFor(isUp, "up again by itself", PATIENCE_MS);
    await ping();
  });

  test("an interface that somebody deletes is made anew, with the tunnel", async () => {
    await ping();
    await box.exec("ip", ["link", "delete", INTERFACE]);
    await waitFor(
      async () => (await box.exec("ip", ["link", "show", INTERFACE])).code === 0 && (await isUp()),
      "up again",
      PATIENCE_MS,
    );
    await ping();
  });

  test("a WireGuard interface of that name that is somebody else's is never touched, also after a crash", async () => {
    await agent.stop("SIGKILL");
    const key = (await box.exec("wg", ["genkey"])).stdout.trim();
    const script = `ip link delete ${INTERFACE}; ip link add ${INTERFACE} type wireguard
      echo ${key} | wg set ${INTERFACE} private-key /dev/stdin listen-port 7777`;
    assert.equal((await box.exec("sh", ["-c", script])).code, 0);
    const theirs = async (): Promise<string> => (await box.exec("wg", ["show", INTERFACE, "dump"])).stdout;
    const before = await theirs();
    try {
      await agent.perch(["state", "clean", "--state-dir", join(agent.directory, "state")]);
      assert.equal(await theirs(), before);
      await start();
      const { code, stderr } = await agent.perch(["up"]);
      assert.equal(code, 1);
      assert.match(stderr, new RegExp(`there is an interface ${INTERFACE} already`));
      assert.equal(await theirs(), before);
    } finally {
      await box.exec("ip", ["link", "delete", INTERFACE]);
    }
    await agent.mustPerch(["up"], PATIENCE_MS);
    await ping();
  });
});

/** `ip -o` begins with the interface's number, which a new one has not. */
function withoutNumber(lines: readonly string[]): string[] {
  return lines.map((line) => line.replace(/^\d+: /, "")).sort();
}
