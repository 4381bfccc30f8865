import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { Millis } from "#base/time.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { NAT } from "../../lab/nat.ts";
import { type LabAgent, PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import { hostPerSite } from "../../lab/topology.ts";

const PEERS = 50;
const WATCHED: Millis = 30_000;

interface Sleeper {
  readonly fqdn: string;
  readonly status: string;
  readonly perch: { readonly transferSent: number; readonly transferReceived: number };
}

/** What a daemon holds while it does nothing. */
interface Holdings {
  readonly descriptors: number;
  readonly udpSockets: readonly string[];
  readonly tcpSockets: number;
  readonly timers: number;
  readonly threads: number;
}

/** An agent with 50 peers of which none is awake: one real agent, and 49 that registered and never came back. */
describe("idle means silent", { skip: await skipWithoutLab() }, () => {
  let lab: Lab;
  let network: PerchNetwork;
  let alder: LabAgent;
  const directory = mkdtempSync(join(tmpdir(), "perch-idle-"));

  before(async () => {
    lab = await createLab(
      hostPerSite({ hub: {}, alder: { nat: NAT.portRestricted }, birch: { nat: NAT.endpointIndependent } }),
    );
    network = await PerchNetwork.start(lab, {
      server: "hub",
      agents: ["alder", "birch"],
      daemonEnvironment: {
        NODE_OPTIONS: `--import=${resolve(import.meta.dirname, "live-timers.ts")}`,
        PERCH_TIMERS_DIRECTORY: directory,
      },
    });
    alder = network.agent("alder");
  });

  after(async () => {
    await network?.close();
    await lab?.close();
    rmSync(directory, { recursive: true });
  });

  async function peers(agent: LabAgent): Promise<Sleeper[]> {
    return JSON.parse(await agent.mustPerch(["status", "--json"])).peers.details as Sleeper[];
  }

  /** What the daemon holds once the command that asked last is gone from its socket. */
  async function holdings(agent: LabAgent): Promise<Holdings> {
    const { pid } = agent;
    const file = join(directory, `${pid}`);
    rmSync(file, { force: true });
    await sleep(500);
    process.kill(pid!, "SIGUSR2");
    await waitFor(async () => readIfThere(file) !== "", "count of the timers");
    const inNamespace = async (...names: readonly string[]): Promise<string[]> => {
      const { stdout } = await agent.host.exec(
        "cat",
        names.map((name) => `/proc/net/${name}`),
      );
      return stdout.split("\n").flatMap((line) => /^ *\d+: (\S+ \S+) /.exec(line)?.[1] ?? []);
    };
    return {
      descriptors: readdirSync(`/proc/${pid}/fd`).length,
      udpSockets: (await inNamespace("udp", "udp6")).sort(),
      tcpSockets: (await inNamespace("tcp", "tcp6")).length,
      timers: Number(readIfThere(file)),
      threads: readdirSync(`/proc/${pid}/task`).length,
    };
  }

  test(`an agent with ${PEERS} sleeping peers holds what it holds with one`, { timeout: 90_000 }, async (t) => {
    assert.deepEqual(
      (await peers(alder)).map(({ status }) => status),
      ["Idle"],
    );
    const withOne = await holdings(alder);
    const hub = lab.host("hub");
    const script = resolve(import.meta.dirname, "register-peers.ts");
    const { code, stderr } = await hub.execNode(script, [network.managementUrl, network.setupKey, String(PEERS - 1)], {
      timeoutMs: 60_000,
    });
    assert.equal(code, 0, stderr);
    await waitFor(async () => (await peers(alder)).length === PEERS, "the whole map");
    await waitFor(async () => (await peers(network.agent("birch"))).length === PEERS, "the whole map of the other");
    t.diagnostic(JSON.stringify(withOne));
    assert.deepEqual(await holdings(alder), withOne);
  });

  test(`for ${WATCHED / 1000} s it sends no packet to any of them`, { timeout: 90_000 }, async (t) => {
    const hosts = ["alder", "birch"] as const;
    const captures = hosts.map((host) => ({ host, file: join(directory, `${host}.pcap`) }));
    const before = await lab.counters();
    for (const { host, file } of captures) await lab.startCapture({ host }, file);
    await sleep(WATCHED);
    for (const { host } of captures) await lab.stopCapture({ host });
    const after = await lab.counters();
    const hub = lab.host("hub").address;
    for (const { host, file } of captures) {
      const own = lab.host(host).address;
      const sent = readCapture(file).filter(({ from }) => from === own);
      const payload = sent.reduce((sum, { bytes }) => sum + bytes, 0);
      t.diagnostic(`${host} sent the server ${sent.length} packets, ${payload} bytes`);
      assert.deepEqual([...new Set(sent.map(({ to }) => to))], [hub]);
      assert.ok(!sent.some(({ isSyn }) => isSyn), "its connections to the server last");
      // Over the relay a handshake of one peer alone has 148 bytes.
      assert.ok(payload < PEERS * 148, `${payload} bytes to the server`);
      assert.deepEqual(Object.keys(after.pairs[host] ?? {}), ["hub"]);
    }
    assert.deepEqual(after.drops, before.drops);
    for (const host of hosts) {
      const awake = (await peers(network.agent(host))).filter(
        ({ status, perch }) => status !== "Idle" || perch.transferSent > 0 || perch.transferReceived > 0,
      );
      assert.deepEqual(awake, []);
    }
  });

  test("and one ping wakes the one peer it is for", { timeout: 30_000 }, async () => {
    const before = await holdings(alder);
    const { code, stdout } = await alder.host.exec("ping", ["-c1", "-W5", network.agent("birch").address]);
    assert.equal(code, 0, stdout);
    const awake = (await peers(alder)).filter(({ status }) => status !== "Idle");
    assert.deepEqual(
      awake.map(({ fqdn, status }) => [fqdn.split(".")[0], status]),
      [["birch", "Connected"]],
    );
    // What is counted above does count: a peer that is awake has timers.
    assert.ok((await holdings(alder)).timers > before.timers);
  });
});

interface CapturedPacket {
  readonly from: string;
  readonly to: string;
  readonly bytes: number;
  /** It opens a TCP connection. */
  readonly isSyn: boolean;
}

/** IPv4 packets of a pcap file with raw packets: 24 bytes of header, 16 before each packet. */
function readCapture(file: string): CapturedPacket[] {
  const data = readFileSync(file);
  const packets = [];
  for (let at = 24; at < data.length; at += 16 + data.readUInt32LE(at + 8)) {
    const packet = data.subarray(at + 16);
    if (packet[0]! >> 4 !== 4) continue;
    const address = (offset: number): string => packet.subarray(offset, offset + 4).join(".");
    const isSyn = packet[9] === 6 && (packet[(packet[0]! & 15) * 4 + 13]! & 0x12) === 0x02;
    packets.push({ from: address(12), to: address(16), bytes: packet.readUInt16BE(2), isSyn });
  }
  return packets;
}

function readIfThere(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return "";
  }
}
