import assert from "node:assert/strict";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { test } from "node:test";
import { createDaemonClient } from "#agent/daemon/daemon-client.ts";
import type { Millis } from "#base/time.ts";
import { createLab } from "../../lab/lab.ts";
import { type LabAgent, PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import { ECHO_PORT, Traffic } from "../../lab/traffic.ts";

/** The longest pause of a client that looks for its server (30 s), and a loaded machine. */
const BACK_TIMEOUT: Millis = 45_000;

/** Enforced rules and what was dropped, asked of the daemon. */
async function firewall({ socket }: LabAgent): Promise<{ enforced: boolean; rules: number; dropped: number }> {
  for await (const { head } of createDaemonClient(socket).getStatus({})) {
    if (!head?.firewall) continue;
    const { enforced, rules } = head.firewall;
    return { enforced, rules, dropped: head.counters["drop-filter"] ?? 0 };
  }
  throw new Error("the status has no firewall");
}

test("two agents get from each other what the network's policy allows, and follow when it changes", {
  skip: await skipWithoutLab(),
  timeout: 120_000,
}, async () => {
  const names = ["alder", "birch"];
  await using lab = await createLab({
    sites: ["hub", ...names].map((name) => ({ name, latencyMs: 2 })),
    hosts: ["hub", ...names].map((name) => ({ name, site: name })),
  });
  await using network = await PerchNetwork.start(lab, { server: "hub", agents: names });
  const [alder, birch] = names.map((name) => network.agent(name)) as [LabAgent, LabAgent];
  await using from = await Traffic.start(alder.host);
  await using _to = await Traffic.start(birch.host);
  const ping = async (): Promise<boolean> =>
    (await alder.host.exec("ping", ["-c", "2", "-i", "0.2", "-W", "1", birch.address])).code === 0;
  const udp = async (timeoutMs: number): Promise<number> =>
    (await from.udp(birch.address, { count: 2, timeoutMs })).received;
  /** Changes the only rule of the network while the server is away; resolves when both agents have what it says. */
  const setPolicy = async (protocol: string, ports: readonly number[], rules: number): Promise<void> => {
    await network.stopServer();
    const database = new DatabaseSync(join(network.directory, "server", "perch.db"));
    database.prepare("update policy_rules set protocol = ?, ports = ?").run(protocol, JSON.stringify(ports));
    database.close();
    await network.startServer();
    for (const agent of [alder, birch])
      await waitFor(
        async () => (await firewall(agent)).rules === rules,
        `${rules} rules on ${agent.name}`,
        BACK_TIMEOUT,
      );
  };

  // A rule for each of the other's two addresses.
  assert.deepEqual(await firewall(birch), { enforced: true, rules: 2, dropped: 0 });
  assert.equal(await udp(5000), 2, "the first policy allows everything");
  assert.equal(await ping(), true);

  await setPolicy("tcp", [ECHO_PORT, 7008], 4);
  assert.match(await birch.mustPerch(["status"]), /Firewall: +4 rules/);
  assert.equal((await from.tcp(birch.address, { count: 3 })).received, 3);
  assert.equal(await udp(500), 0);
  assert.equal(await ping(), false);
  await waitFor(async () => (await firewall(birch)).dropped >= 4, "four dropped packets to be counted", 5000);
  assert.equal((await firewall(alder)).dropped, 0, "answers are no intruders");

  await setPolicy("udp", [], 2);
  assert.equal(await udp(5000), 2);
  await assert.rejects(from.tcp(birch.address, { count: 1, timeoutMs: 500 }));
});
