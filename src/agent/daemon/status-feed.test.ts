import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as nextTurn } from "node:timers/promises";
import { toAgentSettings } from "./agent-lifecycle.ts";
import { resolveSettings } from "./settings.ts";
import { StatusFeed } from "./status-feed.ts";
import { FakeAgent, keyOf, makePeers } from "./testing/fake-agent.ts";

async function feedOf(count: number): Promise<{ agent: FakeAgent; feed: StatusFeed }> {
  const agent = new FakeAgent(makePeers(count));
  agent.registered = true;
  const resolved = resolveSettings({ flag: { managementUrl: "http://m.test" } });
  await agent.up(toAgentSettings(resolved, undefined), new AbortController().signal);
  const feed = new StatusFeed(agent);
  feed.watch();
  return { agent, feed };
}

test("a watcher gets everything first, then only what changed", async () => {
  const { agent, feed } = await feedOf(100);
  const first = await feed.since("", 0n);
  assert.deepEqual([first.reset, first.peers.length], [true, 100]);
  agent.wakePeer(keyOf(5));
  agent.removePeer(keyOf(9));
  const second = await feed.since(feed.epoch, first.revision);
  assert.deepEqual([second.reset, second.peers.map(({ key }) => key), second.removed], [false, [keyOf(5)], [keyOf(9)]]);
  assert.deepEqual((await feed.since(feed.epoch, second.revision)).peers, []);
});

test("a watcher that was away for several changes gets them at once, each peer once", async () => {
  const { agent, feed } = await feedOf(10);
  const { revision } = await feed.since("", 0n);
  agent.wakePeer(keyOf(1));
  await feed.since(feed.epoch, revision);
  agent.sleepPeer(keyOf(1));
  await feed.since(feed.epoch, revision);
  agent.wakePeer(keyOf(2));
  const { peers } = await feed.since(feed.epoch, revision);
  assert.deepEqual(
    peers.map(({ key, state }) => [key, state]),
    [
      [keyOf(1), "idle"],
      [keyOf(2), "connecting"],
    ],
  );
});

test("a revision of another run of the daemon starts again with everything", async () => {
  const { feed } = await feedOf(10);
  await feed.since("", 0n);
  assert.equal((await feed.since("another", 1n)).reset, true);
  assert.equal((await feed.since(feed.epoch, 99n)).reset, true);
});

test("a watcher that missed more removals than are remembered starts again with everything", async () => {
  const { agent, feed } = await feedOf(4200);
  const { revision } = await feed.since("", 0n);
  for (let index = 1; index <= 10; index++) agent.removePeer(keyOf(index));
  await feed.since(feed.epoch, revision);
  const status = agent.status();
  agent.status = () => ({ ...status, peers: [] });
  feed.noteChange("all");
  await feed.since(feed.epoch, revision);
  const late = await feed.since(feed.epoch, revision);
  assert.equal(late.reset, true);
  assert.deepEqual(late.peers, []);
});

test("a change of one peer reads that peer and those that are awake, not the others", async () => {
  const { agent, feed } = await feedOf(400);
  const { revision } = await feed.since("", 0n);
  const awake = agent.status().peers.filter(({ state }) => state !== "idle").length;
  const status = agent.status.bind(agent);
  let read = 0;
  agent.status = () => ({
    ...status(),
    get peers(): never {
      throw new Error("all peers were asked for");
    },
  });
  agent.peerStatus = (key) => {
    read++;
    return status().peers.find((peer) => peer.key === key);
  };
  agent.wakePeer(keyOf(5));
  const change = await feed.since(feed.epoch, revision);
  assert.deepEqual(
    change.peers.map(({ key }) => key),
    [keyOf(5)],
  );
  assert.ok(read <= awake + 1, `${read} peers were read`);
  agent.removePeer(keyOf(6));
  const removal = await feed.since(feed.epoch, change.revision);
  assert.deepEqual([removal.peers, removal.removed], [[], [keyOf(6)]]);
});

test("a large network is read over many turns, and what changes meanwhile is neither lost nor told late", async () => {
  const { agent, feed } = await feedOf(10_000);
  let turns = 0;
  let ended = false;
  const counting = (async () => {
    while (!ended) {
      await nextTurn();
      turns++;
      if (turns === 3) {
        agent.wakePeer(keyOf(1));
        agent.removePeer(keyOf(2));
        agent.wakePeer(keyOf(9_997));
      }
    }
  })();
  const [first, too] = await Promise.all([feed.since("", 0n), feed.since("", 0n)]);
  ended = true;
  await counting;
  assert.ok(turns > 30, `${turns} turns`);
  assert.deepEqual([first.peers.length, too.revision], [10_000, first.revision]);
  const second = await feed.since(feed.epoch, first.revision);
  const states = new Map(first.peers.concat(second.peers).map(({ key, state }) => [key, state]));
  assert.deepEqual([states.get(keyOf(1)), states.get(keyOf(9_997))], ["connecting", "connecting"]);
  assert.deepEqual([second.reset, second.removed], [false, [keyOf(2)]]);
});

test("a watcher that missed more changes than are remembered apart gets each changed peer all the same", async () => {
  const { agent, feed } = await feedOf(10);
  const { revision } = await feed.since("", 0n);
  for (let round = 0; round < 20_000; round++) {
    agent.changePeer(keyOf(1 + (round % 2)), { rxBytes: round });
    await feed.since(feed.epoch, revision);
  }
  const { reset, peers } = await feed.since(feed.epoch, revision);
  assert.equal(reset, false);
  assert.deepEqual(new Set(peers.map(({ key }) => key)), new Set([keyOf(1), keyOf(2)]));
});

test("waiting ends with a change or with the signal, and the agent is let go with the last watcher", async () => {
  const agent = new FakeAgent();
  const feed = new StatusFeed(agent);
  const leave = feed.watch();
  const leaveToo = feed.watch();
  assert.equal(agent.listeners, 1);
  const stop = new AbortController();
  const { revision } = await feed.since("", 0n);
  const waiting = feed.changed(stop.signal);
  agent.setState("starting");
  assert.equal(await waiting, true);
  await feed.since(feed.epoch, revision);
  const again = feed.changed(stop.signal);
  stop.abort();
  assert.equal(await again, false);
  leave();
  leave();
  assert.equal(agent.listeners, 1);
  leaveToo();
  assert.equal(agent.listeners, 0);
});
