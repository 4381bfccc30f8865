import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { resolve } from "node:path";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { createLab, type Lab } from "../../lab/lab.ts";
import { NAT } from "../../lab/nat.ts";
import { type LabAgent, PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { hostPerSite } from "../../lab/topology.ts";
import { type Flow, Traffic } from "../../lab/traffic.ts";
import { readMachine } from "./machine-state.ts";

const INTERFACE = `pf${process.pid.toString(36)}`;
const SOCKET = `/var/run/wireguard/${INTERFACE}.sock`;
/** Of the port thread, and of wireguard-go, within a minute: the tunnel is built anew at the last. */
const DEATHS = 5;
/** What the thread had in hand when it was ended. */
const IN_HAND = 2;
const isRoot = process.getuid?.() === 0;

/** A relayed peer, all of whose packets the port thread reads. */
describe("faults of what an agent with wireguard-go is made of", { skip: !isRoot && "needs root" }, () => {
  let lab: Lab;
  let network: PerchNetwork;
  let alder: LabAgent;
  let from: Traffic;
  let to: Traffic;
  let logFrom = 0;

  before(async () => {
    lab = await createLab(hostPerSite({ hub: {}, alder: { nat: NAT.symmetric }, birch: { nat: NAT.portRestricted } }));
    network = await PerchNetwork.start(lab, {
      server: "hub",
      agents: ["alder", "birch"],
      upFlags: (name) => (name === "alder" ? ["--device", "wireguard-go", "--interface-name", INTERFACE] : []),
      daemonEnvironment: {
        PERCH_LOCAL_SOCKETS_MAX: "0",
        NODE_OPTIONS: `--import=${resolve(import.meta.dirname, "kill-data-worker.ts")}`,
      },
    });
    alder = network.agent("alder");
    from = await Traffic.start(alder.host);
    to = await Traffic.start(network.agent("birch").host);
  });

  after(async () => {
    await from?.[Symbol.asyncDispose]();
    await to?.[Symbol.asyncDispose]();
    await network?.close();
    await lab?.close();
  });

  const pid = (): number | undefined =>
    readdirSync("/proc")
      .filter((entry) => /^\d+$/.test(entry) && /\/wireguard-go$/.test(wordsOf(entry)[0] ?? ""))
      .map(Number)
      .find((process) => wordsOf(`${process}`)[1] === INTERFACE);
  const counters = async (): Promise<Record<string, number>> =>
    JSON.parse(await alder.mustPerch(["status", "--json"])).perch.counters;
  const isReady = async (): Promise<boolean> => (await alder.perch(["status", "--check", "ready"])).code === 0;
  const isThrough = async (): Promise<boolean> =>
    (await from.udp(network.agent("birch").address, { count: 1, timeoutMs: 1000 })).received === 1;
  const logged = (message: string): number => alder.log.slice(logFrom).split(message).length - 1;
  const flow = (): Flow => from.flow(network.agent("birch").address, { intervalMs: 10 });

  test("the port thread dies under traffic: what the sockets and the ring had is not lost", async (t) => {
    const running = flow();
    await sleep(800);
    process.kill(alder.pid!, "SIGPWR");
    await waitFor(async () => (await counters())["port-thread-restarts"] === 1, "another thread");
    await sleep(500);
    const { sentAt, echoedAt } = await running.stop();
    const lost = echoedAt.filter((at) => at === 0).length;
    t.diagnostic(`${lost} of ${sentAt.length} lost`);
    assert.ok(lost <= IN_HAND);
  });

  test("what somebody else changed with wg is put back", async () => {
    assert.ok(await isThrough());
    const [key] = (await alder.host.exec("wg", ["show", INTERFACE, "peers"])).stdout.split("\n");
    await alder.host.exec("wg", ["set", INTERFACE, "peer", key!, "remove"]);
    await waitFor(async () => (await alder.host.exec("wg", ["show", INTERFACE, "peers"])).stdout !== "", "the peer");
    await waitFor(isThrough, "traffic", 10_000);
    await alder.host.exec("wg", ["set", INTERFACE, "listen-port", "9999"]);
    const port = async (): Promise<string> =>
      (await alder.host.exec("wg", ["show", INTERFACE, "listen-port"])).stdout.trim();
    await waitFor(async () => (await port()) === "51820", "the port");
    await waitFor(isThrough, "traffic", 10_000);
  });

  /** Kills until the device is given up, each time when the log has told of the one that replaced the last. */
  async function killUntilGone(kill: () => void, replaced: string): Promise<void> {
    const isGone = (): boolean => logged("wireguard device is gone") > 0;
    for (let deaths = 0; deaths < DEATHS && !isGone(); deaths++) {
      const before = logged(replaced);
      kill();
      await waitFor(async () => logged(replaced) > before || isGone(), replaced, 10_000);
    }
    assert.ok(isGone());
  }

  const faults = {
    "the port thread": async () => {
      await killUntilGone(() => process.kill(alder.pid!, "SIGPWR"), "another takes over");
      return "died too often";
    },
    "wireguard-go": async () => {
      await killUntilGone(() => process.kill(pid()!, "SIGKILL"), "wireguard device was restarted");
      return "died 5 times";
    },
  };

  for (const [what, fault] of Object.entries(faults))
    test(`${what} dies five times: the tunnel is built anew, and the log says it once`, {
      timeout: 30_000,
    }, async (t) => {
      const daemon = alder.pid;
      const running = flow();
      logFrom = alder.log.length;
      const reason = await fault();
      await waitFor(isReady, "the tunnel", 20_000);
      await waitFor(isThrough, "traffic", 10_000);
      const { sentAt, echoedAt } = await running.stop();
      t.diagnostic(`${echoedAt.filter((at) => at === 0).length} of ${sentAt.length} lost`);
      assert.equal(logged("wireguard device is gone"), 1);
      assert.match(alder.log.slice(logFrom), new RegExp(`the tunnel ended reason=.*${reason}`));
      assert.equal(alder.pid, daemon);
    });

  test("the agent ends promptly while wireguard-go is stopped, and leaves nothing", async () => {
    process.kill(pid()!, "SIGSTOP");
    await alder.stop();
    assert.equal(pid(), undefined);
    assert.equal(existsSync(SOCKET), false);
    const { links } = await readMachine(alder.host);
    assert.ok(!links.some((line) => line.includes(INTERFACE)));
    assert.equal((await alder.host.exec("nft", ["list", "ruleset"])).stdout, "");
  });
});

function wordsOf(pid: string): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "latin1").split("\0");
  } catch {
    return [];
  }
}
