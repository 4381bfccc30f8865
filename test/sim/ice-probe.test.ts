import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { createPairOfPeers, Network, type SimPeer, signalBetween } from "./ice-network.ts";
import { type NatKind, STUN_SERVERS } from "./internet.ts";

/** A pair whose search failed because no packet got through. */
async function failedPair(nats: [NatKind, NatKind]): Promise<{ network: Network; a: SimPeer; b: SimPeer }> {
  const network = new Network();
  const [a, b] = createPairOfPeers(network, nats);
  for (const { host } of [a, b]) void host.cache.query(STUN_SERVERS[0]!);
  await network.advance(100);
  network.loss = 1;
  signalBetween(a, b);
  await network.advance(11_000);
  assert.deepEqual([a.agent.state, b.agent.state], ["failed", "failed"]);
  return { network, a, b };
}

describe("a search that failed", () => {
  test("is resumed by the probe of one side, without a word of signalling", async () => {
    const { network, a, b } = await failedPair(["none", "none"]);
    network.loss = 0;
    a.agent.probe();
    await network.advance(500);
    assert.deepEqual([a.agent.state, b.agent.state], ["selected", "selected"]);
    a.close();
    b.close();
  });

  test("is resumed through two strict NATs as well", async () => {
    const { network, a, b } = await failedPair(["port", "port"]);
    network.loss = 0;
    a.agent.probe();
    b.agent.probe();
    await network.advance(500);
    assert.deepEqual([a.agent.state, b.agent.state], ["selected", "selected"]);
    a.close();
    b.close();
  });

  test("stays over while probes are not answered, and each is a few packets", async () => {
    const { network, a, b } = await failedPair(["none", "none"]);
    const before = network.sent;
    for (let probe = 0; probe < 10; probe++) {
      a.agent.probe();
      a.agent.probe();
      await network.advance(2000);
    }
    const pairs = a.agent.pairs().length;
    assert.ok(network.sent - before <= 10 * Math.min(6, pairs), `${network.sent - before} packets to ${pairs} places`);
    assert.equal(a.agent.state, "failed");
    assert.equal(network.clock.pending, 0, "no timer");
    a.close();
    b.close();
  });

  test("a probe that only gets there, while nothing comes back, costs the other side one check each", async () => {
    const { network, a, b } = await failedPair(["none", "none"]);
    network.loss = 0;
    // b hears a, and a hears nothing.
    a.host.dispatcher.unregister(a.agent);
    const [toPair] = b.agent.pairs();
    const before = b.agent.pairs().reduce((sum, { sent }) => sum + sent, 0);
    for (let probe = 0; probe < 5; probe++) {
      a.agent.probe();
      await network.advance(2000);
    }
    const sent = b.agent.pairs().reduce((sum, { sent }) => sum + sent, 0) - before;
    assert.ok(toPair && sent <= 5 * b.agent.pairs().length, `${sent} checks`);
    assert.ok(sent > 0);
    assert.equal(b.agent.state, "failed");
    a.close();
    b.close();
  });
});

describe("a search that is put off", () => {
  test("sends nothing by itself, answers, and is found by the remote's checks", async () => {
    const network = new Network();
    const [a, b] = createPairOfPeers(network, ["none", "none"]);
    a.agent.setRemoteCredentials(b.credentials, false, true);
    signalBetween(a, b);
    assert.equal(
      a.agent.pairs().reduce((sum, { sent }) => sum + sent, 0),
      0,
    );
    await network.advance(1000);
    assert.deepEqual([a.agent.state, b.agent.state], ["selected", "selected"]);
    a.close();
    b.close();
  });

  test("on both sides stays silent until one of them probes", async () => {
    const network = new Network();
    const [a, b] = createPairOfPeers(network, ["none", "none"]);
    a.agent.setRemoteCredentials(b.credentials, false, true);
    b.agent.setRemoteCredentials(a.credentials, false, true);
    signalBetween(a, b);
    await network.advance(20_000);
    for (const peer of [a, b])
      assert.equal(
        peer.agent.pairs().reduce((sum, { sent }) => sum + sent, 0),
        0,
      );
    b.agent.probe();
    await network.advance(500);
    assert.deepEqual([a.agent.state, b.agent.state], ["selected", "selected"]);
    a.close();
    b.close();
  });
});
