import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { describe, test } from "node:test";
import { parseIp } from "#base/ip.ts";
import { createLogger, silentLogger } from "#base/log.ts";
import { systemClock } from "#base/time.ts";
import { libc } from "#net/libc.ts";
import { closeUdpPair, openUdpPair, type UdpPair } from "#net/udp-linux.ts";
import { sendDatagram } from "#net/udp-send.ts";
import { PortThread } from "./port-thread.ts";

const LOOPBACK = parseIp("127.0.0.1");
const options = { timeout: 10_000, skip: process.platform === "linux" ? false : "needs Linux" };
const deps = { log: silentLogger, clock: systemClock };
const openPair = (): UdpPair => openUdpPair({ port: 0, ipv6: false });

describe("the port thread", () => {
  test("drops and counts what finds its ring full, and goes on", options, async () => {
    await using thread = await PortThread.start(deps);
    const [from, to] = [openPair(), openPair()];
    let received = 0;
    let last = Promise.withResolvers<void>();
    const watch = thread.watch(to.v4, ({ payload }) => {
      received++;
      if (payload[0] === 1) last.resolve();
    });
    const target = { address: LOOPBACK, port: to.port };
    const datagram = new Uint8Array(8000);
    // This turn does not end before the thread has read more than the ring takes.
    let sent = 0;
    const until = performance.now() + 5000;
    while (thread.counters().get("drop-port-queue") === 0 && performance.now() < until)
      if (sendDatagram(from.v4, datagram, target) === 0) sent++;
    assert.ok(thread.counters().get("drop-port-queue")! > 0);
    const marked = Uint8Array.of(1);
    const mark = async (): Promise<void> => {
      last = Promise.withResolvers();
      assert.equal(sendDatagram(from.v4, marked, target), 0);
      await last.promise;
    };
    // Room comes with the first turns.
    while (received === 0) await new Promise((resolve) => setImmediate(resolve));
    await mark();
    const counters = thread.counters();
    const dropped = counters.get("drop-port-queue")! + counters.get("drop-socket-queue")!;
    assert.equal(received + dropped, sent + 1);
    await mark();
    await watch.end();
    for (const pair of [from, to]) closeUdpPair(pair);
  });

  test("tells nothing of a socket that was taken back, which may be closed then", options, async () => {
    await using thread = await PortThread.start(deps);
    const [from, taken, kept] = [openPair(), openPair(), openPair()];
    let told = 0;
    const watch = thread.watch(taken.v4, () => told++);
    const seen = Promise.withResolvers<void>();
    const other = thread.watch(kept.v4, () => seen.resolve());
    sendDatagram(from.v4, Uint8Array.of(1), { address: LOOPBACK, port: taken.port });
    const ends = [watch.end(), watch.end()];
    await Promise.all(ends);
    closeUdpPair(taken);
    sendDatagram(from.v4, Uint8Array.of(1), { address: LOOPBACK, port: kept.port });
    await seen.promise;
    assert.equal(told, 0);
    await other.end();
    for (const pair of [from, kept]) closeUdpPair(pair);
  });

  test("is replaced on the same sockets when it dies, and given up when it dies again and again", options, async () => {
    const died = Promise.withResolvers<void>();
    const messages: string[] = [];
    const log = createLogger((_, message) => {
      messages.push(message);
      died.resolve();
    });
    await using thread = await PortThread.start({ log, clock: systemClock });
    const [from, to] = [openPair(), openPair()];
    const target = { address: LOOPBACK, port: to.port };
    let seen = Promise.withResolvers<void>();
    thread.watch(to.v4, () => seen.resolve());
    // Nobody has so many descriptors.
    const bad = thread.watch(1 << 30, () => {});
    await died.promise;
    await bad.end();
    sendDatagram(from.v4, Uint8Array.of(1), target);
    await seen.promise;
    seen = Promise.withResolvers();
    thread.watch(1 << 30, () => {});
    const { reason } = await thread.gone;
    assert.match(reason, /closed while it was watched/);
    assert.equal(messages.filter((message) => message === "port thread died, another takes over").length, 4);
    assert.equal(messages.length, 4, "the rest is said by whoever hears that it is gone");
    for (const pair of [from, to]) closeUdpPair(pair);
  });

  test("hands over what the dead one had read", options, async () => {
    await using thread = await PortThread.start(deps);
    const [from, to] = [openPair(), openPair()];
    let received = 0;
    const watch = thread.watch(to.v4, () => received++);
    const target = { address: LOOPBACK, port: to.port };
    // Many more than main handles in a turn, read by the thread while this turn lasts.
    const sent = 1000;
    for (let i = 0; i < sent; i++) {
      if (i % 50 === 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
      assert.equal(sendDatagram(from.v4, new Uint8Array(100), target), 0);
    }
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 50);
    const bad = thread.watch(1 << 30, () => {});
    await bad.end();
    await watch.end();
    assert.equal(received, sent);
    for (const pair of [from, to]) closeUdpPair(pair);
  });

  test("closing it twice is closing it once, and nothing is read afterwards", options, async () => {
    const thread = await PortThread.start(deps);
    const pair = openPair();
    const watch = thread.watch(pair.v4, () => assert.fail("nothing is read"));
    await Promise.all([thread.close(), thread.close()]);
    await watch.end();
    await thread.watch(pair.v4, () => {}).end();
    sendDatagram(pair.v4, Uint8Array.of(1), { address: LOOPBACK, port: pair.port });
    assert.equal(libc().read(pair.v4, new Uint8Array(8), 8), 1);
    closeUdpPair(pair);
  });

  for (const [how, line] of [
    ["exits", "process.exit(0)"],
    ["dies of an exception", `setTimeout(() => { throw new Error("expected") })`],
  ] as const)
    test(`does not keep a process that ${how}`, options, () => {
      // No module flag: the thread would get it too.
      const program = `(async () => {
        const { PortThread } = await import(${JSON.stringify(new URL("./port-thread.ts", import.meta.url).href)});
        const { silentLogger } = await import(${JSON.stringify(import.meta.resolve("#base/log.ts"))});
        const { systemClock } = await import(${JSON.stringify(import.meta.resolve("#base/time.ts"))});
        await PortThread.start({ log: silentLogger, clock: systemClock });
        ${line};
      })()`;
      const { signal, status, stderr } = spawnSync(process.execPath, ["-e", program], {
        timeout: 8000,
        stdio: ["ignore", "ignore", "pipe"],
      });
      assert.equal(signal, null);
      assert.equal(status, how === "exits" ? 0 : 1, `${stderr}`);
      if (how !== "exits") assert.match(`${stderr}`, /expected/);
    });
});
