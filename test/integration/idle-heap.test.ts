/** What an idle peer takes of an agent's memory: everything above the data worker, counted after collections of garbage. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { systemClock } from "#base/time.ts";
import { RemotePeerConfigSchema, SyncResponseSchema } from "#gen/management_pb.ts";
import { createPeers } from "../../bench/big-network.ts";
import { createLoneAgent, LONE_NETWORK, type LoneAgent } from "../../bench/lone-agent.ts";

const FEW = 2_000;
const MANY = 12_000;
/** As a server sends them. */
const PEERS_PER_PART = 1_000;
/**
 * Bytes, of which 890 are taken: the key's text and those of its name and addresses (200), what the map says of it (200), and its
 * places in the tables of the map, the connections, the device, the names and the relay client.
 */
const BYTES_MAX = 1_000;

setFlagsFromString("--expose-gc");
const collect = runInNewContext("gc") as (options: object) => void;

/** Bytes of objects, and of arrays of numbers, that are held. */
function measureHeld(): number {
  for (let round = 0; round < 3; round++) collect({ type: "major", execution: "sync", flavor: "last-resort" });
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

/** Peers come as bytes, so that texts are in memory as they are in an agent. */
function createAgent(count: number): LoneAgent {
  const agent = createLoneAgent(systemClock);
  const peers = createPeers(LONE_NETWORK, count);
  for (let at = 0; at < count; at += PEERS_PER_PART) {
    const part = peers.slice(at, at + PEERS_PER_PART).map(({ key, address, address6, dnsLabel }) => ({
      peer: create(RemotePeerConfigSchema, {
        wgPubKey: key,
        allowedIps: [`${address}/32`, `${address6}/128`],
        fqdn: `${dnsLabel}.perch.internal`,
        agentVersion: "0.76.0",
      }),
    }));
    const more = at + PEERS_PER_PART < count;
    const perch = { epoch: "e", revision: 1, reset: at === 0, more, peers: part };
    const message = create(SyncResponseSchema, { ...(!more && { NetworkMap: { Serial: 1n } }), perch });
    agent.engine.update(fromBinary(SyncResponseSchema, toBinary(SyncResponseSchema, message)));
  }
  assert.equal(agent.engine.connections.size, count);
  return agent;
}

function measureAgent(count: number): number {
  const before = measureHeld();
  const agent = createAgent(count);
  const held = measureHeld() - before;
  agent.close();
  return held;
}

test(`an idle peer takes less than ${BYTES_MAX} bytes of the main thread's memory`, (t) => {
  // Code and what is made once.
  measureAgent(MANY);
  const slope = (measureAgent(MANY) - measureAgent(FEW)) / (MANY - FEW);
  t.diagnostic(`${slope.toFixed(0)} B`);
  assert.ok(slope < BYTES_MAX, `${slope.toFixed(0)} B`);
});
