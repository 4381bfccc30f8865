import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { ping, refusals, root, tcpArrivesWhole, traffic } from "./data-plane/checks.ts";
import { type End, Pair } from "./data-plane/pair.ts";

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

test("a session that got its path late is confirmed when it gets it", root, async () => {
  await using pair = await Pair.start({ asleep: true });
  const { a, b } = pair;
  for (const end of [a, b]) await end.call("setAsleep", 0, false);
  await pair.install();
  await sleep(50);
  assert.equal(b.count("confirmed"), 0);
  await a.call("setPath", 0, { kind: "udp", endpoint: pair.endpoint(b) });
  await b.event("confirmed");
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
  await a.event("needHandshake", (payload: { reason: string }) => payload.reason === "rekey-time");
  // The other end no longer knows the session: what is sent gets no answer.
  await b.call("removePeer", 0);
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
