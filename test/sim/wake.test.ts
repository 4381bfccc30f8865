import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Millis } from "#base/time.ts";
import { isDirectPossible, NAT_KINDS } from "./internet.ts";
import { assertNothingLost, createPair } from "./scenario.ts";
import type { SimMachine } from "./sim-machine.ts";
import { readInner } from "./sim-plane.ts";
import type { SimWorld } from "./sim-world.ts";

/*
 * Wakes of whole agents, 20 ms one way between any two hosts: what passes a server needs 40 ms. All times are virtual and
 * exact.
 */

/** Keys decide who controls; both ways must be equally fast. */
const BOTH_ROLES = [
  [0, 1],
  [1, 0],
] as const;

interface WakeTimes {
  /** The first packet is there. */
  readonly first: Millis;
  /** Its answer is back. */
  readonly reply: Millis;
  /** The first packet that took the direct way is there; undefined: none within the time watched. */
  readonly direct: Millis | undefined;
}

/** `from` sends a packet now and every 10 ms after it, `to` answers the first. */
async function measureWake(world: SimWorld, from: SimMachine, to: SimMachine, watch: Millis = 1_000) {
  const start = world.now;
  const direct = new Set<number>();
  let first: Millis | undefined;
  let reply: Millis | undefined;
  let directAt: Millis | undefined;
  let answer: number | undefined;
  world.onSent = (_, datagram) => {
    const packet = readInner(datagram);
    if (packet) direct.add(packet.id);
  };
  world.onDelivered = ({ id, to: at }) => {
    if (at === to && first === undefined) {
      first = world.now - start;
      answer = to.send(from);
    }
    if (id === answer) reply = world.now - start;
    if (direct.has(id)) directAt ??= world.now - start;
  };
  for (let at = 0; at < watch; at += 10) {
    from.send(to);
    await world.advance(10);
  }
  // What is under way still arrives.
  await world.advance(200);
  world.onSent = () => {};
  world.onDelivered = () => {};
  assert.ok(first !== undefined && reply !== undefined, `seed ${world.seed}: no answer within ${watch} ms`);
  return { first, reply, direct: directAt } satisfies WakeTimes;
}

const show = ({ first, reply, direct }: WakeTimes): string =>
  `first ${first}, reply ${reply}, direct ${direct ?? "-"} ms`;

describe("a cold wake", () => {
  for (const a of NAT_KINDS) {
    for (const b of NAT_KINDS) {
      test(`${a} to ${b} answers within 170 ms and is ${isDirectPossible(a, b) ? "direct within 220 ms" : "relayed"}`, async (t) => {
        for (const keyOrder of BOTH_ROLES) {
          using world = await createPair([a, b], { keyOrder });
          const [from, to] = world.machines as [SimMachine, SimMachine];
          const times = await measureWake(world, from, to);
          t.diagnostic(`${a} to ${b}, keys ${keyOrder}: ${show(times)}`);
          assert.ok(times.reply <= 170, show(times));
          if (isDirectPossible(a, b)) assert.ok(times.direct !== undefined && times.direct <= 220, show(times));
          else assert.equal(times.direct, undefined);
          assert.deepEqual([from.peer(to).status, to.peer(from).status], ["connected", "connected"]);
          // One message on each way: a second within 20 ms would be refused, and would have replaced the first at its sender.
          assert.equal(to.agent?.device.counters().get("drop-handshake-flood") ?? 0, 0);
          assertNothingLost(world);
        }
      });
    }
  }
});

describe("a wake with an endpoint known from an earlier connection", () => {
  for (const a of NAT_KINDS) {
    for (const b of NAT_KINDS) {
      if (!isDirectPossible(a, b)) continue;
      test(`${a} to ${b}`, async (t) => {
        for (const keyOrder of BOTH_ROLES) {
          using world = await createPair([a, b], { keyOrder });
          const [from, to] = world.machines as [SimMachine, SimMachine];
          await measureWake(world, from, to);
          assert.ok(await world.until(70_000, () => !from.peer(to).awake && !to.peer(from).awake), "both sleep");
          // The sessions are still good: only when they are gone does a wake need a handshake.
          await world.advance(200_000);
          const times = await measureWake(world, from, to);
          t.diagnostic(`${a} to ${b}, keys ${keyOrder}: ${show(times)}`);
          // A NAT that filters lets the first message in only where the other side sent from that endpoint before.
          const open = (b === "none" || b === "endpoint-independent") && (a !== "symmetric" || b === "none");
          assert.ok(times.reply <= (open ? 110 : 170), show(times));
          assertNothingLost(world);
        }
      });
    }
  }
});
