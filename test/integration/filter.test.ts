import assert from "node:assert/strict";
import { test } from "node:test";
import type { FilterRules, SourceRule } from "#wireguard/filter.ts";
import { ping, root } from "./data-plane/checks.ts";
import { type End, Pair } from "./data-plane/pair.ts";
import {
  Chatter,
  FAMILIES,
  fromPeer,
  openTcp,
  openUdp,
  PEER,
  refusedUdp,
  SILENCE_MS,
  script,
  serve,
  tcpTo,
  udpTo,
} from "./filter-traffic.ts";

/** `b` takes from `a` what the rules accept and nothing else. */
async function filtered(pair: Pair, ...rules: SourceRule[]): Promise<void> {
  await pair.b.call("setFilter", { inbound: fromPeer(...rules), otherwise: "drop" } satisfies FilterRules);
}

const drops = async (end: End): Promise<number> => (await end.counters())["drop-filter"]!;

test("a port that a rule opens answers, others are silent, and what this machine asks is answered", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  await Promise.all([serve(a, 7001), serve(b, 7001, 7002)]);
  await filtered(pair, openTcp(7001), openUdp(7002));
  for (const [to, from] of FAMILIES) {
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
  await filtered(pair, openUdp(7002));
  for (const [to, from] of FAMILIES) {
    assert.equal(await udpTo(a, to, 7002, 9000), 9000);
    assert.equal(await udpTo(b, from, 7001, 9000), 9000);
    assert.equal(await refusedUdp(b, from), "ECONNREFUSED");
  }
  const before = await drops(b);
  assert.equal(await udpTo(a, "10.77.0.2", 7003, 9000, SILENCE_MS), -1);
  assert.ok((await drops(b)) - before >= 7, "every fragment of what is not let in is dropped");
});

test("a change of the rules ends the connections that they do not allow any more, and no others", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  await serve(b, 7001, 7002);
  await filtered(pair, openTcp(7001), openTcp(7002));
  const chatter = new Chatter(a, "10.77.0.2", 7001, 7002);
  assert.deepEqual([await chatter.grows(0), await chatter.grows(1)], [true, true]);
  await b.call("setFilterSource", PEER[0]!, [openTcp(7001)]);
  await new Promise((done) => setTimeout(done, 200));
  const closed = chatter.count(1);
  assert.equal(await chatter.grows(0), true);
  assert.equal(chatter.count(1), closed, "nothing comes back of the connection that is not allowed");
  await b.call("setFilterSource", PEER[0]!, [openTcp(7001), openTcp(7002)]);
  assert.deepEqual(
    [await chatter.grows(0), await chatter.grows(1)],
    [true, true],
    "the kernels kept the connection meanwhile",
  );
  await b.call("setFilter");
  // The worker takes the command from its ring and then publishes its counters.
  for (let i = 0; i < 40 && (await b.counters())["filter-connections"] !== 0; i++) {
    await new Promise((done) => setTimeout(done, 50));
  }
  assert.equal((await b.counters())["filter-connections"], 0);
  assert.deepEqual([await chatter.grows(0), await chatter.grows(1)], [true, true]);
});

test("10,000 flows are answered, each by itself", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  await serve(a, 7001);
  await filtered(pair, openTcp(22));
  // 10,000 questions from as many ports, at most 100 waiting for their answer: as many as the echo service's socket surely holds.
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
     for (let i = 0; i < 100; i++) begin();`,
  );
  assert.equal(answered, 10_000);
  assert.ok((await b.counters())["filter-connections"]! >= 10_000);
  assert.equal(await drops(b), 0);
});
