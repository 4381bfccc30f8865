import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join, resolve } from "node:path";
import { after, before, describe, type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fillStore } from "../../bench/big-network.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { type LabAgent, PerchNetwork } from "../../lab/perch-network.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import { hostPerSite } from "../../lab/topology.ts";
import { WakePair } from "../../lab/wake-pair.ts";

/** Peers that registered once and are not there. */
const AWAY = 250;
const PROGRAM = resolve(import.meta.dirname, "sweep.py");
/** Most sleeping peers that a sweep may wake. */
const WAKES = 5;
/** Between two addresses of a sweep: about two seconds for all. */
const PACE_MS = 8;

/** 250 sleeping peers that are away and one that is there, in the middle of a sweep over all of them. */
describe("a sweep over sleeping peers", { skip: await skipWithoutLab() }, () => {
  let lab: Lab;
  let network: PerchNetwork;
  let alder: LabAgent;
  let pair: WakePair;
  let addresses: readonly string[];

  before(async () => {
    lab = await createLab(hostPerSite({ hub: {}, alder: {}, birch: {} }));
    network = await PerchNetwork.start(lab, {
      server: "hub",
      agents: ["alder", "birch"],
      prepareServer: async (directory) => {
        mkdirSync(directory, { mode: 0o700 });
        await fillStore(join(directory, "perch.db"), AWAY);
      },
    });
    alder = network.agent("alder");
    pair = await WakePair.start(network, "alder", "birch");
    const { peers } = JSON.parse(await alder.mustPerch(["status", "--json"])) as {
      readonly peers: { readonly details: readonly { readonly netbirdIp: string }[] };
    };
    const birch = network.agent("birch").address;
    const others = peers.details.map(({ netbirdIp }) => netbirdIp).filter((address) => address !== birch);
    assert.equal(others.length, AWAY);
    addresses = [...others.slice(0, AWAY / 2), birch, ...others.slice(AWAY / 2)];
  });

  after(async () => {
    await pair?.[Symbol.asyncDispose]();
    await network?.close();
    await lab?.close();
  });

  interface Facts {
    readonly wakes: { readonly held: number };
    readonly counters: Readonly<Record<string, number>>;
  }

  async function facts(): Promise<Facts> {
    return (JSON.parse(await alder.mustPerch(["status", "--json"])) as { readonly perch: Facts }).perch;
  }

  /** Segments that the host's TCP sent again. */
  async function repeated(): Promise<number> {
    const { stdout } = await alder.host.exec("cat", ["/proc/net/snmp"]);
    const [names, values] = stdout
      .split("\n")
      .filter((line) => line.startsWith("Tcp:"))
      .map((line) => line.split(" "));
    return Number(values![names!.indexOf("RetransSegs")]);
  }

  const sweep = (kind: string) =>
    alder.host.exec("python3", [PROGRAM, kind, alder.address, `${PACE_MS}`, ...addresses]);

  for (const kind of ["ping", "syn"]) {
    const name = { ping: "a ping sweep", syn: "a SYN scan" }[kind]!;
    test(`${name} and a storm of discovery wake five at most, and hold no connection up`, async (t: TestContext) => {
      await pair.sleep();
      const alone = await pair.wake("tcp");
      await pair.sleep();
      const before = await facts();
      const running = Promise.all([sweep(kind), sweep("storm")]);
      // Birch was touched by then.
      await sleep(PACE_MS * (AWAY / 2 + 60));
      const repeatedBefore = await repeated();
      const meanwhile = await pair.wake("tcp");
      // Nobody else repeats a segment: crafted packets are none of TCP's.
      const repeatedSince = (await repeated()) - repeatedBefore;
      for (const { code, stderr } of await running) assert.equal(code, 0, stderr);
      const { counters, wakes } = await facts();
      const since = (counter: string): number => (counters[counter] ?? 0) - (before.counters[counter] ?? 0);
      t.diagnostic(
        `${since("wakes")} woken, ${wakes.held} held back, ${since("drop-multicast-asleep")} of the storm dropped; ` +
          `connected after ${meanwhile.result.firstMs.toFixed(0)} ms, ${alone.result.firstMs.toFixed(0)} ms without`,
      );
      assert.equal(meanwhile.result.received, 1);
      assert.equal(repeatedSince, 0, "the first SYN went through");
      // Birch is the one that somebody wanted.
      assert.ok(since("wakes") - 1 <= WAKES, `${since("wakes")} woken`);
      // Some may be awake from the sweep before.
      assert.ok(wakes.held > AWAY - 5 * WAKES, `${wakes.held} held back`);
      assert.ok(since("drop-multicast-asleep") > AWAY * 5);
      const held = (await alder.mustPerch(["why", addresses[AWAY - 10]!])).toString();
      assert.match(held, /Idle.*: held back: part of a sweep over \d+ peers/);
    });
  }
});
