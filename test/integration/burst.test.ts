import assert from "node:assert/strict";
import { resolve } from "node:path";
import { after, before, describe, type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { createLab, type Lab } from "../../lab/lab.ts";
import { PerchNetwork } from "../../lab/perch-network.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import { WakeEnd, WakePair } from "../../lab/wake-pair.ts";
import { THREE_NATS } from "./three-nats.ts";

const PORT = 7100;
const PROGRAM = resolve(import.meta.dirname, "udp-burst.py");
/** IPv4 and UDP. */
const HEADERS = 28;
const SINK_TIMEOUT_S = 6;

interface Received {
  readonly received: number;
  readonly duplicates: number;
  readonly outOfOrder: number;
  readonly lowest: number;
  readonly highest: number;
  readonly tookMs: number;
}

interface Burst {
  readonly name: string;
  readonly packets: number;
  /** Each, with its headers. */
  readonly bytes: number;
}

const BURSTS: readonly Burst[] = [
  { name: "1,000 packets of 200 B", packets: 1000, bytes: 200 },
  // Larger than the tunnel's MTU of 1280: two fragments each, which the program's system joins again.
  { name: "1 MB in packets of 1,400 B", packets: 715, bytes: 1400 },
];

describe("a burst into a sleeping peer", { skip: await skipWithoutLab() }, () => {
  let lab: Lab;
  let network: PerchNetwork;
  const ends = new Map<string, WakeEnd>();
  const pairs = new Map<string, WakePair>();

  before(async () => {
    lab = await createLab(THREE_NATS);
    network = await PerchNetwork.start(lab, { server: "hub", agents: ["alder", "birch", "cedar"] });
    for (const name of ["alder", "birch", "cedar"]) ends.set(name, await WakeEnd.start(network.agent(name)));
    pairs.set("direct", await WakePair.of(ends.get("alder")!, ends.get("birch")!));
    pairs.set("relayed", await WakePair.of(ends.get("alder")!, ends.get("cedar")!));
  });

  after(async () => {
    for (const end of ends.values()) await end[Symbol.asyncDispose]();
    await network?.close();
    await lab?.close();
  });

  /** Sends all at once into the sleeping pair; what came out at the other end. */
  async function burst(pair: WakePair, { packets, bytes }: Burst): Promise<Received> {
    const { from, to } = pair;
    await pair.sleep();
    // A GO_IDLE under way would cross with the wake.
    await sleep(200);
    const sink = to.agent.host.spawn("python3", [PROGRAM, "sink", `${PORT}`, `${packets}`, `${SINK_TIMEOUT_S}`], {
      stdio: ["ignore", "pipe", "inherit"],
    });
    const ready = Promise.withResolvers<void>();
    const ended = Promise.withResolvers<void>();
    let output = "";
    sink.stdout!.setEncoding("utf8").on("data", (text: string) => {
      output += text;
      if (output.startsWith("ready")) ready.resolve();
    });
    sink.on("close", () => ended.resolve());
    await ready.promise;
    const sent = await from.agent.host.exec("python3", [
      PROGRAM,
      ...["send", to.agent.address, `${PORT}`, `${packets}`, `${bytes - HEADERS}`],
    ]);
    assert.equal(sent.code, 0, sent.stderr);
    await ended.promise;
    return JSON.parse(output.replace(/^ready\s*/, "")) as Received;
  }

  async function counters(name: string): Promise<Readonly<Record<string, number>>> {
    const status = JSON.parse(await network.agent(name).mustPerch(["status", "--json"])) as {
      readonly perch: { readonly counters: Readonly<Record<string, number>> };
    };
    return status.perch.counters;
  }

  async function dropped(...names: readonly string[]): Promise<string> {
    const lines: string[] = [];
    for (const name of names) {
      for (const [counter, value] of Object.entries(await counters(name)))
        if (/drop/.test(counter) && value > 0) lines.push(`${name} ${counter} ${value}`);
    }
    return lines.join(", ");
  }

  for (const path of ["direct", "relayed"]) {
    for (const one of BURSTS) {
      test(`${one.name}, ${path}: all delivered once and in order`, { timeout: 40_000 }, async (t: TestContext) => {
        const pair = pairs.get(path)!;
        const { received, duplicates, outOfOrder, tookMs } = await burst(pair, one);
        t.diagnostic(`${received} delivered within ${tookMs?.toFixed(0)} ms of the first`);
        assert.deepEqual(
          { received, duplicates, outOfOrder },
          { received: one.packets, duplicates: 0, outOfOrder: 0 },
          await dropped(pair.from.agent.name, pair.to.agent.name),
        );
      });
    }
  }

  test("what exceeds 1 MiB is counted, and status shows it", { timeout: 40_000 }, async (t) => {
    const packets = 2000;
    const { received, highest } = await burst(pairs.get("direct")!, { name: "2.4 MB", packets, bytes: 1200 });
    const counted = (await counters("alder"))["drop-staged-peer-full"] ?? 0;
    t.diagnostic(`${received} of ${packets} delivered, ${counted} counted`);
    assert.ok(counted > 0);
    assert.equal(received + counted, packets);
    // The oldest make room for the newest.
    assert.equal(highest, packets - 1);
    assert.match(await network.agent("alder").mustPerch(["status", "-d"]), /drop-staged-peer-full +\d+/);
  });
});
