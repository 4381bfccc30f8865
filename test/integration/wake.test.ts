import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { createLab, type Lab } from "../../lab/lab.ts";
import { PerchNetwork } from "../../lab/perch-network.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import type { TrafficResult } from "../../lab/traffic.ts";
import { type WakeEnd, WakePair } from "../../lab/wake-pair.ts";
import { THREE_NATS } from "./three-nats.ts";

/** Cold wakes per path kind. */
const WAKES = Number(process.env.PERCH_TEST_WAKES ?? 100);

const ALL_DELIVERED = { lost: 0, duplicates: 0 };

function summary(results: readonly TrafficResult[]): { lost: number; duplicates: number } {
  return {
    lost: results.reduce((sum, { sent, received }) => sum + sent - received, 0),
    duplicates: results.reduce((sum, { duplicates }) => sum + duplicates, 0),
  };
}

describe("cold wakes between real agents in the lab", { skip: await skipWithoutLab() }, () => {
  let lab: Lab;
  let network: PerchNetwork;

  before(async () => {
    lab = await createLab(THREE_NATS);
    network = await PerchNetwork.start(lab, { server: "hub", agents: ["alder", "birch", "cedar"] });
  });

  after(async () => {
    await network?.close();
    await lab?.close();
  });

  for (const [path, target] of [
    ["direct", "birch"],
    ["relayed", "cedar"],
  ] as const) {
    test(`${WAKES} cold wakes on a ${path} pair deliver every packet once`, { timeout: 300_000 }, async (t) => {
      await using pair = await WakePair.start(network, "alder", target);
      const results: TrafficResult[] = [];
      const slow: string[] = [];
      for (let wake = 0; wake < WAKES; wake++) {
        const { result, timeline } =
          wake % 3 === 2
            ? await pair.wake("tcp", { count: 4, bytes: 1000 })
            : await pair.wake("udp", { count: wake % 3 === 0 ? 1 : 20, settleMs: 60 });
        results.push(result);
        // A lost first packet of TCP shows as its retransmission after a second, a lost handshake as WireGuard's after five.
        if (!(result.firstMs < 1000)) slow.push(`wake ${wake}: ${result.firstMs} ms, ${story(timeline)}`);
        if (path === "direct" && wake === 0) await pair.direct();
        await pair.sleep();
      }
      const first = results.map(({ firstMs }) => firstMs).sort((a, b) => a - b);
      t.diagnostic(
        `first reply: median ${first[first.length >> 1]?.toFixed(0)} ms, worst ${first.at(-1)?.toFixed(0)} ms`,
      );
      assert.deepEqual(summary(results), ALL_DELIVERED);
      assert.deepEqual(slow, []);
    });
  }

  test(`${WAKES} wakes from both sides in the same instant deliver every packet once`, {
    timeout: 300_000,
  }, async (t) => {
    await using pair = await WakePair.start(network, "alder", "birch");
    const results: TrafficResult[] = [];
    for (let wake = 0; wake < WAKES; wake++) {
      const send = (end: WakeEnd) => pair.wake("udp", { count: 5, intervalMs: 20, settleMs: 60 }, end);
      const both = await Promise.all([send(pair.from), send(pair.to)]);
      for (const { result, timeline } of both) {
        results.push(result);
        assert.ok(result.firstMs < 1000, `wake ${wake}: ${result.firstMs} ms, ${story(timeline)}`);
      }
      await pair.sleep();
    }
    const first = results.map(({ firstMs }) => firstMs).sort((a, b) => a - b);
    t.diagnostic(
      `first reply: median ${first[first.length >> 1]?.toFixed(0)} ms, worst ${first.at(-1)?.toFixed(0)} ms`,
    );
    assert.deepEqual(summary(results), ALL_DELIVERED);
  });
});

function story(timeline: Awaited<ReturnType<WakePair["story"]>>): string {
  return timeline.map(({ sinceWakeMs, event, detail }) => `${sinceWakeMs?.toFixed(0)} ${event} ${detail}`).join("; ");
}
