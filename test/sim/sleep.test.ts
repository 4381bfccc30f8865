import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Millis } from "#base/time.ts";
import { Body_Type, PerchSleep_Step } from "#gen/signal_pb.ts";
import { NAT_KINDS } from "./internet.ts";
import { assertNothingLost, connect, createPair, type Pair, statuses } from "./scenario.ts";
import type { SimMachine } from "./sim-machine.ts";
import type { Dialect } from "./sim-signal.ts";
import { SimWorld } from "./sim-world.ts";

/* How two ends agree to sleep, 20 ms one way to anywhere: a signal message takes 40 ms. All times are virtual and exact. */

/** When each end fell asleep, until both have. */
async function watchSleep(world: SimWorld, [a, b]: Pair, limit: Millis): Promise<readonly [Millis, Millis]> {
  const at: (Millis | undefined)[] = [undefined, undefined];
  const met = await world.until(limit, () => {
    if (!a.peer(b).awake) at[0] ??= world.now;
    if (!b.peer(a).awake) at[1] ??= world.now;
    return at.every((each) => each !== undefined);
  });
  assert.ok(met, `${statuses([a, b])}`);
  return at as [Millis, Millis];
}

/** How long the first packet of a wake takes, and its answer. */
async function measureWake(world: SimWorld, from: SimMachine, to: SimMachine) {
  const start = world.now;
  let first: Millis | undefined;
  let reply: Millis | undefined;
  world.onDelivered = ({ to: at }) => {
    if (at === to) {
      first ??= world.now - start;
      to.send(from);
    } else reply ??= world.now - start;
  };
  from.send(to);
  await world.advance(1_000);
  world.onDelivered = () => {};
  assert.ok(first !== undefined && reply !== undefined, "no answer within a second");
  return { first, reply };
}

const sleepDetail = (at: SimMachine, of: SimMachine): string =>
  at.peer(of).timeline.findLast(({ event }) => event === "sleep")?.detail ?? "";

describe("two Perch agents", () => {
  test("fall asleep one way of a message apart, and the timeline says who proposed", async () => {
    for (const thresholds of [
      [10_000, 60_000],
      [60_000, 10_000],
    ] as const) {
      using world = new SimWorld({ machines: thresholds.map((threshold) => ({ nat: "port" as const, threshold })) });
      const pair = world.machines as unknown as Pair;
      world.startAll();
      await world.advance(5_000);
      await connect(world, pair);
      const at = await watchSleep(world, pair, 12_000);
      assert.ok(Math.abs(at[0] - at[1]) <= 40, `${at}`);
      const [short, long] = thresholds[0] === 10_000 ? pair : [pair[1], pair[0]];
      assert.equal(sleepDetail(short, long), "no traffic for 10 s, the other side agreed");
      assert.match(sleepDetail(long, short), /^no traffic for 10 s, the other side proposed to sleep$/);
    }
  });

  test("differ for one way and one repetition when a step is lost", async () => {
    for (const lost of [PerchSleep_Step.PROPOSE, PerchSleep_Step.AGREE]) {
      using world = await createPair(["port", "blocked"], {}, { threshold: 10_000 });
      const pair = world.machines as unknown as Pair;
      let left = 1;
      world.signal.swallow = (_from, _to, body) => body.perch?.sleep?.step === lost && left-- > 0;
      await connect(world, pair);
      pair[0].agent!.engine.connections.sleep(pair[1].publicKey, "asked to");
      await world.advance(2_100);
      pair[0].agent!.engine.connections.sleep(pair[1].publicKey, "asked to");
      const at = await watchSleep(world, pair, 3_000);
      assert.ok(Math.abs(at[0] - at[1]) <= 1_000 + 80, `${lost}: ${at}`);
    }
  });

  test("do not sleep when a user asks for it at one end while the other one talks", async () => {
    using world = await createPair(["port", "port"]);
    const pair = world.machines as unknown as Pair;
    const [a, b] = pair;
    await connect(world, pair);
    let offers = 0;
    world.signal.observe = (_from, _to, body) => {
      if (body.type === Body_Type.OFFER) offers++;
    };
    for (let round = 0; round < 20; round++) {
      b.send(a);
      await world.advance(100);
      if (round === 10) a.agent!.engine.connections.sleep(b.publicKey, "asked to");
    }
    assert.deepEqual(statuses(pair), ["connected", "connected"]);
    assert.ok(a.peer(b).timeline.some(({ event }) => event === "sleep-refused"));
    assert.equal(offers, 0, "nobody had to be called back");
    assertNothingLost(world);
  });

  test("one that cannot be asked sleeps alone, and tells the other when signal is back", async () => {
    for (const nat of ["port", "blocked"] as const) {
      // The other end would stay awake for long by itself.
      using world = new SimWorld({
        machines: [
          { nat, threshold: 10_000 },
          { nat, threshold: 900_000 },
        ],
      });
      const pair = world.machines as unknown as Pair;
      const [a, b] = pair;
      world.startAll();
      await world.advance(5_000);
      await connect(world, pair);
      world.signal.stop();
      assert.ok(await world.until(25_000, () => !a.peer(b).awake), nat);
      assert.match(sleepDetail(a, b), /the other side did not answer$/);
      await world.advance(20_000);
      world.signal.start();
      assert.ok(await world.until(15_000, () => a.agent!.signal.connected && b.agent!.signal.connected));
      await world.advance(2_000);
      const [x, y] = statuses(pair);
      assert.equal(x, y, `${nat}: ${x} / ${y}`);
    }
  });
});

describe("a wake", () => {
  test("takes the same time after 1, 4, 16 and 60 idle minutes", async () => {
    for (const nat of NAT_KINDS) {
      const times: string[] = [];
      for (const minutes of [1, 4, 16, 60]) {
        using world = await createPair([nat, "port"], {}, { threshold: 10_000 });
        const pair = world.machines as unknown as Pair;
        await connect(world, pair);
        await watchSleep(world, pair, 15_000);
        await world.advance(minutes * 60_000);
        const { first, reply } = await measureWake(world, ...pair);
        times.push(`${first}/${reply}`);
        assertNothingLost(world);
      }
      // A known endpoint is tried for ten minutes: that saves time where it is open, and nothing else makes a difference.
      assert.ok(new Set(times.slice(0, 2)).size === 1 && new Set(times.slice(2)).size === 1, `${nat}: ${times}`);
      for (const time of times) assert.ok(Number(time.split("/")[1]) <= 160, `${nat}: ${times}`);
    }
  });

  test("costs no more when the other end has not noticed the sleep", async () => {
    const cases: readonly [Dialect, (body: { step: PerchSleep_Step | undefined }) => boolean][] = [
      // The one that agreed sleeps; the answer is lost.
      ["perch", ({ step }) => step === PerchSleep_Step.AGREE],
      ["stock", () => true],
    ];
    for (const [dialect, isLost] of cases) {
      for (const waker of [0, 1] as const) {
        using world = await createPair(["blocked", "port"], {}, { dialect });
        const pair = world.machines as unknown as Pair;
        const [a, b] = pair;
        await connect(world, pair);
        world.signal.swallow = (_from, _to, body) =>
          body.type === Body_Type.GO_IDLE && isLost({ step: body.perch?.sleep?.step });
        a.agent!.engine.connections.sleep(b.publicKey, "asked to");
        await world.advance(100);
        assert.notEqual(a.peer(b).awake, b.peer(a).awake, dialect);
        const { first, reply } = await measureWake(world, pair[waker], pair[1 - waker]!);
        assert.ok(first <= 120 && reply <= 160, `${dialect}, ${waker} wakes: ${first}/${reply} ms`);
        assertNothingLost(world);
      }
    }
  });
});
