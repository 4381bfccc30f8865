import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { parsePrefix } from "#base/ip.ts";
import type { FilterRule, SourceRule } from "#wireguard/filter.ts";
import { root } from "./data-plane/checks.ts";
import {
  Chatter,
  Download,
  FAMILIES,
  fromPeer,
  openTcp,
  openUdp,
  PEER,
  type Place,
  refusedUdp,
  SILENCE_MS,
  script,
  serve,
  tcpTo,
  UdpTalker,
  udpTo,
} from "./filter-traffic.ts";
import { FilteredCable } from "./nft/cable.ts";

async function filtered(cable: FilteredCable, ...rules: SourceRule[]): Promise<void> {
  cable.rules.set({ inbound: fromPeer(...rules), otherwise: "drop" });
  await cable.rules.settled();
}

test(
  "by nftables, a port that a rule opens answers, others are silent, and what this machine asks is answered",
  root,
  async () => {
    await using cable = await FilteredCable.start();
    const { a, b } = cable;
    await Promise.all([serve(a, 7001), serve(b, 7001, 7002)]);
    await filtered(cable, openTcp(7001), openUdp(7002));
    for (const [to, from] of FAMILIES) {
      assert.deepEqual(
        await Promise.all([
          tcpTo(a, to, 7001),
          tcpTo(a, to, 7002, SILENCE_MS),
          udpTo(a, to, 7001, 100, SILENCE_MS),
          udpTo(a, to, 7002),
          udpTo(a, to, 7002, 9000),
          tcpTo(b, from, 7001),
          tcpTo(b, from, 7009),
          udpTo(b, from, 7001),
          udpTo(b, from, 7001, 9000),
        ]),
        ["connected", "silence", -1, 100, 9000, "connected", "refused", 100, 9000],
      );
      await b.exec("ping", "-c", "1", "-W", "5", from);
      await assert.rejects(a.exec("ping", "-c", "1", "-W", "0.3", to), "no rule lets a ping in");
      assert.equal(await refusedUdp(b, from), "ECONNREFUSED");
    }
  },
);

test(
  "by nftables, a change of the rules ends the connections that they do not allow any more, and no others",
  root,
  async () => {
    await using cable = await FilteredCable.start();
    const { a, b } = cable;
    await serve(b, 7001, 7002);
    await filtered(cable, openTcp(7001), openTcp(7002));
    const chatter = new Chatter(a, "10.77.0.2", 7001, 7002);
    assert.deepEqual([await chatter.grows(0), await chatter.grows(1)], [true, true]);
    cable.rules.setSource(PEER[0]!, [openTcp(7001)]);
    await cable.rules.settled();
    await sleep(200);
    const closed = chatter.count(1);
    assert.equal(await chatter.grows(0), true);
    assert.equal(chatter.count(1), closed, "nothing comes back of the connection that is not allowed");
    cable.rules.setSource(PEER[0]!, [openTcp(7001), openTcp(7002)]);
    assert.deepEqual([await chatter.grows(0), await chatter.grows(1)], [true, true], "the kernels kept the connection");
    cable.rules.set(undefined);
    await cable.rules.settled();
    assert.deepEqual([await chatter.grows(0), await chatter.grows(1)], [true, true]);
  },
);

test(
  "of connections older than the rules those to a service are for the rules, those of a program go on",
  root,
  async () => {
    await using cable = await FilteredCable.start();
    const { a, b } = cable;
    await Promise.all([serve(a, 7001), serve(b, 7001, 7002)]);
    const inbound = new Chatter(a, "10.77.0.2", 7001, 7002);
    const outbound = new Chatter(b, "10.77.0.1", 7001);
    assert.deepEqual([await inbound.grows(0), await inbound.grows(1), await outbound.grows(0)], [true, true, true]);
    await filtered(cable, openTcp(7001));
    assert.deepEqual([await outbound.grows(0), await inbound.grows(0)], [true, true]);
    await sleep(200);
    const closed = inbound.count(1);
    assert.equal(await outbound.grows(0), true);
    assert.equal(inbound.count(1), closed);
  },
);

const ALL: SourceRule = { protocol: "all", verdict: "accept" };
/** Everything, but only to the host's own addresses: what a network's default policy comes to. */
const everything = (): FilterRule[] =>
  PEER.map((source, index) => ({ ...ALL, source, destination: parsePrefix(FAMILIES[index]![0]) }));

async function open(cable: FilteredCable): Promise<void> {
  cable.rules.set({ inbound: everything(), otherwise: "drop" });
  await cable.rules.settled();
  assert.equal(cable.rules.counters().get("filter-tracked"), 0);
}

/** What the kernel's connection tracking knows of on a host. */
const tracked = async (on: Place): Promise<number> =>
  Number(await on.exec("cat", "/proc/sys/net/netfilter/nf_conntrack_count"));

test(
  "while everybody may do everything the kernel tracks no connections, and stops when that is so again",
  root,
  async () => {
    await using cable = await FilteredCable.start();
    const { a, b } = cable;
    await Promise.all([serve(a, 7001), serve(b, 7001)]);
    const bothWays = async (): Promise<void> => {
      for (const [to, from] of FAMILIES) {
        const answers = [
          tcpTo(a, to, 7001),
          udpTo(a, to, 7001, 9000),
          tcpTo(b, from, 7001),
          udpTo(b, from, 7001, 9000),
        ];
        assert.deepEqual(await Promise.all<number | string>(answers), ["connected", 9000, "connected", 9000]);
        await Promise.all([b.exec("ping", "-c", "1", "-W", "5", from), a.exec("ping", "-c", "1", "-W", "5", to)]);
        assert.equal(await refusedUdp(b, from), "ECONNREFUSED");
        assert.equal(await refusedUdp(a, to), "ECONNREFUSED");
      }
    };
    await open(cable);
    await bothWays();
    assert.equal(await tracked(b), 0);
    await filtered(cable, openTcp(7001), openUdp(7001), { protocol: "icmp", verdict: "accept" });
    assert.equal(cable.rules.counters().get("filter-tracked"), 1);
    assert.equal(await tcpTo(a, FAMILIES[0][0], 7001), "connected");
    const known = await tracked(b);
    assert.ok(known > 0);
    await open(cable);
    await bothWays();
    assert.ok((await tracked(b)) <= known, "it knows no more than before");
    assert.doesNotMatch(await b.exec("nft", "list", "ruleset"), /\bct\b/);
    // The firewall of the machine is loaded anew.
    await b.exec("nft", "flush", "ruleset");
    let rules = "";
    for (let i = 0; i < 100 && !rules.includes("perch"); i++) {
      await sleep(50);
      rules = await b.exec("nft", "list", "ruleset");
    }
    assert.match(rules, /perch/);
    assert.doesNotMatch(rules, /\bct\b/);
  },
);

test(
  "flows that began while everybody might do everything end with that where the rules say so, and nowhere else",
  root,
  async () => {
    await using cable = await FilteredCable.start();
    const { a, b } = cable;
    const [to, from] = FAMILIES[0];
    await Promise.all([serve(a, 7001), serve(b, 7001, 7002, 40_002)]);
    await open(cable);
    const inbound = new Chatter(a, to, 7001, 7002, 40_002);
    const outbound = new Chatter(b, from, 7001);
    const download = await Download.start(b, a, from, 7003);
    // Who sends first begins the flow.
    const ours = new UdpTalker(b, 40_011, from, 7011);
    const theirs = new UdpTalker(a, 7012, to, 40_012);
    await sleep(500);
    const ourPeer = new UdpTalker(a, 7011, to, 40_011);
    const theirService = new UdpTalker(b, 40_012, from, 7012);
    const isUp = (): Promise<boolean[]> =>
      Promise.all([
        inbound.grows(0),
        inbound.grows(1),
        inbound.grows(2),
        outbound.grows(0),
        download.grows(),
        ...[ours, ourPeer, theirs, theirService].map((talker) => talker.grows()),
      ]);
    for (let time = 0; time < 2; time++) {
      assert.deepEqual(await isUp(), Array(9).fill(true));
      await filtered(cable, openTcp(7001));
      await sleep(200);
      const closed = [inbound.count(1), inbound.count(2), theirService.count];
      const goOn = [inbound.grows(0), outbound.grows(0), download.grows(), ours.grows(), ourPeer.grows()];
      assert.deepEqual(await Promise.all(goOn), Array(5).fill(true));
      assert.deepEqual([inbound.count(1), inbound.count(2), theirService.count], closed);
      assert.equal(await tcpTo(a, to, 7002, SILENCE_MS), "silence");
      await open(cable);
    }
    assert.deepEqual(await isUp(), Array(9).fill(true));
  },
);

test("what others send through this machine is answered while nothing else comes in for them", root, async () => {
  await using cable = await FilteredCable.start();
  const { a, b } = cable;
  const other = "10.99.0.2";
  await b.exec("ip", "address", "add", `${other}/32`, "dev", "lo");
  await a.exec("ip", "route", "add", `${other}/32`, "via", FAMILIES[0][0]);
  await Promise.all([serve(a, 7001), serve(b, 7001)]);
  await open(cable);
  const [, from] = FAMILIES[0];
  const asked = `
    const socket = require("node:dgram").createSocket("udp4");
    socket.on("message", () => { console.log('"answered"'); process.exit(); });
    socket.bind(0, "${other}", () => socket.send("x", 7001, "${from}"));
    setTimeout(() => { console.log('"silence"'); process.exit(); }, 8000);`;
  const connected = `
    const net = require("node:net");
    const end = (what) => { console.log(JSON.stringify(what)); process.exit(); };
    net.connect({ port: 7001, host: "${from}", localAddress: "${other}" }, () => end("answered"));
    setTimeout(() => end("silence"), 8000);`;
  assert.deepEqual(await Promise.all([script(b, asked), script(b, connected)]), ["answered", "answered"]);
  assert.deepEqual(await Promise.all([tcpTo(a, other, 7001, SILENCE_MS), udpTo(a, other, 7001, 100, SILENCE_MS)]), [
    "silence",
    -1,
  ]);
});
