import assert from "node:assert/strict";
import type { ChildProcess } from "node:child_process";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { OffloadOptions } from "#wireguard/worker/data-plane.ts";
import { type End, Pair } from "./data-plane/pair.ts";

const root = process.getuid?.() === 0 ? { timeout: 20_000 } : { skip: "needs root: network namespaces and TUN" };
const TRAFFIC = new URL("./data-plane/traffic.ts", import.meta.url).pathname;

/** Runs traffic.ts in the end's namespace; its output line by line. */
function traffic(end: End, ...args: string[]): { process: ChildProcess; line: () => Promise<string> } {
  const child = end.spawn(process.execPath, TRAFFIC, ...args);
  const lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  let errors = "";
  child.stderr!.on("data", (text: Buffer) => {
    errors += text.toString();
  });
  const line = async (): Promise<string> => {
    const { value, done } = await lines.next();
    if (done) throw new Error(`${args.join(" ")} ended without a result: ${errors}`);
    return value as string;
  };
  return { process: child, line };
}

const bracket = (address: string): string => (address.includes(":") ? `[${address}]` : address);

async function tcpArrivesWhole(from: End, to: End, address: string, bytes: number): Promise<void> {
  const receiver = traffic(to, "tcp-receive", address);
  const port = await receiver.line();
  const sender = traffic(from, "tcp-send", `${bracket(address)}:${port}`, String(bytes));
  assert.equal(await receiver.line(), await sender.line(), `TCP to ${address}`);
}

async function udpArrivesWhole(from: End, to: End, address: string, size: number): Promise<void> {
  const bursts = 25;
  const receiver = traffic(to, "udp-receive", address, String(bursts * 40));
  const port = await receiver.line();
  const sender = traffic(from, "udp-send", `${bracket(address)}:${port}`, String(bursts), String(size));
  assert.equal(await receiver.line(), await sender.line(), `UDP of ${size} bytes to ${address}`);
}

async function ping(from: End, address: string, ...options: string[]): Promise<void> {
  await from.exec("ping", "-c", "2", "-i", "0.05", "-W", "2", ...options, address);
}

/** Counters that say that packets were refused; ones that a quiet link may show are left out. */
function refusals(counters: Record<string, number>): Record<string, number> {
  const harmless = new Set(["drop-no-route", "drop-unknown-index"]);
  return Object.fromEntries(
    Object.entries(counters).filter(([name, value]) => name.startsWith("drop-") && value > 0 && !harmless.has(name)),
  );
}

const MODES: readonly { name: string; offload: OffloadOptions; outer6?: boolean; mtu?: number }[] = [
  { name: "all offloads", offload: {} },
  { name: "all offloads over IPv6", offload: {}, outer6: true },
  { name: "no virtio header", offload: { virtioHeader: false } },
  { name: "no UDP segmentation on the TUN", offload: { udpSegmentation: false } },
  { name: "no GSO", offload: { gso: false } },
  { name: "no GRO", offload: { gro: false } },
  { name: "no offload at all", offload: { virtioHeader: false, gso: false, gro: false, ipv6: false } },
  { name: "an odd MTU", offload: {}, mtu: 1371 },
];

for (const { name, offload, outer6 = false, mtu = 1420 } of MODES) {
  test(`ping, TCP and UDP bursts arrive unchanged with ${name}`, root, async () => {
    await using pair = await Pair.start({ plane: { offload, mtu }, outer6 });
    const { a, b } = pair;
    await Promise.all([ping(a, "10.77.0.2"), ping(b, "fd77::1")]);
    // Every residue of the padding, and the packet that fills the MTU.
    for (const size of ["0", "1", "15", "16", "17", String(mtu - 28), String(mtu - 29)])
      await ping(a, "10.77.0.2", "-s", size);
    await tcpArrivesWhole(a, b, "10.77.0.2", 20 << 20);
    await tcpArrivesWhole(b, a, "fd77::1", 20 << 20);
    await udpArrivesWhole(a, b, "10.77.0.2", 1200);
    await udpArrivesWhole(a, b, "fd77::2", 333);
    for (const end of [a, b]) assert.deepEqual(refusals(await end.counters()), {}, end.namespace);
  });
}

test("the first packet wakes an asleep peer once, waits for the session and is delivered in order", root, async () => {
  await using pair = await Pair.start({ asleep: true });
  const { a, b } = pair;
  const pinging = a.exec("ping", "-c", "5", "-i", "0.05", "-W", "5", "10.77.0.2");
  const wake = (await a.event("wake")) as { slot: number; cause: { kind: string; packet: Record<string, unknown> } };
  assert.equal(wake.slot, 0);
  assert.equal(wake.cause.kind, "packet");
  assert.equal(wake.cause.packet.destination, "10.77.0.2");
  assert.equal(wake.cause.packet.protocol, 1);
  await sleep(150);
  assert.ok((await a.call<{ stagedBytes: number }>("peerCounters", 0)).stagedBytes > 0);
  assert.equal(a.count("wake"), 1);
  assert.equal(a.count("needHandshake"), 0, "an asleep peer asks for nothing but to be woken");
  for (const end of [a, b]) await end.call("setAsleep", 0, false);
  await a.event("needHandshake");
  await pair.connect();
  assert.match(await pinging, /5 received/);
  assert.equal((await a.call<{ stagedBytes: number }>("peerCounters", 0)).stagedBytes, 0);
  await b.event("confirmed");
});

test("multicast and broadcast do not wake", root, async () => {
  await using pair = await Pair.start({ asleep: true });
  const { a } = pair;
  await a.call("addPrefix", 0, { address: "10.77.0.0", bits: 24 });
  await a.call("addPrefix", 0, { address: "224.0.0.0", bits: 4 });
  await a.exec("ping", "-c", "1", "-W", "0.2", "-b", "10.77.0.255").catch(() => undefined);
  await a.exec("ping", "-c", "1", "-W", "0.2", "-I", a.started.name, "224.0.0.1").catch(() => undefined);
  assert.equal(a.count("wake"), 0);
  assert.ok((await a.counters())["drop-multicast-asleep"]! >= 2);
  await a.exec("ping", "-c", "1", "-W", "0.2", "10.77.0.9").catch(() => undefined);
  await a.event("wake");
});

test("an old session of a sleeping peer still delivers, and raises a wake", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  await ping(a, "10.77.0.2");
  await b.call("setAsleep", 0, true);
  const before = (await b.counters())["tun-write"]!;
  await a.exec("ping", "-c", "1", "-W", "0.2", "10.77.0.2").catch(() => undefined);
  const wake = (await b.event("wake", (payload: { cause: { kind: string } }) => payload.cause.kind === "data")) as {
    cause: { source: unknown };
  };
  assert.deepEqual(wake.cause.source, { kind: "udp", endpoint: pair.endpoint(a) });
  assert.ok((await b.counters())["tun-write"]! > before);
});

test("a flow survives a change of session and of path, and the other end hears where it comes from", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  const moving = tcpArrivesWhole(a, b, "10.77.0.2", 60 << 20);
  await sleep(100);
  await pair.install();
  await sleep(100);
  await pair.install(b);
  await a.call("setPath", 0, { kind: "udp", endpoint: { address: "2001:db8::2", port: b.started.port } });
  const hint = (await b.event("pathHint")) as { source: { endpoint: { address: string } }; adopted: boolean };
  assert.equal(hint.source.endpoint.address, "2001:db8::1");
  assert.equal(hint.adopted, false);
  await moving;
  assert.deepEqual(refusals(await b.counters()), {});
});

test("a peer without a path takes the one that its packets come from", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  await b.call("setPath", 0, { kind: "none" });
  await ping(a, "10.77.0.2");
  const hint = (await b.event("pathHint")) as { source: unknown; adopted: boolean };
  assert.deepEqual(hint, { slot: 0, source: { kind: "udp", endpoint: pair.endpoint(a) }, adopted: true });
});

test("a relayed peer's datagrams go to main and come back in by injection", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  await a.call("setPath", 0, { kind: "relay" });
  await b.call("setPath", 0, { kind: "relay" });
  // This test is the relay.
  let carried = 0;
  const relaying = setInterval(() => {
    for (const [from, to] of [
      [a, b],
      [b, a],
    ] as const) {
      for (const event of from.events.splice(0)) {
        if (event.event !== "relayOut") continue;
        carried++;
        void to.call(
          "injectRelayed",
          0,
          new Uint8Array(Buffer.from((event.payload as { datagram: { hex: string } }).datagram.hex, "hex")),
        );
      }
    }
  }, 2);
  try {
    assert.match(await a.exec("ping", "-c", "5", "-i", "0.05", "-W", "2", "10.77.0.2"), /5 received/);
    assert.ok(carried >= 10);
    const sent = (await a.counters())["udp-send-calls"]!;
    await ping(a, "fd77::2");
    assert.equal((await a.counters())["udp-send-calls"], sent, "nothing goes over UDP");
  } finally {
    clearInterval(relaying);
  }
});

test("replays, forgeries, unknown indices and foreign sources are dropped and counted", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  await ping(a, "10.77.0.2");
  const count = async (name: string): Promise<number> => (await b.counters())[name]!;
  // Captured through the relay path: a datagram that main of `a` gets and `b` is given twice.
  await a.call("setPath", 0, { kind: "relay" });
  void a.exec("ping", "-c", "1", "-W", "0.1", "10.77.0.2").catch(() => undefined);
  const captured = (await a.event("relayOut")) as { datagram: { hex: string } };
  const datagram = (): Uint8Array => new Uint8Array(Buffer.from(captured.datagram.hex, "hex"));
  await b.call("injectRelayed", 0, datagram());
  await b.call("injectRelayed", 0, datagram());
  const forged = datagram();
  forged[20]! ^= 1;
  await b.call("injectRelayed", 0, forged);
  const unknown = datagram();
  unknown[5]! ^= 0x55;
  await b.call("injectRelayed", 0, unknown);
  await b.call("injectRelayed", 0, new Uint8Array([9, 9, 9]));
  await sleep(20);
  assert.equal(await count("drop-replay"), 1);
  assert.equal(await count("drop-authentication"), 1);
  assert.equal(await count("drop-unknown-index"), 1);
  assert.equal(await count("drop-unknown-type"), 1);
  // A source that belongs to nobody: `b` forgets that the address is `a`'s.
  await a.call("setPath", 0, { kind: "udp", endpoint: pair.endpoint(b) });
  await b.call("removePrefix", 0, { address: "10.77.0.1", bits: 32 });
  await a.exec("ping", "-c", "1", "-W", "0.1", "10.77.0.2").catch(() => undefined);
  assert.equal(await count("drop-allowed-ips"), 1);
});

test("handshake and STUN messages reach main with source, local address and time", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  const initiation = new Uint8Array(148);
  initiation[0] = 1;
  await a.call("sendDatagram", initiation, pair.endpoint(b));
  const handshake = (await b.event("handshake")) as Record<string, unknown>;
  assert.deepEqual(handshake.source, { kind: "udp", endpoint: pair.endpoint(a) });
  assert.equal(handshake.local, "192.0.2.2");
  assert.equal((handshake.datagram as { hex: string }).hex, Buffer.from(initiation).toString("hex"));
  const stun = Buffer.from("000100002112a442000102030405060708090a0b", "hex");
  await a.call("sendDatagram", new Uint8Array(stun), { address: "2001:db8::2", port: b.started.port });
  const received = (await b.event("stun")) as Record<string, unknown>;
  assert.deepEqual(received.from, { address: "2001:db8::1", port: a.started.port });
  assert.deepEqual(received.to, { address: "2001:db8::2", port: b.started.port });
});

test("data-driven timers: passive keepalive, persistent keepalive, renewal, no answer, expiry", root, async () => {
  const limits = { rekeyAfterTime: 600, rejectAfterTime: 5000, keepaliveTimeout: 300, rekeyTimeout: 200, jitter: 0 };
  await using pair = await Pair.start({ plane: { limits } });
  const { a, b } = pair;
  const received = async (end: End): Promise<number> => (await end.counters())["rx-packets"]!;
  await b.event("confirmed");
  const quiet = await received(a);
  // One-way data: the receiver answers with a keepalive after its timeout.
  const udp = traffic(a, "udp-send", "10.77.0.2:9", "1", "100");
  await udp.line();
  await sleep(100);
  await sleep(400);
  assert.ok((await received(a)) > quiet, "passive keepalive");
  await sleep(300);
  await a.exec("ping", "-c", "1", "-W", "1", "10.77.0.2");
  const asks = a.events.filter((event) => event.event === "needHandshake");
  assert.ok(asks.some((event) => (event.payload as { reason: string }).reason === "rekey-time"));
  // The other end no longer knows the session: what is sent gets no answer.
  await b.call("dropSessions", 0);
  await a.exec("ping", "-c", "1", "-W", "0.1", "10.77.0.2").catch(() => undefined);
  await a.event("needHandshake", (payload: { reason: string }) => payload.reason === "no-answer");
  await a.event("sessionEnded", undefined, 8000);
  assert.equal((await a.counters()).sessions, 0);
});

test("a persistent keepalive goes out at once and then at its interval", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  await b.event("confirmed");
  const before = (await b.counters())["rx-packets"]!;
  await a.call("setKeepalive", 0, 1);
  await sleep(100);
  assert.equal((await b.counters())["rx-packets"], before + 1);
  await sleep(1200);
  assert.equal((await b.counters())["rx-packets"], before + 2);
});

test("nothing wakes the worker while nothing happens", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  await b.event("confirmed");
  for (const end of [a, b])
    await end.exec("sysctl", "-qw", `net.ipv6.conf.${end.started.name}.router_solicitations=0`).catch(() => undefined);
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
