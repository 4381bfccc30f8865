import assert from "node:assert/strict";
import { after, before, describe, type TestContext, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { Millis } from "#base/time.ts";
import { PeerState } from "#gen/daemon_pb.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { NAT } from "../../lab/nat.ts";
import { type LabAgent, PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import { hostPerSite } from "../../lab/topology.ts";
import { type WakeEnd, WakePair } from "../../lab/wake-pair.ts";

/** Upper bound for everything that has to come back by itself: the longest pause of a client (30 s), and a loaded machine. */
const BACK_TIMEOUT: Millis = 45_000;
/** Of each test. */
const TIMEOUT: Millis = 300_000;
/** How long the server is away or cut off; longer ones show the clients' growing pauses. */
const AWAY_SECONDS = Number(process.env.PERCH_TEST_AWAY_SECONDS ?? 4);
/** Steady traffic: a datagram each `INTERVAL` for as long as a test looks. */
const INTERVAL: Millis = 20;

interface Details {
  readonly management: { readonly connected: boolean };
  readonly signal: { readonly connected: boolean };
  readonly relays: { readonly details: readonly { readonly uri: string; readonly available: boolean }[] };
  readonly publicKey: string;
  readonly netbirdIp: string;
  readonly perch: { readonly state: string; readonly reason: string; readonly networkSerial: number };
  readonly peers: { readonly details: readonly { readonly fqdn: string }[] };
}

/**
 *   alder (port-restricted) ---- birch (address-restricted)      connected directly
 *   cedar (symmetric) ---------- dogwood (symmetric)             connected over the relay
 *   elm                                                          deleted while the server is down
 *   fir                                                          joins right after
 */
describe("the server is killed, restarted or cut off", { skip: await skipWithoutLab() }, () => {
  let lab: Lab;
  let network: PerchNetwork;
  let direct: WakePair;
  let relayed: WakePair;

  before(async () => {
    lab = await createLab(
      hostPerSite({
        hub: {},
        alder: { nat: NAT.portRestricted },
        birch: { nat: NAT.addressRestricted },
        cedar: { nat: NAT.symmetric },
        dogwood: { nat: NAT.symmetric },
        elm: {},
        fir: {},
      }),
    );
    network = await PerchNetwork.start(lab, {
      server: "hub",
      agents: ["alder", "birch", "cedar", "dogwood", "elm", "fir"],
    });
    // Registered later.
    await network.agent("fir").mustPerch(["deregister", "--yes"]);
    direct = await WakePair.start(network, "alder", "birch");
    relayed = await WakePair.start(network, "cedar", "dogwood");
  });

  after(async () => {
    await direct?.[Symbol.asyncDispose]();
    await relayed?.[Symbol.asyncDispose]();
    await network?.close();
    await lab?.close();
  });

  const details = async (agent: LabAgent): Promise<Details> =>
    JSON.parse(await agent.mustPerch(["status", "--json"])) as Details;

  /** What is not connected, of management, signal, relay and STUN as the agent sees them. */
  async function missing(agent: LabAgent): Promise<string[]> {
    const { management, signal, relays } = await details(agent);
    return [
      ...(management.connected ? [] : ["management"]),
      ...(signal.connected ? [] : ["signal"]),
      ...relays.details.filter(({ available }) => !available).map(({ uri }) => uri),
    ];
  }

  /** Waits until all agents have all servers; how long each took. */
  async function allBack(names: readonly string[]): Promise<string> {
    const start = performance.now();
    const took = await Promise.all(
      names.map(async (name) => {
        const agent = network.agent(name);
        await waitFor(async () => (await missing(agent)).length === 0, `all servers of ${name}`, BACK_TIMEOUT);
        return `${name} ${((performance.now() - start) / 1000).toFixed(1)} s`;
      }),
    );
    return took.join(", ");
  }

  const admin = async (...args: readonly string[]): Promise<unknown> => {
    const { code, stdout, stderr } = await network.perchServer([...args, "--json"]);
    assert.equal(code, 0, stderr);
    return JSON.parse(stdout) as unknown;
  };

  /** What has to be the same after a restart; whether a peer is connected just now does not. */
  async function durable(): Promise<unknown> {
    const peers = (await admin("peers", "list")) as Record<string, unknown>[];
    return {
      peers: peers
        .map(({ connected: _, lastSeenAt: __, ...peer }) => peer)
        .sort((a, b) => (String(a.name) < String(b.name) ? -1 : 1)),
      keys: await admin("setup-key", "list"),
      serials: await Promise.all(
        ["alder", "birch", "cedar", "dogwood"].map(async (name) => {
          const { perch, publicKey, netbirdIp } = await details(network.agent(name));
          return { name, serial: perch.networkSerial, publicKey, netbirdIp };
        }),
      ),
    };
  }

  async function connect(): Promise<void> {
    assert.equal((await direct.wake("udp")).result.received, 1);
    assert.equal((await relayed.wake("udp")).result.received, 1);
    await direct.direct(direct.from, 10_000);
    await direct.direct(direct.to, 10_000);
    assert.equal(relayed.peerOf(relayed.from)?.path?.path.case, "relay");
  }

  /** Sends single datagrams until one comes back; the time until then. */
  async function untilAnswered(end: WakeEnd, to: string): Promise<Millis> {
    const start = performance.now();
    await waitFor(
      async () => (await end.traffic.udp(to, { timeoutMs: 300, settleMs: 0 })).received === 1,
      `an answer of ${to}`,
      BACK_TIMEOUT,
    );
    return performance.now() - start;
  }

  /** Steady traffic of the direct pair while `act` runs, and a while after; the counts at the end. */
  async function withTraffic(seconds: number, act: () => Promise<void>) {
    const count = (seconds * 1000) / INTERVAL;
    const running = direct.from.traffic.udp(direct.to.agent.address, {
      count,
      intervalMs: INTERVAL,
      timeoutMs: seconds * 3000,
    });
    await act();
    const { sent, received, duplicates } = await running;
    return { lost: sent - received, duplicates };
  }

  /** Until the relayed pair talks and every agent has every server, and after how many seconds each did. */
  async function returned(t: TestContext): Promise<void> {
    const [relayedAfter, servers] = await Promise.all([
      untilAnswered(relayed.from, relayed.to.agent.address),
      allBack(["alder", "birch", "cedar", "dogwood"]),
    ]);
    t.diagnostic(`after the return the relayed pair talks in ${(relayedAfter / 1000).toFixed(1)} s`);
    t.diagnostic(`after the return all servers are connected: ${servers}`);
  }

  test("kill -9 and a restart: the direct pair loses nothing, the relayed pair and all agents are back, all is as before", {
    timeout: TIMEOUT,
  }, async (t) => {
    await connect();
    const before = await durable();
    const counts = await withTraffic(AWAY_SECONDS + 4, async () => {
      await network.stopServer("SIGKILL");
      await waitFor(async () => (await missing(direct.from.agent)).length >= 3, "alder notices", BACK_TIMEOUT);
      await sleep(AWAY_SECONDS * 1000);
      await network.startServer();
      await returned(t);
    });
    assert.deepEqual(counts, { lost: 0, duplicates: 0 });
    assert.equal(direct.peerOf(direct.from)?.path?.path.case, "direct");
    assert.deepEqual(await durable(), before);
  });

  test("what changed while the server was away, and right after, arrives", { timeout: TIMEOUT }, async () => {
    const alder = network.agent("alder");
    const names = async (): Promise<string[]> =>
      (await details(alder)).peers.details.map(({ fqdn }) => fqdn.split(".")[0]!).sort();
    assert.deepEqual(await names(), ["birch", "cedar", "dogwood", "elm"]);
    await network.stopServer("SIGKILL");
    const { code, stderr } = await network.perchServer(["peers", "delete", "elm"]);
    assert.equal(code, 0, stderr);
    await network.startServer();
    await network.agent("fir").up(["--setup-key", network.setupKey]);
    await waitFor(async () => (await names()).join() === "birch,cedar,dogwood,fir", "the new map", BACK_TIMEOUT);
    await waitFor(
      async () => (await network.agent("fir").status()).peers.details.length === 4,
      "the map of the new peer",
      BACK_TIMEOUT,
    );
    const elm = network.agent("elm");
    await waitFor(async () => (await details(elm)).perch.state === "needs-login", "elm knows", BACK_TIMEOUT);
    assert.match((await details(elm)).perch.reason, /setup key|not registered|does not know|refused/);
  });

  test("a wake without a server completes when it is back, with the packet that woke", {
    timeout: TIMEOUT,
  }, async (t) => {
    await allBack(["cedar", "dogwood"]);
    await relayed.sleep();
    await network.stopServer("SIGKILL");
    const waking = relayed.wake("udp", { count: 3, timeoutMs: BACK_TIMEOUT });
    await relayed.from.view.until("dogwood", "connecting", ({ state }) => state === PeerState.CONNECTING, 5000);
    await sleep(2000);
    await network.startServer();
    const back = performance.now();
    const { sent, received, duplicates, inOrder } = (await waking).result;
    t.diagnostic(`delivered ${((performance.now() - back) / 1000).toFixed(1)} s after the return`);
    assert.deepEqual({ sent, received, duplicates, inOrder }, { sent: 3, received: 3, duplicates: 0, inOrder: true });
  });

  test("a server cut off and reachable again: the direct pair loses nothing, all is back", {
    timeout: TIMEOUT,
  }, async (t) => {
    await allBack(["alder", "birch", "cedar", "dogwood"]);
    await connect();
    const counts = await withTraffic(AWAY_SECONDS + 6, async () => {
      await lab.cut("hub");
      await sleep(AWAY_SECONDS * 1000);
      await lab.restore("hub");
      await returned(t);
    });
    assert.deepEqual(counts, { lost: 0, duplicates: 0 });
    await relayed.sleep();
    assert.equal((await relayed.wake("udp")).result.received, 1);
  });
});
