import assert from "node:assert/strict";
import { after, before, describe, type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { Millis } from "#base/time.ts";
import { type FlowReport, outageAfter, reportFlow } from "../../lab/flow-report.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { HOST_INTERFACE, processesIn } from "../../lab/namespace.ts";
import { NAT } from "../../lab/nat.ts";
import { PerchNetwork } from "../../lab/perch-network.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import { type Flow, labNow } from "../../lab/traffic.ts";
import { waitUntil } from "../../lab/wait-until.ts";
import { type WakeEnd, WakePair } from "../../lab/wake-pair.ts";

/** Takeovers from the relay by the direct path, each under traffic. */
const TAKEOVERS = Number(process.env.PERCH_TEST_TAKEOVERS ?? 8);
/** How long the flows are watched after a change. */
const WATCH: Millis = 2200;
/**
 * Data has to flow again by then. A path that dies on the way shows by 0.4 s of silence and 0.6 s of unanswered checks; what
 * happens to the machine itself shows at once. The rest is for a machine that is shared: what it took is printed.
 */
const AFTER_SILENCE: Millis = 2000;
const AFTER_WORD: Millis = 1000;
/** A datagram may still go the old way while the worker has not read the command to change it. */
const CHANGE: Millis = 60;
/**
 * A datagram under way over the relay may arrive after younger ones that went directly: one flight, 0.15 s here on a quiet
 * machine (printed). What comes later than this was stuck somewhere, and did not only lose time to other programs.
 */
const ONE_FLIGHT: Millis = 1000;

/** A search for a direct way is given up after 10 s; then probes leave at least every 5 s while user traffic flows. */
const SEARCH: Millis = 11_000;
const PROBE: Millis = 7000;

interface Change {
  readonly name: string;
  readonly act: (lab: Lab) => Promise<void>;
  /** From the change until data flows again at both ends; undefined: none may be lost. */
  readonly within: Millis | undefined;
  /** Where the packets are at the end. */
  readonly ends: "direct" | "relay";
  readonly watch?: Millis;
  /** Nothing may become of it: no word in the story of either end. */
  readonly unnoticed?: boolean;
}

const CHANGES: readonly Change[] = [
  { name: "the NAT forgets its mappings", act: (lab) => lab.rebindNat("alder"), within: AFTER_SILENCE, ends: "direct" },
  {
    name: "the NAT gets another public address",
    act: (lab) => lab.changePublicAddress("alder", "198.19.77.1"),
    within: AFTER_SILENCE,
    ends: "direct",
  },
  {
    name: "the machine gets another address",
    act: (lab) => lab.changeAddress("alder"),
    within: AFTER_WORD,
    ends: "direct",
  },
  {
    name: "the machine is carried to another network",
    act: (lab) => lab.changeAddress("alder", { site: "fern" }),
    within: AFTER_WORD,
    ends: "direct",
  },
  {
    name: "and back again",
    act: (lab) => lab.changeAddress("alder", { site: "alder" }),
    within: AFTER_WORD,
    ends: "direct",
  },
  {
    name: "the machine gets an address more, as with IPv6 privacy addresses",
    act: async (lab) => {
      await lab.host("alder").exec("ip", ["addr", "add", "10.200.200.7/24", "dev", HOST_INTERFACE]);
    },
    within: 0,
    ends: "direct",
    unnoticed: true,
  },
  { name: "UDP is blocked", act: (lab) => lab.blockUdp("alder", true), within: AFTER_SILENCE, ends: "relay" },
  {
    name: "UDP passes again, and nothing else changed",
    act: async (lab) => {
      // Longer than a search for a direct way lasts.
      await sleep(SEARCH);
      await lab.blockUdp("alder", false);
    },
    within: 0,
    ends: "direct",
    watch: SEARCH + PROBE,
  },
  { name: "UDP is blocked again", act: (lab) => lab.blockUdp("alder", true), within: AFTER_SILENCE, ends: "relay" },
  {
    name: "UDP passes again in another network",
    act: async (lab) => {
      await lab.blockUdp("alder", false);
      await lab.changeAddress("alder");
    },
    within: AFTER_WORD,
    ends: "direct",
  },
  {
    name: "the link is cut for a second and a half",
    act: async (lab) => {
      await lab.cut("alder");
      await sleep(1500);
      await lab.restore("alder");
    },
    within: 1500 + AFTER_SILENCE,
    ends: "direct",
    watch: 4000,
  },
];

describe("the path of a pair changes under traffic", { skip: await skipWithoutLab() }, () => {
  let lab: Lab;
  let network: PerchNetwork;
  let pair: WakePair;

  before(async () => {
    const site = (name: string) => ({ name, latencyMs: 10 });
    lab = await createLab({
      sites: [site("hub"), ...["alder", "birch", "fern"].map((name) => ({ ...site(name), nat: NAT.portRestricted }))],
      hosts: ["hub", "alder", "birch"].map((name) => ({ name, site: name })),
    });
    network = await PerchNetwork.start(lab, { server: "hub", agents: ["alder", "birch"] });
    pair = await WakePair.start(network, "alder", "birch");
  });

  after(async () => {
    await pair?.[Symbol.asyncDispose]();
    await network?.close();
    await lab?.close();
  });

  /** A datagram each way every 10 ms, each echoed. */
  const startFlows = (): Flow[] => [
    pair.from.traffic.flow(pair.to.agent.address, { settleMs: 500 }),
    pair.to.traffic.flow(pair.from.agent.address, { settleMs: 500 }),
  ];

  const direct = (): Promise<unknown> => Promise.all([pair.direct(pair.from), pair.direct(pair.to)]);

  /** When an end's packets last took another path, on the lab's clock. */
  async function lastPathChange(end: WakeEnd): Promise<Millis> {
    const entry = (await pair.story(end)).findLast(({ event }) => event === "path");
    return labNow() - (Date.now() - (entry?.at ?? 0));
  }

  test(`${TAKEOVERS} times direct takes over from the relay: nothing lost, nothing twice`, {
    timeout: 120_000,
  }, async (t) => {
    const reports: FlowReport[] = [];
    for (let takeover = 0; takeover < TAKEOVERS; takeover++) {
      await pair.sleep();
      // A GO_IDLE under way would cross with the next wake.
      await sleep(200);
      const flows = startFlows();
      await sleep(50);
      await direct();
      await sleep(200);
      for (const record of await Promise.all(flows.map((flow) => flow.stop()))) reports.push(reportFlow(record));
    }
    const sum = (of: (report: FlowReport) => number) => reports.reduce((total, report) => total + of(report), 0);
    const overtaken = Math.max(...reports.map(({ overtakenMs }) => overtakenMs));
    t.diagnostic(`${sum(({ sent }) => sent)} datagrams, one overtaken by at most ${overtaken.toFixed(0)} ms`);
    assert.deepEqual(
      { lost: sum(({ lost }) => lost), twice: sum(({ duplicates }) => duplicates) },
      { lost: 0, twice: 0 },
    );
    assert.ok(overtaken <= ONE_FLIGHT, `a datagram was overtaken by ${overtaken} ms`);
  });

  for (const change of CHANGES) {
    test(change.name, { timeout: 30_000 }, (t) => goThrough(change, t));
  }

  async function goThrough({ act, within, ends, watch = WATCH, unnoticed }: Change, t: TestContext): Promise<void> {
    const told = async (): Promise<unknown> => [await pair.story(pair.from), await pair.story(pair.to)];
    const before = await told();
    const flows = startFlows();
    await sleep(500);
    const event = labNow();
    await act(lab);
    await sleep(event + watch - labNow());
    if (ends === "direct") await direct();
    const changedAt = Math.max(await lastPathChange(pair.from), await lastPathChange(pair.to));
    t.diagnostic(`last change of path after ${(changedAt - event).toFixed(0)} ms`);
    await sleep(200);
    const reports = (await Promise.all(flows.map((flow) => flow.stop()))).map((record) => reportFlow(record));
    for (const [index, report] of reports.entries()) {
      const [from, to] = index === 0 ? ["alder", "birch"] : ["birch", "alder"];
      const runs = report.runs.map((run) => `${(run.from - event).toFixed(0)}..${(run.to - event).toFixed(0)} ms`);
      t.diagnostic(`${from} to ${to}: ${report.lost} of ${report.sent} lost, sent ${runs.join(", ") || "-"}`);
    }
    const stories = await Promise.all([pair.story(pair.from), pair.story(pair.to)]);
    const text = stories
      .map((story) => story.map(({ at, event, detail }) => `${at.toFixed(0)} ${event} ${detail}`).join("; "))
      .join("\n");
    for (const report of reports) {
      assert.equal(report.duplicates, 0);
      assert.ok(outageAfter(report, event) <= (within ?? 0), `${outageAfter(report, event)} ms without data\n${text}`);
      // What is sent after the evidence moved the packets arrives.
      const late = report.runs.filter(({ to }) => to > changedAt + CHANGE);
      assert.deepEqual(late, [], `lost after the last change of path\n${text}`);
    }
    const path = pair.peerOf(pair.from)?.path?.path.case;
    assert.equal(path, ends);
    if (unnoticed) assert.deepEqual(await told(), before);
  }

  test("an agent that is killed leaves no helper behind", async () => {
    await pair[Symbol.asyncDispose]();
    const { namespace } = lab.host("alder");
    assert.ok(processesIn([namespace]).length > 0);
    await network.agent("alder").stop("SIGKILL");
    await waitUntil(() => processesIn([namespace]).length === 0, "an empty namespace", 3000);
  });
});
