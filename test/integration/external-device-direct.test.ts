import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { after, before, describe, test } from "node:test";
import type { Millis } from "#base/time.ts";
import type { Host } from "../../lab/host.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { type LabAgent, PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { hostPerSite } from "../../lab/topology.ts";

/** Sooner than WireGuard's own retry, 5 s. */
const NO_RETRY_MS: Millis = 4000;
const INITIATION = [1, 0, 0, 0] as const;
const isRoot = process.getuid?.() === 0;

interface Details {
  readonly status: string;
  readonly connectionType: string;
  readonly iceCandidateEndpoint: { readonly remote: string };
}

/** alder and birch, both wireguard-go, reach each other over IPv4 and IPv6; no NAT. */
describe("the direct path of two agents with wireguard-go", { skip: !isRoot && "needs root" }, () => {
  let lab: Lab;
  let network: PerchNetwork;
  let alder: LabAgent;
  let birch: LabAgent;

  before(async () => {
    lab = await createLab(hostPerSite({ hub: { ipv6: true }, alder: { ipv6: true }, birch: { ipv6: true } }));
    network = await PerchNetwork.start(lab, {
      server: "hub",
      agents: ["alder", "birch"],
      upFlags: () => ["--device", "wireguard-go"],
      inactivity: "3s",
    });
    [alder, birch] = [network.agent("alder"), network.agent("birch")];
  });

  after(async () => {
    await network?.close();
    await lab?.close();
  });

  const peer = async (of: LabAgent, name: string): Promise<Details> => (await of.peer(name)) as unknown as Details;

  async function bothAsleep(): Promise<void> {
    const isIdle = async (of: LabAgent, name: string): Promise<boolean> => (await peer(of, name)).status === "Idle";
    await waitFor(async () => (await isIdle(alder, "birch")) && (await isIdle(birch, "alder")), "both asleep", 20_000);
  }

  async function ping(count: number): Promise<void> {
    const flags = ["-c", String(count), "-i", "0.2", "-W", String(NO_RETRY_MS / 1000)];
    const { stdout } = await alder.host.exec("ping", [...flags, birch.address]);
    assert.match(stdout, new RegExp(`${count} packets transmitted, ${count} received`), stdout);
  }

  async function untilDirect(endpoint: RegExp): Promise<void> {
    await waitFor(
      async () => {
        await ping(1);
        const { connectionType, iceCandidateEndpoint } = await peer(alder, "birch");
        return connectionType === "P2P" && endpoint.test(iceCandidateEndpoint.remote);
      },
      "a direct path",
      10_000,
    );
  }

  /** What the device itself sends to, whatever the agent says. */
  const endpointOf = async (host: Host, interfaceName: string): Promise<string> =>
    (await host.exec("wg", ["show", interfaceName, "endpoints"])).stdout;

  const interfaceOf = async (agent: LabAgent): Promise<string> =>
    JSON.parse(await agent.mustPerch(["status", "--json"])).perch.interface.name;

  test("is over IPv6 where no UDP gets through over IPv4, also at the next wake", { timeout: 60_000 }, async () => {
    await bothAsleep();
    for (const { host } of [alder, birch]) {
      const other = host === alder.host ? birch.host : alder.host;
      const chain = `chain output { type filter hook output priority 0; ip daddr ${other.address} meta l4proto udp drop; }`;
      assert.equal((await host.exec("nft", [`table inet cut { ${chain}; }`])).code, 0);
    }
    try {
      await ping(3);
      await untilDirect(/^\[2001:db8:/);
      assert.match(await endpointOf(alder.host, await interfaceOf(alder)), /\t\[2001:db8:/);
      await bothAsleep();
      assert.match(await endpointOf(alder.host, await interfaceOf(alder)), /\t127\./);
      await ping(3);
      await untilDirect(/^\[2001:db8:/);
    } finally {
      for (const { host } of [alder, birch]) await host.exec("nft", ["delete", "table", "inet", "cut"]);
    }
  });

  test("wakes without any server although the first initiation is lost, and does not wait for WireGuard's retry", {
    timeout: 60_000,
  }, async () => {
    await ping(3);
    await untilDirect(/./);
    await bothAsleep();
    // It makes a handshake then instead of using the session that it has.
    process.kill(pidOf(`wireguard-go ${await interfaceOf(alder)}`), "SIGKILL");
    const restarts = async (): Promise<number> =>
      JSON.parse(await alder.mustPerch(["status", "--json"])).perch.counters["worker-restarts"];
    await waitFor(async () => (await restarts()) === 1, "wireguard-go runs again", 10_000);
    await network.stopServer("SIGKILL");
    const dropped = async (): Promise<number> => (await lab.counters()).drops.rule;
    const before = await dropped();
    await lab.drop({ from: "alder", to: "birch", protocol: "udp", payloadStart: INITIATION });
    await ping(1);
    assert.equal((await dropped()) - before, 1, "one was lost");
  });
});

function pidOf(command: string): number {
  const pid = readdirSync("/proc").find((entry) => {
    try {
      const words = readFileSync(`/proc/${entry}/cmdline`, "latin1").replaceAll("\0", " ").trim();
      return /^\d+$/.test(entry) && words.endsWith(command) && !words.includes("pdeathsig");
    } catch {
      return false;
    }
  });
  assert.ok(pid, `no process ${command}`);
  return Number(pid);
}
