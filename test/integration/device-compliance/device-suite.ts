import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { PublicKey } from "#base/keys.ts";
import type { DevicePeerStats } from "#wireguard/device.ts";
import { type DeviceKind, DevicePair } from "./device-pair.ts";

/** Losses that a change of path may cause: what was under way on the path that was left. */
const FLIGHT = 2;

/**
 * What every device does, whatever implements it: `kinds[0]` is looked at, `kinds[1]` is whom it talks to. Written against
 * WireGuardDevice alone. Two halves, side by side.
 */
export function deviceSuite(...kinds: readonly [DeviceKind, DeviceKind]): void {
  describe(`device ${kinds[0]}, towards ${kinds[1]}`, { concurrency: 2, timeout: 60_000 }, () => {
    describe("wakes and moves", { concurrency: 1 }, () => wakesAndMoves(kinds));
    describe("sleeps, counts and comes back", { concurrency: 1 }, () => sleepsAndComesBack(kinds));
  });
}

/** What happens on a pair whose ends know each other anew and sleep. */
type Scenario = (pair: DevicePair) => Promise<void>;

/** Tests on one pair, one after the other. */
function scenariosFor(kinds: readonly [DeviceKind, DeviceKind]): (name: string, scenario: Scenario) => void {
  let pair: DevicePair;
  before(async () => {
    pair = await DevicePair.start(...kinds);
  });
  after(() => pair[Symbol.asyncDispose]());
  return (name, scenario) =>
    void it(name, async () => {
      await pair.reset();
      await scenario(pair);
    });
}

function wakesAndMoves(kinds: readonly [DeviceKind, DeviceKind]): void {
  const onPair = scenariosFor(kinds);
  onPair("leaves a sleeping peer alone", async (pair) => {
    const { a, b } = pair;
    await sleep(300);
    assert.deepEqual([a.events, b.events], [[], []]);
    const stats = await a.stats(b.started.key);
    assert.deepEqual([stats.rxBytes, stats.txBytes, stats.lastHandshake], [0, 0, 0]);
    assert.equal(await a.call("initiate", b.started.key, [{ kind: "relay" }]), false);
    assert.equal(pair.relayed, 0);
  });

  onPair("wakes a peer once for many packets, and again once that wake was declined or dropped", async ({ a, b }) => {
    await a.ping(b.address, 4, 0.05, "-W", "0.2");
    const { payload } = await a.event("wake");
    assert.equal(payload.key, b.started.key);
    assert.ok(payload.cause?.kind === "packet" || payload.cause?.kind === "activity");
    assert.equal(a.count("wake"), 1);
    a.events.length = 0;
    await a.call("postponeWake", b.started.key, "drop");
    await sleep(50);
    assert.equal(a.count("wake"), 0);
    await a.ping(b.address, 1, 1, "-W", "0.2");
    await a.event("wake");
    a.events.length = 0;
    // What came just now may ask again at once.
    await a.call("declineWake", b.started.key);
    await a.ping(b.address, 1, 1, "-W", "0.2");
    await a.event("wake");
  });

  onPair("delivers the packet that woke a peer, over a relay and both ways", async (pair) => {
    const { a, b } = pair;
    await pair.automate("relay");
    assert.equal(await a.ping(b.address, 10, 0.05, "-W", "5"), 10);
    assert.deepEqual([a.count("wake"), b.count("wake")], [1, 1]);
    await a.event("established", ({ key, source }) => {
      assert.deepEqual(source, { kind: "relay" });
      return key === b.started.key;
    });
    assert.ok(pair.relayed >= 20);
    assert.equal(await b.ping(a.address, 10, 0.05, "-W", "2"), 10);
  });

  onPair("delivers the packet that woke a peer over a direct path, and relays nothing then", async (pair) => {
    const { a, b } = pair;
    await pair.automate("udp");
    assert.equal(await a.ping(b.address, 10, 0.05, "-W", "5"), 10);
    await a.event("established");
    await b.event("established");
    assert.equal(pair.relayed, 0);
    assert.equal(await b.ping(a.address, 10, 0.05, "-W", "2"), 10);
  });

  onPair("moves a flow from the relay to a direct path and back without losing more than a flight", async (pair) => {
    const { a, b } = pair;
    await pair.automate("relay");
    assert.equal(await a.ping(b.address, 2, 0.05, "-W", "5"), 2);
    const flow = a.ping(b.address, 150, 0.01, "-W", "1");
    for (const kind of ["udp", "relay", "udp"] as const) {
      await sleep(300);
      await Promise.all([pair.path(a, kind), pair.path(b, kind)]);
    }
    await sleep(300);
    const before = pair.relayed;
    await sleep(200);
    assert.ok(pair.relayed - before < 10, "direct in the end");
    const received = await flow;
    assert.ok(received >= 150 - 3 * FLIGHT, `${received} of 150`);
  });

  onPair("moves one end only, and the flow goes on", async (pair) => {
    const { a, b } = pair;
    await pair.automate("relay");
    assert.equal(await a.ping(b.address, 2, 0.05, "-W", "5"), 2);
    const flow = a.ping(b.address, 100, 0.01, "-W", "1");
    await sleep(200);
    await pair.path(a, "udp");
    await sleep(500);
    await pair.path(b, "udp");
    const received = await flow;
    assert.ok(received >= 100 - 2 * FLIGHT, `${received} of 100`);
    await b.event("path-hint");
  });

  for (const kind of ["relay", "udp"] as const) {
    onPair(`is woken by the peer's handshake over ${kind}, which it answers while it decides`, async (pair) => {
      const { a, b } = pair;
      await pair.automate(kind, b);
      await b.call("wakeUp", a.started.key, true);
      const { payload } = await a.event("wake");
      assert.deepEqual(payload.cause, {
        kind: "handshake",
        source: kind === "relay" ? { kind } : pair.direct(b),
      });
      await b.event("established");
      await pair.automate(kind, a);
      await a.call("wakeUp", b.started.key, false);
      assert.equal(await b.ping(a.address, 3, 0.05, "-W", "3"), 3);
      await a.event("established");
      assert.equal(a.count("wake"), 1);
    });
  }
}

function sleepsAndComesBack(kinds: readonly [DeviceKind, DeviceKind]): void {
  const onPair = scenariosFor(kinds);
  for (const kind of ["relay", "udp"] as const) {
    onPair(`delivers what crosses its sleep over ${kind}, and is woken by it`, async (pair) => {
      const { a, b } = pair;
      await pair.automate(kind);
      assert.equal(await a.ping(b.address, 3, 0.05, "-W", "5"), 3);
      await a.event("established");
      await a.call("agent", null);
      await pair.sleep(a);
      await sleep(300);
      a.events.length = 0;
      const before = await a.delivered();
      await b.ping(a.address, 1, 1, "-W", "0.2");
      assert.ok((await a.delivered()) > before);
      const { payload } = await a.event("wake", undefined, 7_000);
      // Its answer may have been first.
      assert.ok(["data", "activity", "packet"].includes(payload.cause!.kind));
      await pair.automate(kind, a);
      await a.call("wakeUp", b.started.key, true);
      await a.event("established");
      assert.equal(await b.ping(a.address, 3, 0.05, "-W", "5"), 3);
    });
  }

  onPair("counts bytes both ways, for all peers in one pass, and takes keepalives for no traffic", async (pair) => {
    const { a, b } = pair;
    await pair.automate("udp");
    assert.equal(await a.ping(b.address, 20, 0.02, "-W", "5"), 20);
    await sleep(1_100);
    const stats = await a.stats(b.started.key);
    // 84 bytes are padded to 96, and 32 more.
    for (const bytes of [stats.rxBytes, stats.txBytes]) assert.ok(bytes >= 20 * 128 && bytes < 20 * 128 + 1_000);
    assert.ok(Math.abs(stats.lastHandshake - Date.now()) < 60_000);
    assert.deepEqual((await a.call<Record<PublicKey, DevicePeerStats>>("allPeerStats"))[b.started.key], stats);
    const now = await a.call<number>("now");
    for (const last of [stats.lastDataRx, stats.lastDataTx]) assert.ok(last > now - 4_000 && last <= now);
    const keepalive = { mode: "awake", allowedIps: [{ address: b.address, bits: 32 }], persistentKeepalive: 1 };
    await a.call("setPeer", b.started.key, keepalive);
    await sleep(1_600);
    const later = await a.stats(b.started.key);
    assert.ok(later.txBytes > stats.txBytes, "keepalives went out");
    assert.deepEqual([later.lastDataRx, later.lastDataTx], [stats.lastDataRx, stats.lastDataTx]);
  });

  onPair("knows nothing of a peer that was removed", async (pair) => {
    const { a, b } = pair;
    await pair.automate("udp");
    assert.equal(await a.ping(b.address, 2, 0.05, "-W", "5"), 2);
    await a.call("removePeer", b.started.key);
    await sleep(100);
    a.events.length = 0;
    const before = await a.delivered();
    assert.ok(!((await b.ping(a.address, 2, 0.05, "-W", "0.3")) > 0));
    assert.ok(!((await a.ping(b.address, 2, 0.05, "-W", "0.3")) > 0));
    assert.equal(await a.delivered(), before);
    assert.deepEqual([a.events, await a.stats(b.started.key)], [[], null]);
  });

  for (const kind of ["relay", "udp"] as const) {
    onPair(
      `says when nothing answers over ${kind}, and is back at once with a peer that forgot its session`,
      async (pair) => {
        const { a, b } = pair;
        await pair.automate(kind);
        assert.equal(await a.ping(b.address, 3, 0.05, "-W", "5"), 3);
        await a.event("established");
        await b.call("removePeer", a.started.key);
        await pair.sleep(b);
        await sleep(100);
        a.events.length = 0;
        const flow = a.ping(b.address, 30, 0.05, "-W", "0.3");
        await a.event("silent");
        await a.call("initiate", b.started.key, [kind === "relay" ? { kind } : pair.direct(b)]);
        await a.event("established", undefined, 2_000);
        await flow;
        assert.equal(await a.ping(b.address, 3, 0.05, "-W", "1"), 3);
      },
    );
  }

  onPair("takes a thousand peers in one turn, of which the touched one wakes", async ({ a }) => {
    const last = await a.call<PublicKey>("addMany", 1_000);
    const touch = (count: number): Promise<number> => a.ping("100.64.3.232", count, 0.1, "-W", "0.1");
    // A device that is not ours takes a moment to learn them, a slow machine seconds.
    for (let tries = 0; tries < 30 && a.count("wake") === 0; tries++) await touch(1);
    const { payload } = await a.event("wake");
    assert.equal(payload.key, last);
    assert.equal(Object.keys(await a.call<object>("allPeerStats")).length, 1_001);
    await touch(5);
    assert.equal(a.count("wake"), 1);
  });

  if (kinds[0] === "kernel") endsWithItsInterface(onPair);
  else comesBackAfterKill(onPair);
}

type OnPair = ReturnType<typeof scenariosFor>;

function endsWithItsInterface(onPair: OnPair): void {
  onPair("says that it is gone when somebody deletes its interface, and leaves nothing", async ({ a }) => {
    await a.exec("ip", "link", "delete", a.started.name);
    await a.event("gone");
    assert.equal(a.count("gone"), 1);
    assert.doesNotMatch(await a.exec("nft", "list", "tables"), new RegExp(a.started.name));
  });
}

function comesBackAfterKill(onPair: OnPair): void {
  onPair("has its peers back after what carries its packets was killed under traffic", async (pair) => {
    const { a, b } = pair;
    await pair.automate("udp");
    assert.equal(await a.ping(b.address, 2, 0.05, "-W", "5"), 2);
    const flow = a.ping(b.address, 60, 0.03, "-W", "1");
    await sleep(300);
    await a.restart();
    await a.event("established");
    assert.equal(await a.ping(b.address, 5, 0.05, "-W", "2"), 5);
    assert.equal(await b.ping(a.address, 5, 0.05, "-W", "2"), 5);
    assert.ok((await flow) > 15);
    const counters = await a.call<Record<string, number>>("counters");
    assert.equal(counters["worker-restarts"], 1);
    // Those that slept through it wake as before.
    await pair.reset();
    await a.ping(b.address, 1, 1, "-W", "0.2");
    await a.event("wake");
  });
}
