import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { parsePrefix } from "#base/ip.ts";
import { OpenSources, type RuleForm } from "#wireguard/external/open-sources.ts";
import { type FilterRule, type FilterRules, groupBySource } from "#wireguard/filter.ts";
import {
  LOCAL,
  LOCAL6,
  OTHER,
  REMOTE,
  REMOTE6,
  sampleDirection,
  sampleEnds,
  sampleErrors,
  sampleOpenRules,
  sampleOthers,
  samplePort,
  sampleRules,
} from "#wireguard/testing/filter-samples.ts";
import { describeRules, FilterModel, type Packet } from "#wireguard/worker/filter-model.ts";
import { root } from "./data-plane/checks.ts";
import { PacketPlayer } from "./nft/packet-player.ts";

const PEERS = [`${REMOTE}/32`, `${OTHER}/32`, `${REMOTE6}/128`].map(parsePrefix);
const ADDRESSES = [`${LOCAL}/10`, `${LOCAL6}/8`];

/** The beginning of connections; and of older ones, what is seen first, at ports of services. */
const tcp: fc.Arbitrary<Packet> = fc.oneof(
  tcpOf({ way: fc.constant("in"), remotePort: 1000, localPort: samplePort, flags: fc.constant("S") }),
  tcpOf({ way: fc.constant("out"), remotePort: 1001, localPort: samplePort, flags: fc.constant("S") }),
  tcpOf({ way: sampleDirection, remotePort: 1002, localPort: fc.constantFrom(22, 80), flags: fc.constant("A") }),
);

interface TcpSamples {
  readonly way: fc.Arbitrary<Packet["direction"]>;
  readonly remotePort: number;
  readonly localPort: fc.Arbitrary<number>;
  readonly flags: fc.Arbitrary<string>;
}

function tcpOf({ way, remotePort, ...body }: TcpSamples): fc.Arbitrary<Packet> {
  return fc
    .tuple(way, sampleEnds, fc.record(body))
    .map(([direction, ends, some]) => ({ direction, ...ends, body: { kind: "tcp", remotePort, ...some } }));
}

const plain = fc.oneof({ weight: 2, arbitrary: tcp }, { weight: 5, arbitrary: sampleOthers });
/** Not about older connections: the kernel knows that there is one, the model knows nothing. */
const error = sampleErrors(plain.filter(({ body }) => body.kind !== "tcp" || body.flags === "S"));

function formOf({ inbound, otherwise }: FilterRules): RuleForm {
  const sources = new OpenSources();
  sources.movePrefixes([], PEERS);
  sources.otherwise = otherwise;
  for (const { source, rules } of groupBySource(inbound).values()) sources.setRules(source, rules);
  return sources.form;
}

/** Rules that need to know who began a flow. */
const closedRules = sampleRules.filter((rules) => formOf(rules) === "tracked");

/** Plays the packets of each part under its rules, in the kernel and in the model. */
async function compare(
  player: PacketPlayer,
  parts: readonly { rules: FilterRules; packets: readonly Packet[] }[],
): Promise<void> {
  player.forgetFlows();
  const model = new FilterModel(parts[0]!.rules);
  for (const [index, { rules, packets }] of parts.entries()) {
    player.rules.set(rules);
    await player.rules.settled();
    if (index > 0) model.rules = rules;
    const passed = await player.play(packets);
    if (index === 0 && formOf(rules) === "open") player.forgetTracking();
    for (const [at, packet] of packets.entries()) {
      const said = `part ${index}, packet ${at}, ${JSON.stringify(packet)}, ${describeRules(rules)}`;
      assert.equal(passed[at], model.take(packet), said);
    }
  }
}

const RUNS = Number(process.env.PERCH_NFT_RUNS ?? 40);

async function startPlayer(): Promise<PacketPlayer> {
  const player = await PacketPlayer.start(ADDRESSES, PEERS);
  player.rules.events.on("failed", ({ reason }) => assert.fail(reason));
  return player;
}

test("the kernel's table lets in what the model of the filter does", { ...root, timeout: 300_000 }, async () => {
  await using player = await startPlayer();
  const packets = fc.array(fc.oneof({ weight: 6, arbitrary: plain }, { weight: 1, arbitrary: error }), {
    minLength: 10,
    maxLength: 120,
  });
  const someRules = fc.oneof({ weight: 3, arbitrary: sampleRules }, { weight: 1, arbitrary: sampleOpenRules });
  await fc.assert(
    fc.asyncProperty(someRules, packets, (rules, some) => compare(player, [{ rules, packets: some }])),
    { numRuns: RUNS },
  );
});

test("a change of the rules holds from the next packet on, for flows that are known too", {
  ...root,
  timeout: 300_000,
}, async () => {
  await using player = await startPlayer();
  // Without errors: the kernel lets one in about any flow that is known, also one that the rules have ended.
  const part = fc.record({ rules: closedRules, packets: fc.array(plain, { minLength: 5, maxLength: 50 }) });
  await fc.assert(
    fc.asyncProperty(fc.array(part, { minLength: 2, maxLength: 4 }), (parts) => compare(player, parts)),
    { numRuns: Math.ceil(RUNS / 3) },
  );
});

interface SampleFlow {
  readonly kind: "tcp" | "udp";
  readonly beganBy: Packet["direction"];
  readonly ends: { readonly local: string; readonly remote: string };
  readonly localPort: number;
}

const sampleFlow: fc.Arbitrary<SampleFlow> = fc.record({
  kind: fc.constantFrom("tcp" as const, "udp" as const),
  beganBy: sampleDirection,
  ends: sampleEnds,
  localPort: samplePort,
});

test("of flows that began while everybody might do everything it is known who began them when that ends", {
  ...root,
  timeout: 300_000,
}, async () => {
  await using player = await startPlayer();
  const packet = (
    { kind, ends, localPort }: SampleFlow,
    index: number,
    direction: "in" | "out",
    flags = "A",
  ): Packet => {
    const ports = { localPort, remotePort: 2000 + index };
    return { direction, ...ends, body: kind === "tcp" ? { kind, ...ports, flags } : { kind, ...ports } };
  };
  const more = fc.array(fc.tuple(fc.nat(), sampleDirection), { minLength: 10, maxLength: 60 });
  const someRules = fc.oneof({ weight: 3, arbitrary: closedRules }, { weight: 1, arbitrary: sampleOpenRules });
  const laterParts = fc.array(fc.record({ rules: someRules, more }), { minLength: 1, maxLength: 3 });
  const flows = fc.array(sampleFlow, { minLength: 1, maxLength: 20 });
  await fc.assert(
    fc.asyncProperty(flows, sampleOpenRules, more, laterParts, async (some, rules, first, parts) => {
      const beginnings = some.map((flow, index) => packet(flow, index, flow.beganBy, "S"));
      const goOn = (places: readonly (readonly [number, "in" | "out"])[]): Packet[] =>
        places.map(([at, direction]) => packet(some[at % some.length]!, at % some.length, direction));
      await compare(player, [
        { rules, packets: [...beginnings, ...goOn(first)] },
        ...parts.map((part) => ({ rules: part.rules, packets: goOn(part.more) })),
      ]);
    }),
    { numRuns: Math.ceil(RUNS / 4) },
  );
});

test("an ICMP error about what this machine sent comes in, in both families, and no other", root, async () => {
  await using player = await startPlayer();
  player.rules.set({ inbound: [], otherwise: "drop" });
  await player.rules.settled();
  for (const ends of [
    { local: LOCAL, remote: REMOTE },
    { local: LOCAL6, remote: REMOTE6 },
  ]) {
    const sent: Packet = { direction: "out", ...ends, body: { kind: "udp", localPort: 40_000, remotePort: 9 } };
    const about = (localPort: number): Packet => ({
      direction: "in",
      ...ends,
      body: { kind: "error", about: { ...sent, body: { kind: "udp", localPort, remotePort: 9 } } },
    });
    assert.deepEqual(await player.play([about(40_000), sent, about(40_000), about(40_001)]), [
      false,
      true,
      true,
      false,
    ]);
  }
});

const udpFrom = (remote: string, localPort: number): Packet => ({
  direction: "in",
  local: LOCAL,
  remote,
  body: { kind: "udp", localPort, remotePort: 1000 },
});
const accept = (source: string, port: number): FilterRule => ({
  source: parsePrefix(source),
  protocol: "udp",
  ports: { first: port, last: port },
  verdict: "accept",
});

test(
  "10,000 sources are one transaction, one of them is a few lines, and all lines are gone at the end",
  root,
  async () => {
    await using player = await startPlayer();
    const sources = Array.from({ length: 10_000 }, (_, i) => `100.65.${i >> 8}.${i & 255}/32`);
    player.rules.set({ inbound: sources.map((source) => accept(source, 53)), otherwise: "drop" });
    await player.rules.settled();
    assert.equal(player.transactions.length, 1);
    const last = "100.65.39.15";
    assert.deepEqual(await player.play([udpFrom(last, 53), udpFrom(last, 54), udpFrom("100.65.39.16", 53)]), [
      true,
      false,
      false,
    ]);
    player.rules.setSource(parsePrefix(`${last}/32`), [accept(last, 54)]);
    await player.rules.settled();
    assert.equal(player.transactions.length, 2);
    assert.ok(player.transactions[1]!.trim().split("\n").length <= 5, player.transactions[1]);
    player.forgetFlows();
    assert.deepEqual(await player.play([udpFrom(last, 53), udpFrom(last, 54), udpFrom("100.65.39.14", 53)]), [
      false,
      true,
      true,
    ]);
    player.rules.counters();
    assert.ok(await waitFor(() => player.rules.counters().get("drop-filter") === 3));
    for (const source of sources) player.rules.setSource(parsePrefix(source), []);
    await player.rules.settled();
    assert.equal(player.transactions.length, 3, "what is said in one go is done in one");
    const left = player.exec("nft", "list", "table", "inet", "perch-wg9");
    assert.doesNotMatch(left, /map|list\d/);
    await player.rules.close();
    assert.doesNotMatch(player.exec("nft", "list", "ruleset"), /perch/);
    assert.match(player.exec("nft", "list", "ruleset"), /watch/, "other tables are not touched");
  },
);

test("a table that somebody flushes away is back by itself, also with a change under way", root, async () => {
  await using player = await startPlayer();
  player.rules.set({ inbound: [accept(`${REMOTE}/32`, 53)], otherwise: "drop" });
  await player.rules.settled();
  const isThere = (): boolean => player.exec("nft", "list", "tables").includes("perch-wg9");
  assert.ok(await waitFor(() => player.isWatching));
  player.nft("flush ruleset\n");
  assert.ok(await waitFor(isThere));
  await player.rules.settled();
  player.nft("delete table inet perch-wg9\n");
  player.rules.setSource(parsePrefix(`${OTHER}/32`), [accept(`${OTHER}/32`, 53)]);
  await player.rules.settled();
  assert.match(player.exec("nft", "list", "table", "inet", "perch-wg9"), /100\.64\.1\.9/);
});

async function waitFor(isTrue: () => boolean): Promise<boolean> {
  for (let i = 0; i < 100; i++) {
    if (isTrue()) return true;
    await new Promise((done) => setTimeout(done, 50));
  }
  return false;
}
