import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { ping, root, tcpArrivesWhole } from "./data-plane/checks.ts";
import { Pair } from "./data-plane/pair.ts";

test("nothing wakes the worker while nothing happens", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  await b.event("confirmed");
  for (const end of [a, b]) await silenceKernel(end);
  await sleep(300);
  const before = (await a.counters())["wake-ups"]!;
  await sleep(1000);
  // A router solicitation of the kernel may fall into the second; a timer of ours would show ten times or more.
  assert.ok((await a.counters())["wake-ups"]! - before <= 1);
});

for (const [how, expected] of [
  ["exit", { code: 7, signal: null }],
  ["throw", { code: 1, signal: null }],
  ["SIGTERM", { code: null, signal: "SIGTERM" }],
  ["SIGKILL", { code: null, signal: "SIGKILL" }],
  ["close", { code: 0, signal: null }],
] as const) {
  test(`the process ends promptly, and its interface with it, by ${how}`, root, async () => {
    await using pair = await Pair.start();
    const { a } = pair;
    const begun = performance.now();
    if (how === "SIGTERM" || how === "SIGKILL") a.process.kill(how);
    else if (how === "close") {
      await a.call("close");
      a.process.stdin!.end();
    } else void a.call(how).catch(() => undefined);
    const ended = await Promise.race([a.ended(), sleep(5000, "hangs" as const, { ref: false })]);
    assert.deepEqual(ended, expected);
    assert.ok(performance.now() - begun < 5000);
    assert.doesNotMatch(await pair.b.exec("ip", "-n", a.namespace, "link"), /tun0/);
  });
}

test("a worker that hangs is told from one that sleeps, and from one that goes on", root, async () => {
  process.env.NODE_OPTIONS = `--import ${new URL("./kill-data-worker.ts", import.meta.url).href}`;
  const starting = Pair.start();
  delete process.env.NODE_OPTIONS;
  await using pair = await starting;
  const { a } = pair;
  const beat = async (): Promise<boolean> => {
    await sleep(300);
    return a.call("isWorking");
  };
  const idle = [await beat(), await beat(), await beat()];
  a.process.kill("SIGWINCH");
  // The signal takes effect with the next poke, which the worker still hears.
  const hung = [await beat(), await beat(), await beat(), await beat()];
  assert.deepEqual(
    [idle, hung.slice(2)],
    [
      [true, true, true],
      [false, false],
    ],
  );
  await sleep(1500);
  await a.call("isWorking");
  assert.equal(await beat(), true);
});

test("a deleted interface is reported and the worker does not spin", root, async () => {
  await using pair = await Pair.start();
  const { a } = pair;
  await a.exec("ip", "link", "del", "tun0");
  const gone = (await a.event("gone")) as { reason: string };
  assert.match(gone.reason, /interface was deleted/);
  await a.call("close");
});

test("an interface that is down and up again carries on", root, async () => {
  await using pair = await Pair.start();
  const { a } = pair;
  await a.exec("ip", "link", "set", "tun0", "down");
  await sleep(50);
  await a.exec("ip", "link", "set", "tun0", "up");
  await ping(pair.a, "10.77.0.2");
});

test("an unreachable path is reported with the error's name", root, async () => {
  await using pair = await Pair.start();
  const { a } = pair;
  await a.call("setPath", 0, { kind: "udp", endpoint: { address: "203.0.113.9", port: 9 } });
  await a.exec("ping", "-c", "1", "-W", "0.1", "10.77.0.2").catch(() => undefined);
  const error = (await a.event("pathError")) as Record<string, unknown>;
  assert.deepEqual(error, { slot: 0, endpoint: { address: "203.0.113.9", port: 9 }, code: "ENETUNREACH" });
});

test("a path with a small MTU gets single datagrams, and everything arrives", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  for (const end of [a, b]) await end.exec("ip", "link", "set", "v0", "mtu", "1300");
  await tcpArrivesWhole(a, b, "10.77.0.2", 5 << 20);
  assert.ok((await a.counters())["gso-refused"]! >= 1);
});

test("any datagram, whole or cut, real or noise, is counted and the tunnel goes on", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  const send = (datagram: Uint8Array): Promise<unknown> => a.call("sendDatagram", datagram, pair.endpoint(b));
  const before = (await b.counters())["rx-datagrams"]!;
  let sent = 0;
  for (const length of [0, 1, 3, 4, 15, 16, 31, 32, 33, 63, 64, 91, 92, 93, 147, 148, 149, 1452, 9000, 65_000]) {
    for (const type of [0, 1, 2, 3, 4, 5, 0x40, 0xff]) {
      const datagram = new Uint8Array(randomBytes(length));
      if (length > 0) datagram[0] = type;
      // The rest of a header that looks right, with the index of the session in use.
      if (length >= 8 && type <= 4) datagram.set([0, 0, 0, 0xe9, 3, 0, 0], 1);
      if (length >= 16) datagram.fill(0, 12, 16);
      await send(datagram);
      // An empty datagram is nothing to the receiver.
      if (length > 0) sent++;
    }
  }
  await ping(a, "10.77.0.2");
  const counters = await b.counters();
  assert.ok(counters["rx-datagrams"]! - before >= sent, `${counters["rx-datagrams"]! - before} of ${sent}`);
  assert.ok(counters["drop-authentication"]! > 0);
  assert.ok(counters["drop-unknown-type"]! > 0);
  assert.ok(counters["drop-malformed"]! > 0);
});

test("50,000 asleep peers wake nothing, cost less than 1 KB each, and the last of them is found", root, async () => {
  await using pair = await Pair.start();
  const { a } = pair;
  await silenceKernel(a);
  const before = await a.call<number>("memory");
  await a.call("add-asleep", 50_000);
  // Every command is in the ring or behind it; each turn of the worker that takes some of them counts as a wake-up.
  await sleep(1000);
  const bytes = (await a.call<number>("memory")) - before;
  assert.ok(bytes < 50_000 * 1024, `${bytes / 50_000} bytes per peer`);
  const wakeUps = (await a.counters())["wake-ups"]!;
  await sleep(500);
  assert.ok((await a.counters())["wake-ups"]! - wakeUps <= 1);
  await a.exec("ip", "route", "add", "100.64.0.0/10", "dev", "tun0");
  await a.exec("ping", "-c", "1", "-W", "0.1", "100.64.195.80").catch(() => undefined);
  const wake = (await a.event("wake")) as { slot: number };
  assert.equal(wake.slot, 50_000);
  assert.equal(a.count("wake"), 1);
});

/** The kernel itself asks a new interface for routers, for some seconds. */
async function silenceKernel(end: Pair["a"]): Promise<void> {
  await end.exec("sysctl", "-qw", `net.ipv6.conf.${end.started.name}.router_solicitations=0`).catch(() => undefined);
}
