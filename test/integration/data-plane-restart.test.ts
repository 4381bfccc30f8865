import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { ping, root } from "./data-plane/checks.ts";
import { type End, Pair } from "./data-plane/pair.ts";

/** Ends the worker of `end` and gives the next one its peer, as whoever owns the peers does. */
async function killWorker(end: End, far: number, asleep = false): Promise<void> {
  const restarts = (await end.counters())["worker-restarts"]!;
  await end.call("kill-worker");
  while ((await end.counters())["worker-restarts"] === restarts);
  await end.call("restorePeer", 0, { asleep });
  await end.call("addPrefix", 0, { address: `10.77.0.${far}`, bits: 32 });
}

const accept = { inbound: [], otherwise: "accept" } as const;
const drop = { inbound: [], otherwise: "drop" } as const;

test(
  "packets that waited when the worker died are counted as lost, and the next ones wait and leave",
  root,
  async () => {
    await using pair = await Pair.start({ asleep: true });
    const { a, b } = pair;
    const knock = (): Promise<unknown> =>
      a.exec("ping", "-c", "2", "-i", "0.05", "-W", "0.1", "10.77.0.2").catch(() => 0);
    await knock();
    const before = await a.counters();
    assert.equal(before["staged-waiting"], 2);
    await killWorker(a, 2, true);
    assert.equal(a.count("restarted"), 1);
    assert.equal(a.count("wake"), 1);
    await knock();
    // The second wake is the next worker's.
    while (a.count("wake") < 2) await sleep(20);
    const after = await a.counters();
    assert.equal(after["drop-staged-restart"], 2);
    assert.equal(after["staged-waiting"], 2, "the next two");
    assert.equal(after["staged-packets"], 4, "counters go on");
    for (const end of [a, b]) await end.call("setAsleep", 0, false);
    await pair.connect();
    await ping(a, "10.77.0.2");
    assert.equal((await a.counters())["staged-waiting"], 0);
  },
);

test("filter and MTU come with the next worker by themselves", root, async () => {
  await using pair = await Pair.start();
  const { a, b } = pair;
  await ping(b, "10.77.0.1");
  const { rxBytes } = await a.call<{ rxBytes: number }>("peerCounters", 0);
  assert.ok(rxBytes > 0);
  await a.call("setFilter", drop);
  await a.call("setMtu", 1300);
  await killWorker(a, 2);
  assert.equal((await a.call<{ rxBytes: number }>("peerCounters", 0)).rxBytes, rxBytes, "its row goes on");
  await pair.connect();
  // Confirms the session, too: b sends with the one that a has lost until then.
  await ping(a, "10.77.0.2", "-s", "1200");
  await assert.rejects(ping(b, "10.77.0.1"), "what b begins is dropped as before");
  assert.ok((await a.counters())["drop-filter"]! > 0);
  await a.call("setFilter", accept);
  await ping(b, "10.77.0.1");
});
