/** What a person sees of an agent that is in the middle of a large network map when everything it talks to dies. */
import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { fillStore } from "../../bench/big-network.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { LabAgent, PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import { hostPerSite } from "../../lab/topology.ts";

const PEERS = 10_000;
/** A map of 10,000 peers takes some 3 s on this link. */
const SLOW_LINK = { bandwidthMbps: 4 } as const;

interface Details {
  readonly signal: { readonly connected: boolean };
  readonly relays: { readonly available: number };
  readonly peers: { readonly details: readonly unknown[] };
  readonly perch: { readonly state: string; readonly peers: { readonly total: number } };
}

describe("status while a large map is being applied", { skip: await skipWithoutLab() }, () => {
  let lab: Lab;
  let network: PerchNetwork;
  let agent: LabAgent;

  before(async () => {
    lab = await createLab(hostPerSite({ hub: {}, alder: {} }));
    network = await PerchNetwork.start(lab, {
      server: "hub",
      agents: [],
      prepareServer: async (directory) => {
        mkdirSync(directory, { mode: 0o700 });
        await fillStore(join(directory, "perch.db"), PEERS);
      },
    });
    agent = new LabAgent(lab.host("alder"), join(network.directory, "alder"));
    agent.startDaemon();
    await waitFor(() => agent.isListening(), "the daemon");
  });

  after(async () => {
    if (network?.serverPid !== undefined) process.kill(network.serverPid, "SIGCONT");
    await agent?.stop();
    await network?.close();
    await lab?.close();
  });

  test("it answers in every form, from what is there, while management, signal and relay are dead", async (t) => {
    await lab.setLink("hub", SLOW_LINK);
    const status = async (...flags: readonly string[]): Promise<string> => {
      const startedAt = performance.now();
      const text = await agent.mustPerch(["status", ...flags]);
      t.diagnostic(`status ${flags.join(" ")}: ${Math.round(performance.now() - startedAt)} ms`);
      return text;
    };
    const details = async (): Promise<Details> => JSON.parse(await status("--json")) as Details;
    const { managementUrl, setupKey } = network;
    const up = agent.perch(["up", "--management-url", managementUrl, "--setup-key", setupKey], 60_000);

    await waitFor(async () => (await agent.countPeers()) > 0, "the first part of the map");
    // From here on nobody answers anything; what the server's system has in hand still arrives, and is applied.
    process.kill(network.serverPid!, "SIGSTOP");
    const first = await details();
    assert.equal(first.perch.state, "connecting", "up waits for the rest of the map");
    assert.ok(
      first.peers.details.length > 0 && first.peers.details.length < PEERS,
      `${first.peers.details.length} peers`,
    );
    assert.match(await status(), /^Agent: +connecting.*^Peers: +0\/\d+ connected, 0 connecting, \d+ idle$/ms);
    assert.match(await status("-d"), /^ {3}Public key: /m);
    const later = await details();
    const [before, since] = [first.peers.details.length, later.peers.details.length];
    assert.ok(since > before && since < PEERS, `the map was being applied: ${before} peers, then ${since}`);
    assert.equal(later.perch.peers.total, since);
    const ready = await agent.perch(["status", "--check", "ready"]);
    assert.deepEqual([ready.code, ready.stdout], [1, ""]);
    assert.match(await status("--check", "live"), /^live$/m);

    process.kill(network.serverPid!, "SIGCONT");
    assert.equal((await up).code, 0);
    const done = await details();
    assert.deepEqual([done.perch.state, done.peers.details.length], ["up", PEERS]);
  });
});
