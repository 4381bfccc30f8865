import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { type LabAgent, PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import { createVethStar } from "../../lab/veth-star.ts";

const HOOK = new URL("./kill-data-worker.ts", import.meta.url).href;
/** From the fault until traffic flows again; generous for a loaded machine. */
const BACK_MS = 15_000;
const FAULTS = 3;

/** By the tunnel: without one, the bridge would carry the packet in the clear. */
const reaches = async (from: LabAgent, to: LabAgent): Promise<boolean> =>
  (await from.host.exec("ping", ["-c1", "-W1", "-I", "perch0", to.address])).code === 0;

/** A datagram that means nothing, to the WireGuard port. */
const poke = (from: LabAgent, { host }: LabAgent): Promise<unknown> =>
  from.host.exec("bash", ["-c", `echo poke > /dev/udp/${host.address}/51820`]);

/** What a process holds: a leak shows as one more after each fault. */
function held({ pid }: LabAgent): { descriptors: number; threads: number } {
  return {
    descriptors: readdirSync(`/proc/${pid}/fd`).length,
    threads: readdirSync(`/proc/${pid}/task`).length,
  };
}

describe("the data worker of an agent ends", { skip: await skipWithoutLab(), timeout: 120_000 }, () => {
  test("the agent builds its tunnel again, peers find it by themselves, and nothing is left behind", async () => {
    const agents = ["alder", "birch"];
    await using star = await createVethStar(["hub", ...agents]);
    await using network = await PerchNetwork.start(star, {
      server: "hub",
      agents,
      daemonEnvironment: { NODE_OPTIONS: `--import ${HOOK}` },
    });
    const [alder, birch] = agents.map((name) => network.agent(name)) as [LabAgent, LabAgent];
    await waitFor(() => reaches(alder, birch), "the first way from alder to birch");
    await sleep(500);
    const before = held(alder);
    const pid = alder.pid!;
    for (let fault = 1; fault <= FAULTS; fault++) {
      process.kill(pid, "SIGUSR2");
      // The thread ends when a packet brings it back from the kernel.
      await waitFor(
        async () => {
          await poke(birch, alder);
          return (alder.log.match(/the tunnel ended/g)?.length ?? 0) >= fault;
        },
        `fault ${fault} in the log`,
        BACK_MS,
      );
      // birch still believes in its session: it is alder's handshake, or birch's own when nothing answers, that mends it.
      await waitFor(
        () => reaches(fault % 2 === 0 ? alder : birch, fault % 2 === 0 ? birch : alder),
        "traffic",
        BACK_MS,
      );
    }
    assert.equal(alder.pid, pid, "the process is the same");
    await waitFor(async () => held(alder).threads <= before.threads, `threads of ${JSON.stringify(before)}`, 5_000);
    const after = held(alder);
    // Connections to the server may be between two lives.
    assert.ok(after.descriptors <= before.descriptors + 2, `${JSON.stringify(before)}, then ${JSON.stringify(after)}`);
    const interfaces = (await alder.host.exec("ip", ["-br", "link", "show", "type", "tun"])).stdout;
    assert.equal(interfaces.trim().split("\n").length, 1, interfaces);
  });
});
