import assert from "node:assert/strict";
import { test } from "node:test";
import { parsePrefix } from "#base/ip.ts";
import type { FilterRules, SourceRule } from "#wireguard/filter.ts";
import { ping, root } from "./data-plane/checks.ts";
import { type End, Pair } from "./data-plane/pair.ts";
import { ANSWER_MS, SILENCE_MS, script, serve, tcpTo, udpTo } from "./filter-traffic.ts";

const V4 = parsePrefix("10.77.0.1/32");
const V6 = parsePrefix("fd77::1/128");

/** `b` takes from `a` what the rules accept and nothing else. */
async function filtered(pair: Pair, ...rules: SourceRule[]): Promise<void> {
  const inbound = [V4, V6].flatMap((source) => rules.map((rule) => ({ ...rule, source })));
  await pair.b.call("setFilter", { inbound, otherwise: "drop" } satisfies FilterRules);
}

const tcp = (port: number): SourceRule => ({ protocol: "tcp", ports: { first: port, last: port }, verdict: "accept" });
const udp = (port: number): SourceRule => ({ protocol: "udp", ports: { first: port, last: port }, verdict: "accept" });
const drops = async (end: End): Promise<number> => (await end.counters())["drop-filter"]!;

test("a port that a rule opens answers, others are silent, and what this machine asks is answered", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  await Promise.all([serve(a, 7001), serve(b, 7001, 7002)]);
  await filtered(pair, tcp(7001), udp(7002));
  for (const [to, from] of [
    ["10.77.0.2", "10.77.0.1"],
    ["fd77::2", "fd77::1"],
  ] as const) {
    assert.deepEqual(
      await Promise.all([
        tcpTo(a, to, 7001),
        tcpTo(a, to, 7002, SILENCE_MS),
        udpTo(a, to, 7001, 100, SILENCE_MS),
        udpTo(a, to, 7002),
        tcpTo(b, from, 7001),
        tcpTo(b, from, 7009),
        udpTo(b, from, 7001),
      ]),
      ["connected", "silence", -1, 100, "connected", "refused", 100],
    );
    await ping(b, from);
    await assert.rejects(a.exec("ping", "-c", "1", "-W", "0.3", to), "no rule lets a ping in");
  }
  assert.ok((await drops(b)) >= 6);
  assert.equal(await drops(a), 0, "the other end filters nothing");
  assert.ok((await b.counters())["filter-connections"]! >= 10);
});

test("large datagrams pass in fragments both ways, and an ICMP error comes back", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  await Promise.all([serve(a, 7001), serve(b, 7002)]);
  await filtered(pair, udp(7002));
  for (const [to, from] of [
    ["10.77.0.2", "10.77.0.1"],
    ["fd77::2", "fd77::1"],
  ] as const) {
    assert.equal(await udpTo(a, to, 7002, 9000), 9000);
    assert.equal(await udpTo(b, from, 7001, 9000), 9000);
    // Nobody listens there: the error about it is an answer too.
    const error = `const s = require("node:dgram").createSocket("${from.includes(":") ? "udp6" : "udp4"}");
      s.on("error", (e) => { console.log(JSON.stringify(e.code)); process.exit(); });
      s.connect(7099, "${from}", () => s.send("x"));
      setTimeout(() => { console.log('"silence"'); process.exit(); }, ${ANSWER_MS});`;
    assert.equal(await script(b, error), "ECONNREFUSED");
  }
  const before = await drops(b);
  assert.equal(await udpTo(a, "10.77.0.2", 7003, 9000, SILENCE_MS), -1);
  assert.ok((await drops(b)) - before >= 7, "every fragment of what is not let in is dropped");
});

test("a change of the rules ends the connections that they do not allow any more, and no others", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  await serve(b, 7001, 7002);
  await filtered(pair, tcp(7001), tcp(7002));
  const client = a.spawn(
    process.execPath,
    "-e",
    `const net = require("node:net");
     const counts = [0, 0];
     [7001, 7002].forEach((port, index) => {
       const socket = net.connect(port, "10.77.0.2", () => setInterval(() => socket.write("x"), 20));
       socket.on("data", (data) => { counts[index] += data.length; }).on("error", () => {});
     });
     setInterval(() => console.log(JSON.stringify(counts)), 50);`,
  );
  let counts = [0, 0] as [number, number];
  client.stdout!.on("data", (text: Buffer) => {
    counts = JSON.parse(text.toString().trim().split("\n").at(-1)!) as [number, number];
  });
  const grow = async (index: 0 | 1): Promise<boolean> => {
    const before = counts[index];
    for (let i = 0; i < 60 && counts[index] < before + 5; i++) await new Promise((done) => setTimeout(done, 50));
    return counts[index] >= before + 5;
  };
  assert.deepEqual([await grow(0), await grow(1)], [true, true]);
  await b.call("setFilterSource", V4, [tcp(7001)]);
  await new Promise((done) => setTimeout(done, 200));
  const closed = counts[1];
  assert.equal(await grow(0), true);
  assert.equal(counts[1], closed, "nothing comes back of the connection that is not allowed");
  await b.call("setFilterSource", V4, [tcp(7001), tcp(7002)]);
  assert.deepEqual([await grow(0), await grow(1)], [true, true], "the kernels kept the connection meanwhile");
  await b.call("setFilter");
  // The worker takes the command from its ring and then publishes its counters.
  for (let i = 0; i < 40 && (await b.counters())["filter-connections"] !== 0; i++) {
    await new Promise((done) => setTimeout(done, 50));
  }
  assert.equal((await b.counters())["filter-connections"], 0);
  assert.deepEqual([await grow(0), await grow(1)], [true, true]);
});

test("10,000 flows are answered, each by itself", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  await serve(a, 7001);
  await filtered(pair, tcp(22));
  // 10,000 questions from as many ports, at most 200 waiting for their answer.
  const answered = await script<number>(
    b,
    `const dgram = require("node:dgram");
     let next = 10000, answers = 0, open = 0;
     const begin = () => {
       if (next === 0) return;
       const port = 20000 + --next;
       const socket = dgram.createSocket("udp4");
       open++;
       const end = (got) => {
         clearTimeout(timer);
         answers += got;
         socket.close();
         if (--open === 0 && next === 0) console.log(JSON.stringify(answers));
         else begin();
       };
       const timer = setTimeout(() => end(0), 2000);
       socket.on("message", () => end(1));
       socket.bind(port, () => socket.send("x", 7001, "10.77.0.1"));
     };
     for (let i = 0; i < 200; i++) begin();`,
  );
  assert.equal(answered, 10_000);
  assert.ok((await b.counters())["filter-connections"]! >= 10_000);
  assert.equal(await drops(b), 0);
});
