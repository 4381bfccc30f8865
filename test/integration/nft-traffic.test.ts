import assert from "node:assert/strict";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { parsePrefix } from "#base/ip.ts";
import type { SourceRule } from "#wireguard/filter.ts";
import { root } from "./data-plane/checks.ts";
import { ANSWER_MS, type Place, SILENCE_MS, script, serve, tcpTo, udpTo } from "./filter-traffic.ts";
import { FilteredCable } from "./nft/cable.ts";

const SOURCES = ["10.77.0.1/32", "fd77::1/128"].map(parsePrefix);
const FAMILIES = [
  ["10.77.0.2", "10.77.0.1"],
  ["fd77::2", "fd77::1"],
] as const;

const tcp = (port: number): SourceRule => ({ protocol: "tcp", ports: { first: port, last: port }, verdict: "accept" });
const udp = (port: number): SourceRule => ({ protocol: "udp", ports: { first: port, last: port }, verdict: "accept" });

async function filtered(cable: FilteredCable, ...rules: SourceRule[]): Promise<void> {
  cable.rules.set({
    inbound: SOURCES.flatMap((source) => rules.map((rule) => ({ ...rule, source }))),
    otherwise: "drop",
  });
  await cable.rules.settled();
}

test(
  "by nftables, a port that a rule opens answers, others are silent, and what this machine asks is answered",
  root,
  async () => {
    await using cable = await FilteredCable.start();
    const { a, b } = cable;
    await Promise.all([serve(a, 7001), serve(b, 7001, 7002)]);
    await filtered(cable, tcp(7001), udp(7002));
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
      // Nobody listens there: the error about it is an answer too.
      const error = `const s = require("node:dgram").createSocket("${from.includes(":") ? "udp6" : "udp4"}");
      s.on("error", (e) => { console.log(JSON.stringify(e.code)); process.exit(); });
      s.connect(7099, "${from}", () => s.send("x"));
      setTimeout(() => { console.log('"silence"'); process.exit(); }, ${ANSWER_MS});`;
      assert.equal(await script(b, error), "ECONNREFUSED");
    }
  },
);

/** TCP connections that send all the time, by port; how many bytes came back on each. */
class Chatter {
  #counts: number[];

  constructor(from: Place, to: string, ...ports: number[]) {
    this.#counts = ports.map(() => 0);
    const child = from.spawn(
      process.execPath,
      "-e",
      `const net = require("node:net");
       const ports = ${JSON.stringify(ports)};
       const counts = ports.map(() => 0);
       ports.forEach((port, index) => {
         const socket = net.connect(port, "${to}", () => setInterval(() => socket.write("x"), 20));
         socket.on("data", (data) => { counts[index] += data.length; }).on("error", () => {});
       });
       setInterval(() => console.log(JSON.stringify(counts)), 50);`,
    );
    createInterface({ input: child.stdout! }).on("line", (line) => {
      this.#counts = JSON.parse(line) as number[];
    });
  }

  count(index: number): number {
    return this.#counts[index]!;
  }

  async grows(index: number): Promise<boolean> {
    const before = this.count(index);
    for (let i = 0; i < 100 && this.count(index) < before + 5; i++) await sleep(50);
    return this.count(index) >= before + 5;
  }
}

test(
  "by nftables, a change of the rules ends the connections that they do not allow any more, and no others",
  root,
  async () => {
    await using cable = await FilteredCable.start();
    const { a, b } = cable;
    await serve(b, 7001, 7002);
    await filtered(cable, tcp(7001), tcp(7002));
    const chatter = new Chatter(a, "10.77.0.2", 7001, 7002);
    assert.deepEqual([await chatter.grows(0), await chatter.grows(1)], [true, true]);
    cable.rules.setSource(SOURCES[0]!, [tcp(7001)]);
    await cable.rules.settled();
    await sleep(200);
    const closed = chatter.count(1);
    assert.equal(await chatter.grows(0), true);
    assert.equal(chatter.count(1), closed, "nothing comes back of the connection that is not allowed");
    cable.rules.setSource(SOURCES[0]!, [tcp(7001), tcp(7002)]);
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
    await filtered(cable, tcp(7001));
    assert.deepEqual([await outbound.grows(0), await inbound.grows(0)], [true, true]);
    await sleep(200);
    const closed = inbound.count(1);
    assert.equal(await outbound.grows(0), true);
    assert.equal(inbound.count(1), closed);
  },
);
