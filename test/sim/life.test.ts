import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Body_Type } from "#gen/signal_pb.ts";
import { NAT_KINDS } from "./internet.ts";
import { assertNothingLost, connect, createPair, longestGap, type Pair, paths, statuses, talk } from "./scenario.ts";
import { RELAY_URLS, SimWorld } from "./sim-world.ts";

/* What happens to a pair in its life, with the times it may take. All times are virtual and exact. */

describe("waking", () => {
  test("both sides in the same instant converge: nothing lost, one agent each, no negotiation twice", async () => {
    for (const nat of NAT_KINDS) {
      for (const apart of [0, 1, 20, 39, 40, 41, 79, 80, 81, 119, 120]) {
        using world = await createPair([nat, "port"]);
        const [a, b] = world.machines as unknown as Pair;
        const offers: number[] = [];
        world.signal.observe = (_from, _to, body) => {
          if (body.type === Body_Type.OFFER) offers.push(world.now);
        };
        const start = world.now;
        const first = a.send(b)!;
        await world.advance(apart);
        const second = b.send(a)!;
        await world.advance(3_000);
        const story = `${nat}, ${apart} ms apart`;
        assert.ok(world.packets.get(first)!.deliveredAt! - start <= 130, story);
        assert.ok(world.packets.get(second)!.deliveredAt! - start - apart <= 130, story);
        assert.deepEqual(statuses([a, b]), ["connected", "connected"], story);
        assert.ok(offers.length <= 2, `${story}: ${offers.length} offers`);
        assertNothingLost(world);
      }
    }
  });

  test("a lost first handshake message costs one round trip and 100 ms, two in a row two and 300 ms", async () => {
    for (const [losses, limit] of [
      [1, 160 + 80 + 100],
      [2, 160 + 160 + 300],
    ] as const) {
      using world = await createPair(["blocked", "blocked"]);
      const [a, b] = world.machines as unknown as Pair;
      // Copies of one message have one index.
      const lost = new Set<string>();
      world.relays[0]!.swallow = (datagram) => {
        if (datagram[0] !== 1) return false;
        const index = Buffer.from(datagram.subarray(4, 8)).toString("hex");
        if (lost.size < losses) lost.add(index);
        return lost.has(index);
      };
      const start = world.now;
      let reply: number | undefined;
      world.onDelivered = ({ to }) => {
        if (to === b) b.send(a);
        else reply ??= world.now - start;
      };
      a.send(b);
      await world.advance(2_000);
      assert.ok(reply !== undefined && reply <= limit, `${losses} lost: ${reply} ms, limit ${limit}`);
    }
  });

  test("without signal the relay alone connects, and the direct way follows when signal is back", async () => {
    using world = await createPair(["port", "port"]);
    const [a, b] = world.machines as unknown as Pair;
    world.signal.stop();
    await world.advance(500);
    a.send(b);
    await world.advance(160);
    assert.deepEqual(statuses([a, b]), ["connected", "connected"]);
    await talk(world, [a, b], 5_000);
    world.signal.start();
    const direct = await world.until(20_000, () => paths([a, b]).every((kind) => kind === "direct"));
    assert.ok(direct, `${paths([a, b])}`);
    await world.advance(1_000);
    assertNothingLost(world);
  });

  test("without a relay signal and the direct way connect", async () => {
    for (const nat of ["none", "endpoint-independent", "address", "port"] as const) {
      using world = await createPair([nat, "port"]);
      const [a, b] = world.machines as unknown as Pair;
      world.relays[0]!.stop();
      await world.advance(500);
      const start = world.now;
      a.send(b);
      assert.ok(await world.until(1_000, () => world.deliveredIds.length > 0));
      assert.ok(world.now - start <= 250, `${nat}: ${world.now - start} ms`);
      assertNothingLost(world);
    }
  });

  test("a pair with different home relays loses nothing, whoever controls, and comes back when either relay does", async () => {
    for (const keyOrder of [
      [0, 1],
      [1, 0],
    ]) {
      using world = new SimWorld({
        machines: RELAY_URLS.map((url) => ({ nat: "blocked", relays: [url] })),
        relays: 2,
        delay: 60,
        keyOrder,
      });
      const pair = world.machines as unknown as Pair;
      world.startAll();
      await world.advance(5_000);
      await talk(world, pair, 5_000);
      await world.advance(1_000);
      assertNothingLost(world);
      for (const relay of world.relays) {
        relay.stop();
        await world.advance(2_000);
        relay.start();
        const start = world.now;
        await talk(world, pair, 8_000);
        for (const [from, to] of [pair, [pair[1], pair[0]]] as const) {
          const gap = longestGap(world, from, to, start);
          assert.ok(
            gap <= 4_000,
            `${keyOrder} ${relay.instanceUrl}: ${from.name} to ${to.name} ${gap} ms without data`,
          );
        }
      }
    }
  });

  test("wakes asked for while signal and relay are away complete by themselves", async () => {
    for (const nat of ["port", "blocked"] as const) {
      using world = await createPair([nat, "port"]);
      const [a, b] = world.machines as unknown as Pair;
      world.relays[0]!.stop();
      world.signal.stop();
      await world.advance(500);
      a.send(b);
      await world.advance(20_000);
      assert.equal(world.deliveredIds.length, 0);
      world.relays[0]!.start();
      world.signal.start();
      assert.ok(await world.until(20_000, () => world.deliveredIds.length > 0), nat);
      assertNothingLost(world);
    }
  });

  test("1,000 packets of 200 bytes into a sleeping peer all arrive, in order", async () => {
    using world = await createPair(["port", "port"]);
    const [a, b] = world.machines as unknown as Pair;
    for (let count = 0; count < 1_000; count++) a.send(b, 200);
    await world.advance(2_000);
    assertNothingLost(world);
    assert.deepEqual(
      world.deliveredIds,
      Array.from({ length: 1_000 }, (_, at) => at + 1),
    );
  });

  test("1 MB in packets of 1,400 bytes into a sleeping peer arrives, in order", async () => {
    using world = await createPair(["port", "port"]);
    const [a, b] = world.machines as unknown as Pair;
    for (let count = 0; count < 714; count++) a.send(b, 1_400);
    await world.advance(2_000);
    assertNothingLost(world);
    assert.deepEqual(
      world.deliveredIds,
      Array.from({ length: 714 }, (_, at) => at + 1),
    );
  });
});

describe("sleeping", () => {
  test("both ends sleep within a second of each other, and have no timer and send nothing in the next hour", async () => {
    using world = await createPair(["port", "address"]);
    const [a, b] = world.machines as unknown as Pair;
    await connect(world, [a, b]);
    assert.ok(await world.until(70_000, () => !a.peer(b).awake || !b.peer(a).awake));
    await world.advance(1_000);
    assert.deepEqual(statuses([a, b]), ["idle", "idle"]);
    const timers = [a, b].map(({ agent }) => agent!.clock.pending);
    // The handshake manager forgets a contact nine minutes after the last handshake.
    await world.advance(600_000);
    let sent = 0;
    world.onSent = () => sent++;
    const relayed = world.relays[0]!.forwarded;
    await world.advance(3_600_000);
    assert.equal(sent, 0);
    assert.equal(world.relays[0]!.forwarded, relayed);
    // Left are the watch of the network and one timer each of signal and relay.
    assert.deepEqual(
      [a, b].map(({ agent }) => agent!.clock.pending),
      [3, 3],
      `before: ${timers}`,
    );
  });

  test("a packet that crosses with the sleep is delivered, whenever it comes", async () => {
    for (const nat of ["port", "blocked"] as const) {
      const asleepAt = await measureSleep(nat);
      for (let offset = -130; offset <= 130; offset += 10) {
        using world = await createPair([nat, "port"], {}, { threshold: 10_000 });
        const [a, b] = world.machines as unknown as Pair;
        await connect(world, [a, b]);
        await world.advance(asleepAt + offset - world.now);
        b.send(a);
        a.send(b);
        await world.advance(5_000);
        assertNothingLost(world);
        assert.deepEqual(statuses([a, b]), ["connected", "connected"], `${nat} ${offset}`);
      }
    }
  });

  test("a GO_IDLE that is lost leaves the ends apart only until the other one's own clock", async () => {
    using world = await createPair(["port", "port"]);
    const [a, b] = world.machines as unknown as Pair;
    world.signal.swallow = (_from, _to, body) => body.type === Body_Type.GO_IDLE;
    await connect(world, [a, b]);
    assert.ok(await world.until(70_000, () => !a.peer(b).awake || !b.peer(a).awake));
    assert.ok(await world.until(2_000, () => !a.peer(b).awake && !b.peer(a).awake));
    // And the next packet of either wakes both.
    a.send(b);
    await world.advance(1_000);
    assert.deepEqual(statuses([a, b]), ["connected", "connected"]);
    assertNothingLost(world);
  });
});

/** When the pair of the test above goes to sleep undisturbed. */
async function measureSleep(nat: "port" | "blocked"): Promise<number> {
  using world = await createPair([nat, "port"], {}, { threshold: 10_000 });
  const [a, b] = world.machines as unknown as Pair;
  await connect(world, [a, b]);
  assert.ok(await world.until(20_000, () => !a.peer(b).awake || !b.peer(a).awake));
  return world.now;
}

describe("disturbances", () => {
  test("a connected direct pair does not notice that signal and relay restart", async () => {
    using world = await createPair(["port", "address"]);
    const pair = world.machines as unknown as Pair;
    await connect(world, pair);
    const talking = talk(world, pair, 60_000);
    world.time.after(5_000, () => {
      world.relays[0]!.stop();
      world.signal.stop();
    });
    world.time.after(20_000, () => {
      world.relays[0]!.start();
      world.signal.start();
    });
    await talking;
    assertNothingLost(world);
    assert.deepEqual(paths(pair), ["direct", "direct"]);
  });

  test("a relayed pair is back within 3 s of the relay's return", async () => {
    for (const down of [100, 1_000, 5_000, 20_000]) {
      using world = await createPair(["symmetric", "symmetric"]);
      const [a, b] = world.machines as unknown as Pair;
      await connect(world, [a, b]);
      await world.advance(20_000);
      world.relays[0]!.stop();
      await talk(world, [a, b], down);
      world.relays[0]!.start();
      const back = world.now;
      await talk(world, [a, b], 15_000);
      for (const [from, to] of [
        [a, b],
        [b, a],
      ] as const) {
        const first = [...world.packets.values()].find((r) => r.from === from && r.to === to && r.deliveredAt! > back);
        assert.ok(
          first && first.deliveredAt! - back <= 3_000,
          `${down} ms away: ${first && first.deliveredAt! - back}`,
        );
      }
      assert.deepEqual(statuses([a, b]), ["connected", "connected"]);
    }
  });

  for (const side of [0, 1] as const) {
    test(`after a rebinding of the NAT of side ${side} data flows again within 7 s, by the relay if need be`, async () => {
      for (const nat of ["endpoint-independent", "address", "port"] as const) {
        using world = await createPair([nat, nat]);
        const pair = world.machines as unknown as Pair;
        await connect(world, pair);
        pair[side].nat.rebind();
        const start = world.now;
        await talk(world, pair, 20_000);
        for (const [from, to] of [pair, [pair[1], pair[0]]] as const) {
          const gap = longestGap(world, from, to, start);
          assert.ok(gap <= 7_000, `${nat}: ${from.name} to ${to.name} ${gap} ms without data`);
        }
        assert.deepEqual(paths(pair), ["direct", "direct"], nat);
      }
    });

    test(`a cut direct way is left for the relay within 7 s, and within 1 s of the evidence, side ${side}`, async () => {
      using world = await createPair(["none", "none"]);
      const pair = world.machines as unknown as Pair;
      await connect(world, pair);
      const [from, to] = [pair[side], pair[1 - side]!];
      world.internet.cut.add(`${from.endpoint.address}>${to.endpoint.address}`);
      const start = world.now;
      await talk(world, pair, 20_000);
      for (const [x, y] of [pair, [pair[1], pair[0]]] as const) {
        const gap = longestGap(world, x, y, start);
        assert.ok(gap <= 7_000, `${x.name} to ${y.name} ${gap} ms without data`);
      }
    });

    test(`an agent that dies and comes back talks again within 10 s, side ${side}`, async () => {
      for (const nat of ["port", "symmetric"] as const) {
        for (const down of [0, 1_000, 30_000]) {
          using world = await createPair([nat, nat]);
          const pair = world.machines as unknown as Pair;
          await connect(world, pair);
          pair[side].kill();
          await world.advance(down);
          pair[side].start();
          const start = world.now;
          await talk(world, pair, 20_000);
          for (const [from, to] of [pair, [pair[1], pair[0]]] as const) {
            const gap = longestGap(world, from, to, start);
            assert.ok(gap <= 10_000, `${nat}, ${down} ms: ${from.name} to ${to.name} ${gap} ms without data`);
          }
        }
      }
    });

    test(`a machine that moves to another network is back within 10 s, side ${side}`, async () => {
      for (const [before, after] of [
        ["port", "port"],
        ["port", "none"],
        ["none", "blocked"],
        ["symmetric", "port"],
      ] as const) {
        using world = await createPair(["port", "port"]);
        const pair = world.machines as unknown as Pair;
        pair[side].move(before);
        await world.advance(60_000);
        await connect(world, pair);
        pair[side].move(after);
        const start = world.now;
        await talk(world, pair, 30_000);
        for (const [from, to] of [pair, [pair[1], pair[0]]] as const) {
          const gap = longestGap(world, from, to, start);
          assert.ok(gap <= 10_000, `${before} to ${after}: ${from.name} to ${to.name} ${gap} ms without data`);
        }
        assert.deepEqual(paths(pair), after === "blocked" ? ["relay", "relay"] : ["direct", "direct"]);
      }
    });

    test(`a machine that was suspended is back within 5 s, side ${side}`, async () => {
      for (const minutes of [0.2, 2, 10]) {
        using world = await createPair(["port", "port"]);
        const pair = world.machines as unknown as Pair;
        await connect(world, pair);
        pair[side].suspend();
        await world.advance(minutes * 60_000);
        pair[side].resume();
        const start = world.now;
        await talk(world, pair, 20_000);
        for (const [from, to] of [pair, [pair[1], pair[0]]] as const) {
          const gap = longestGap(world, from, to, start);
          assert.ok(gap <= 5_000, `${minutes} min: ${from.name} to ${to.name} ${gap} ms without data`);
        }
      }
    });
  }
});
