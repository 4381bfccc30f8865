import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { isV6, parsePrefix } from "#base/ip.ts";
import type { FilterRule, FilterRules } from "#wireguard/filter.ts";
import { describeRules, FilterModel, type Packet } from "#wireguard/worker/filter-model.ts";
import { root } from "./data-plane/checks.ts";
import { PacketPlayer } from "./nft/packet-player.ts";

const LOCAL = "100.64.0.1";
const REMOTE = "100.64.0.2";
const OTHER = "100.64.1.9";
const LOCAL6 = "fd00::1";
const REMOTE6 = "fd00::2";
const ADDRESSES = [`${LOCAL}/10`, `${LOCAL6}/8`];

const end = fc.constantFrom(
  { local: LOCAL, remote: REMOTE },
  { local: LOCAL, remote: OTHER },
  { local: LOCAL6, remote: REMOTE6 },
);
const direction = fc.constantFrom("in" as const, "out" as const);
const port = fc.constantFrom(22, 80, 40_000);

/** The beginning of connections; and of older ones, what is seen first, at ports of services. */
const tcp: fc.Arbitrary<Packet> = fc
  .oneof(
    fc.record({
      way: fc.constant("in" as const),
      ends: end,
      localPort: port,
      remotePort: fc.constant(1000),
      flags: fc.constant("S"),
    }),
    fc.record({
      way: fc.constant("out" as const),
      ends: end,
      localPort: port,
      remotePort: fc.constant(1001),
      flags: fc.constant("S"),
    }),
    fc.record({
      way: direction,
      ends: end,
      localPort: fc.constantFrom(22, 80),
      remotePort: fc.constant(1002),
      flags: fc.constant("A"),
    }),
  )
  .map(({ way, ends, ...body }): Packet => ({ direction: way, ...ends, body: { kind: "tcp", ...body } }));

const others: fc.Arbitrary<Packet> = fc
  .record({
    way: direction,
    ends: end,
    body: fc.oneof(
      { weight: 3, arbitrary: fc.record({ kind: fc.constant("udp" as const), localPort: port, remotePort: port }) },
      fc.record({ kind: fc.constantFrom("question" as const, "answer" as const), id: fc.nat(1) }),
      fc.record({ kind: fc.constant("redirect" as const) }),
      fc.record({ kind: fc.constant("other" as const), protocol: fc.constantFrom(47, 50) }),
    ),
  })
  .map(({ way, ends, body }) => ({ direction: way, ...ends, body }));

const plain = fc.oneof({ weight: 2, arbitrary: tcp }, { weight: 5, arbitrary: others });

/** Not about older connections: the kernel knows that there is one, the model knows nothing. */
const quoted = plain.filter(({ body }) => body.kind !== "tcp" || body.flags === "S");
const error: fc.Arbitrary<Packet> = fc.tuple(end, quoted).map(([ends, about]): Packet => {
  // An error quotes a packet of its own family.
  const isOfOne = isV6(parsePrefix(ends.local).address) === isV6(parsePrefix(about.local).address);
  return {
    direction: "in",
    ...(isOfOne ? ends : { local: about.local, remote: about.remote }),
    body: { kind: "error", about },
  };
});

const someRule: fc.Arbitrary<FilterRule> = fc
  .record({
    verdict: fc.constantFrom("accept" as const, "accept" as const, "drop" as const),
    protocol: fc.constantFrom("all" as const, "tcp" as const, "udp" as const, "icmp" as const),
    source: fc.constantFrom(`${REMOTE}/32`, "100.64.0.0/16", "0.0.0.0/0", `${REMOTE6}/128`, "fd00::/8", "::/0"),
    toLocal: fc.boolean(),
    ports: fc.option(fc.constantFrom({ first: 22, last: 22 }, { first: 0, last: 80 }, { first: 0, last: 65_535 }), {
      nil: undefined,
    }),
  })
  .map(({ verdict, protocol, source, toLocal, ports }) => ({
    verdict,
    protocol,
    source: parsePrefix(source),
    ...(toLocal ? { destination: parsePrefix(source.includes(":") ? `${LOCAL6}/128` : `${LOCAL}/32`) } : {}),
    ...(ports && protocol !== "icmp" ? { ports } : {}),
  }));
const someRules: fc.Arbitrary<FilterRules> = fc.record({
  inbound: fc.array(someRule, { maxLength: 6 }),
  otherwise: fc.constantFrom("drop" as const, "drop" as const, "accept" as const),
});

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
    for (const [at, packet] of packets.entries()) {
      const said = `part ${index}, packet ${at}, ${JSON.stringify(packet)}, ${describeRules(rules)}`;
      assert.equal(passed[at], model.take(packet), said);
    }
  }
}

const RUNS = Number(process.env.PERCH_NFT_RUNS ?? 40);

async function startPlayer(): Promise<PacketPlayer> {
  const player = await PacketPlayer.start(ADDRESSES);
  player.rules.events.on("failed", ({ reason }) => assert.fail(reason));
  return player;
}

test("the kernel's table lets in what the model of the filter does", { ...root, timeout: 300_000 }, async () => {
  await using player = await startPlayer();
  const packets = fc.array(fc.oneof({ weight: 6, arbitrary: plain }, { weight: 1, arbitrary: error }), {
    minLength: 10,
    maxLength: 120,
  });
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
  const part = fc.record({ rules: someRules, packets: fc.array(plain, { minLength: 5, maxLength: 50 }) });
  await fc.assert(
    fc.asyncProperty(fc.array(part, { minLength: 2, maxLength: 4 }), (parts) => compare(player, parts)),
    { numRuns: Math.ceil(RUNS / 3) },
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
