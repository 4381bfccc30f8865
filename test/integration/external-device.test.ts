import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import type { TimelineEntry } from "#gen/daemon_pb.ts";
import { forgetSessions } from "../../lab/foreign-session.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { NAT } from "../../lab/nat.ts";
import { PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { hostPerSite } from "../../lab/topology.ts";
import { type WakeEnd, WakePair } from "../../lab/wake-pair.ts";

/** Cold wakes for each pair. */
const WAKES = Number(process.env.PERCH_EXTERNAL_WAKES ?? 3);
/** Sooner than WireGuard's own retry, 5 s, which no user may ever wait for. */
const NO_RETRY_MS = 4000;

const SITES = hostPerSite({
  hub: {},
  alder: { nat: NAT.portRestricted },
  birch: { nat: NAT.addressRestricted },
  cedar: { nat: NAT.symmetric },
  dale: { nat: NAT.addressRestricted },
  elm: { nat: NAT.portRestricted },
});
const EMBEDDED: ReadonlySet<string> = new Set(["birch", "elm"]);
const AGENTS = ["alder", "birch", "cedar", "dale", "elm"];
/** Every kind of pair, and who wakes whom. */
const PAIRS = [
  ["alder", "birch", "direct"],
  ["birch", "alder", "direct"],
  ["alder", "dale", "direct"],
  ["cedar", "elm", "relay"],
  ["elm", "cedar", "relay"],
  ["alder", "cedar", "relay"],
] as const;

/** What is tested: `wireguard-go`, and `kernel` where there is one. */
const EXTERNAL = process.env.PERCH_EXTERNAL_DEVICE ?? "wireguard-go";
const deviceOf = (name: string): string => (EMBEDDED.has(name) ? "embedded" : EXTERNAL);

/** wireguard-go keeps its sockets in a folder of the machine that only root may write. */
const isRoot = process.getuid?.() === 0;

describe(`agents whose WireGuard is ${EXTERNAL}`, { skip: !isRoot && "needs root" }, () => {
  let lab: Lab;
  let network: PerchNetwork;

  before(async () => {
    lab = await createLab(SITES);
    const upFlags = (name: string): string[] => ["--device", deviceOf(name)];
    network = await PerchNetwork.start(lab, { server: "hub", agents: AGENTS, upFlags, inactivity: "3s" });
  });

  after(async () => {
    await network?.close();
    await lab?.close();
  });

  for (const [from, to, path] of PAIRS) {
    const title = `${deviceOf(from)} wakes ${deviceOf(to)}, ${path}: every packet arrives once, and sleep comes again`;
    test(title, { timeout: 60_000 + WAKES * 10_000 }, async (t) => {
      await using pair = await WakePair.start(network, from, to);
      for (let wake = 0; wake < WAKES; wake++) {
        const { result, timeline } =
          wake % 3 === 2
            ? await pair.wake("tcp", { count: 4, bytes: 1000 })
            : await pair.wake("udp", { count: wake % 3 === 0 ? 1 : 20, settleMs: 60 });
        const { sent, received, duplicates, firstMs } = result;
        assert.deepEqual({ received, duplicates }, { received: sent, duplicates: 0 }, story(timeline));
        assert.ok(firstMs < NO_RETRY_MS, `wake ${wake}: ${firstMs} ms, ${story(timeline)}`);
        if (wake === 0) {
          t.diagnostic(story(timeline));
          if (path === "direct") await pair.direct();
        }
        assert.equal(timeline.some(isDirect) && path === "relay", false, story(timeline));
        await pair.sleep();
      }
    });
  }

  test("a later wake of a pair whose sessions are over is answered directly, where its data goes then", {
    timeout: 60_000,
  }, async () => {
    await using pair = await WakePair.start(network, "alder", "dale");
    await pair.wake("udp");
    await Promise.all([pair.direct(pair.from), pair.direct(pair.to)]);
    await pair.sleep();
    await forgetSessions(pair);
    const { result } = await pair.wake("udp", { count: 20, settleMs: 60 });
    assert.deepEqual([result.received, result.duplicates], [result.sent, 0]);
    for (const end of [pair.from, pair.to]) {
      // The other end's data needs a moment to show in the device.
      await waitFor(async () => (await proofOf(pair, end)) !== undefined, "a proof", 5_000);
      assert.match((await proofOf(pair, end))!, /^handshake by \d/, story(await pair.story(end)));
    }
    await pair.sleep();
  });

  test("a ping wakes, silence puts both to sleep, and the other side wakes as well", { timeout: 60_000 }, async () => {
    await using pair = await WakePair.start(network, "alder", "birch");
    for (const end of [pair.from, pair.to]) {
      const other = end === pair.from ? pair.to : pair.from;
      const ping = await end.agent.host.exec("ping", ["-c", "3", "-i", "0.2", "-W", "4", other.agent.address]);
      assert.match(ping.stdout, /3 packets transmitted, 3 received/);
      await pair.asleep(20_000);
    }
  });

  test("status and doctor say what implements WireGuard, and doctor misses nothing of the embedded device", async () => {
    const agent = network.agent("alder");
    const detail = await agent.mustPerch(["status", "-d"]);
    assert.match(detail, new RegExp(`${EXTERNAL}, UDP port \\d+`));
    assert.match(detail, /Device: +(wireguard-go|linux) [\d.]+\S*, loopback-sockets/);
    const { perch } = JSON.parse(await agent.mustPerch(["status", "--json"]));
    assert.equal(perch.interface.device, EXTERNAL);
    const { stdout } = await agent.perch(["doctor"]);
    assert.match(stdout, new RegExp(`${EXTERNAL}, UDP port`));
    assert.doesNotMatch(stdout, /without udp-gso/);
  });

  test("while all sleep nothing is read from the device", async () => {
    const readings = async (): Promise<number> => {
      const { perch } = JSON.parse(await network.agent("alder").mustPerch(["status", "--json"]));
      return perch.counters.readings;
    };
    await waitFor(async () => {
      const before = await readings();
      await new Promise((done) => setTimeout(done, 1500));
      return (await readings()) === before;
    }, "silence");
  });
});

const isDirect = ({ event, detail }: TimelineEntry): boolean => event === "path" && detail.startsWith("direct");

/** What the last wake's handshake came by. */
async function proofOf(pair: WakePair, end: WakeEnd): Promise<string | undefined> {
  return (await pair.story(end)).find(({ event }) => event === "connected")?.detail;
}

function story(timeline: readonly TimelineEntry[]): string {
  return timeline.map(({ sinceWakeMs, event, detail }) => `${sinceWakeMs?.toFixed(0)} ${event} ${detail}`).join("; ");
}
