import assert from "node:assert/strict";
import type { Millis } from "#base/time.ts";
import type { NatKind } from "./internet.ts";
import type { MachineSettings, SimMachine } from "./sim-machine.ts";
import { SimWorld, type WorldOptions } from "./sim-world.ts";

export type Pair = readonly [SimMachine, SimMachine];

/** Two machines whose agents have been up for a while. */
export async function createPair(
  nats: readonly [NatKind, NatKind],
  options: Partial<WorldOptions> = {},
  settings: Partial<MachineSettings> = {},
): Promise<SimWorld> {
  const world = new SimWorld({ machines: nats.map((nat) => ({ ...settings, nat })), ...options });
  world.startAll();
  await world.advance(5_000);
  return world;
}

/** Both machines send a packet every `interval` for `duration`. */
export async function talk(world: SimWorld, [a, b]: Pair, duration: Millis, interval: Millis = 100): Promise<void> {
  for (let at = 0; at < duration; at += interval) {
    a.send(b);
    b.send(a);
    await world.advance(interval);
  }
}

/** Wakes the pair and lets the best path be found. */
export async function connect(world: SimWorld, pair: Pair): Promise<void> {
  const [a, b] = pair;
  a.send(b);
  await world.advance(3_000);
  assert.deepEqual(statuses(pair), ["connected", "connected"]);
  assert.equal(a.peer(b).path.kind, b.peer(a).path.kind, "both ends use the same kind of path");
}

export function statuses([a, b]: Pair): [string, string] {
  return [a.peer(b).status, b.peer(a).status];
}

export function paths([a, b]: Pair): [string, string] {
  return [a.peer(b).path.kind, b.peer(a).path.kind];
}

/** Every packet was delivered exactly once. */
export function assertNothingLost(world: SimWorld): void {
  for (const { id, from, to, sentAt, deliveries, losses } of world.packets.values()) {
    const story = `packet ${id} ${from.name} to ${to.name} of ${sentAt} ms`;
    assert.equal(deliveries, 1, `${story} was delivered ${deliveries} times: ${losses}`);
  }
}

/**
 * The longest time without a delivery from one machine to the other, among packets sent at or after `since`; packets must
 * have been sent all the time.
 */
export function longestGap(world: SimWorld, from: SimMachine, to: SimMachine, since: Millis): Millis {
  const times = [...world.packets.values()]
    .filter((record) => record.from === from && record.to === to && (record.deliveredAt ?? -1) >= since)
    .map((record) => record.deliveredAt!)
    .sort((x, y) => x - y);
  let gap = 0;
  let last = since;
  for (const at of [...times, world.now]) {
    gap = Math.max(gap, at - last);
    last = at;
  }
  return gap;
}
