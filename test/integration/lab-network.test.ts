import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import type { Host } from "../../lab/host.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { NAT } from "../../lab/nat.ts";
import { skipWithoutLab } from "../../lab/rootless.ts";
import { createVethPair } from "../../lab/veth.ts";
import { UdpPeer } from "./lab-udp-peer.ts";

const skip = await skipWithoutLab();

interface Ping {
  readonly sent: number;
  readonly timesMs: readonly number[];
  readonly text: string;
}

async function ping(from: Host, to: string, count: number, intervalMs = 20): Promise<Ping> {
  const { stdout } = await from.exec("ping", ["-n", "-W1", `-c${count}`, `-i${intervalMs / 1000}`, to]);
  return {
    sent: count,
    timesMs: [...stdout.matchAll(/time=([\d.]+)/g)].map((match) => Number(match[1])),
    text: stdout,
  };
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)]!;
}

/** Starts a TCP server on a host that sends "hello" to each client. */
async function serveTcp(host: Host, port: number): Promise<AsyncDisposable> {
  const script = `require("node:net").createServer((s) => s.end("hello")).listen(${port}, () => console.log("ready"))`;
  const child = host.spawn(process.execPath, ["-e", script], { stdio: ["ignore", "pipe", "inherit"] });
  await new Promise((resolve) => child.stdout!.once("data", resolve));
  return {
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
    },
  };
}

async function fetchTcp(host: Host, address: string, port: number): Promise<string> {
  const script = `
    const socket = require("node:net").connect(${port}, "${address}");
    socket.on("data", (data) => process.stdout.write(data));
    socket.on("error", (error) => process.stdout.write(error.code));
    socket.setTimeout(1000, () => socket.destroy());`;
  return (await host.exec(process.execPath, ["-e", script])).stdout;
}

/** What tcpdump says about a capture file, one packet a line. */
function readCapture(file: string): string {
  const command = ["tcpdump", "-n", "-r", file];
  // As the root of a user namespace tcpdump cannot become its own user, and gives up: let it be nobody there.
  if (process.env.PERCH_LAB_USER_NAMESPACE !== undefined) command.unshift("unshare", "--user");
  return execFileSync(command[0]!, command.slice(1), { encoding: "utf8", stdio: "pipe" });
}

describe("lab network", { skip, timeout: 20_000 }, () => {
  let lab: Lab;
  let server: Host;
  let a: Host;

  before(async () => {
    lab = await createLab({
      sites: [
        { name: "dc", latencyMs: 8, ipv6: true },
        { name: "home", latencyMs: 12, nat: NAT.portRestricted, ipv6: true },
        { name: "cafe", latencyMs: 0 },
      ],
      hosts: [
        { name: "server", site: "dc" },
        { name: "a", site: "home" },
        { name: "b", site: "home" },
      ],
    });
    server = lab.host("server");
    a = lab.host("a");
  });

  after(() => lab?.close());

  test("a lab that nobody uses is silent", async () => {
    await sleep(300);
    const { sites, pairs } = await lab.counters();
    assert.deepEqual(pairs, {});
    assert.deepEqual(
      Object.values(sites).map((site) => site.up.packets + site.down.packets),
      [0, 0, 0],
    );
  });

  test("the round trip takes what was set, within a millisecond, over IPv4 and IPv6", async () => {
    for (const address of [server.address, server.address6!]) {
      const { timesMs } = await ping(a, address, 20);
      assert.equal(timesMs.length, 20);
      assert.ok(
        timesMs.every((time) => time >= 40),
        `never early: ${timesMs}`,
      );
      assert.ok(median(timesMs) < 41, `median ${median(timesMs)} ms`);
    }
  });

  test("a changed delay holds for the next packet", async () => {
    await lab.setDelay("home", 2);
    const { timesMs } = await ping(a, server.address, 10);
    // The shortest is what the link adds; what the others have on top is the machine's other work.
    const shortest = Math.min(...timesMs);
    assert.ok(shortest >= 20 && shortest < 21, `${timesMs}`);
  });

  test("neighbours in a LAN have no delay", async () => {
    const { timesMs } = await ping(a, lab.host("b").address, 5);
    assert.ok(median(timesMs) < 2, `${timesMs}`);
  });

  test("the set share of packets is lost, and in the set direction", async () => {
    await lab.setLink("home", { loss: 0.3 }, "up");
    const before = (await lab.counters()).sites.home!;
    const { timesMs } = await ping(a, server.address, 200, 2);
    await lab.setLoss("home", 0);
    const after = (await lab.counters()).sites.home!;
    const lost = after.up.lost - before.up.lost;
    assert.equal(after.down.lost, before.down.lost);
    assert.equal(timesMs.length, 200 - lost, "what the counters call lost is what ping misses");
    // Five standard deviations of a binomial with n = 200 and p = 0.3.
    assert.ok(Math.abs(lost - 60) < 33, `lost ${lost} of 200`);
  });

  test("a cut site hears nothing, and all is as before when restored", async () => {
    await lab.cut("home");
    assert.equal((await ping(a, server.address, 3)).timesMs.length, 0);
    assert.equal((await ping(a, lab.host("b").address, 3)).timesMs.length, 3, "the LAN goes on");
    await lab.restore("home");
    assert.equal((await ping(a, server.address, 3)).timesMs.length, 3);
  });

  test("TCP passes where UDP is blocked", async () => {
    const inner = await UdpPeer.open(a);
    const outer = await UdpPeer.open(server);
    await using _ = await serveTcp(server, 8080);
    await lab.blockUdp("home", true);
    await inner.send(outer.endpoint, "blocked");
    assert.equal(await fetchTcp(a, server.address, 8080), "hello");
    assert.equal(outer.has("blocked"), false);
    await lab.blockUdp("home", false);
    await inner.send(outer.endpoint, "open");
    await outer.expect("open");
    assert.equal(outer.has("blocked"), false);
    await Promise.all([inner.close(), outer.close()]);
  });

  test("TCP through a NAT to a closed port is refused, to nowhere unreachable", async () => {
    assert.equal(await fetchTcp(a, server.address, 9), "ECONNREFUSED");
    assert.equal(await fetchTcp(a, "9.9.9.9", 9), "ENETUNREACH");
  });

  test("a capture of a link shows public addresses, one of a host its own, and tcpdump reads both", async () => {
    const files = ["site", "host"].map((name) => join(tmpdir(), `perch-lab-${process.pid}-${name}.pcap`));
    const [site, host] = [{ site: "home" }, { host: "a" }];
    await lab.startCapture(site, files[0]!);
    await lab.startCapture(host, files[1]!);
    await ping(a, server.address, 3);
    await lab.stopCapture(site);
    await lab.stopCapture(host);
    await ping(a, server.address, 1);
    for (const [index, address] of [lab.publicAddress("home")!, a.address].entries()) {
      const text = readCapture(files[index]!);
      const lines = text.trim().split("\n");
      assert.equal(lines.length, 6, text);
      assert.equal(
        lines.filter((line) => line.includes(`IP ${address} > ${server.address}: ICMP echo request`)).length,
        3,
      );
      assert.equal(
        lines.filter((line) => line.includes(`IP ${server.address} > ${address}: ICMP echo reply`)).length,
        3,
      );
      rmSync(files[index]!);
    }
  });

  test("a rule loses exactly the datagram it names", async () => {
    const inner = await UdpPeer.open(a);
    const outer = await UdpPeer.open(server);
    await lab.drop({ from: "a", to: "server", protocol: "udp", payloadStart: [...Buffer.from("first")] });
    for (const text of ["other", "first", "first-again"]) await inner.send(outer.endpoint, text);
    await outer.expect("first-again");
    assert.deepEqual(
      outer.received.map((datagram) => datagram.text),
      ["other", "first-again"],
    );
    await Promise.all([inner.close(), outer.close()]);
  });

  test("bandwidth limits TCP", async () => {
    await lab.setLink("home", { bandwidthMbps: 20, queueBytes: 100_000 });
    const listener = server.spawn("iperf3", ["-s", "-1", "--forceflush"], { stdio: ["ignore", "pipe", "ignore"] });
    await new Promise((resolve) => listener.stdout!.once("data", resolve));
    const { stdout, stderr } = await a.exec("iperf3", ["-J", "-t", "1", "-c", server.address]);
    await lab.setLink("home", { bandwidthMbps: "unlimited" });
    const report = JSON.parse(stdout) as { end: { sum_received: { bytes: number; seconds: number } } };
    const { bytes, seconds } = report.end.sum_received;
    const mbps = (bytes * 8) / seconds / 1e6;
    assert.ok(mbps > 5 && mbps < 20, `${mbps} Mbit/s ${stderr}`);
  });

  test("a host with a new address uses it, and the old one is gone", async () => {
    const old = a.address;
    await lab.changeAddress("a");
    assert.notEqual(a.address, old);
    const { stdout } = await a.exec("ip", ["-4", "-o", "addr", "show", "dev", "net0"]);
    assert.ok(stdout.includes(` ${a.address}/24 `) && !stdout.includes(` ${old}/`), stdout);
    assert.equal((await ping(a, server.address, 2)).timesMs.length, 2);
    assert.equal((await ping(a, server.address6!, 2)).timesMs.length, 2);
    assert.equal((await ping(lab.host("b"), a.address, 2)).timesMs.length, 2);
  });

  test("a host can be carried to another site", async () => {
    await lab.changeAddress("a", { site: "cafe" });
    assert.equal(a.address, "198.18.3.2");
    assert.equal(a.address6, undefined);
    const { timesMs } = await ping(a, server.address, 5);
    assert.ok(Math.min(...timesMs) >= 16 && median(timesMs) < 17, `${timesMs}`);
    assert.equal((await ping(server, a.address, 2)).timesMs.length, 2, "no NAT is in the way any more");
    assert.equal((await ping(lab.host("b"), "192.168.2.2", 1)).timesMs.length, 0);
  });

  test("wrong names and kinds are refused and change nothing", async () => {
    await assert.rejects(lab.cut("nowhere"), { code: "topology-invalid", message: /"nowhere"/ });
    await assert.rejects(lab.rebindNat("dc"), { code: "topology-invalid", message: /dc has no NAT/ });
    await assert.rejects(lab.changeAddress("b", { address: "1.2.3.4" }), { code: "topology-invalid" });
    assert.throws(() => lab.host("nobody"), { code: "topology-invalid" });
    assert.equal((await ping(lab.host("b"), server.address, 1)).timesMs.length, 1);
  });

  test("a program that does not end is killed and named", async () => {
    await assert.rejects(a.exec("sleep", ["77"], { timeoutMs: 100 }), {
      code: "command-timeout",
      message: /sleep 77 on a/,
    });
    await assert.rejects(a.exec("sh", ["-c", "sleep 77 & sleep 77"], { timeoutMs: 100 }), { code: "command-timeout" });
    assert.deepEqual(await a.exec("sh", ["-c", "cat; echo talk >&2; exit 3"], { input: "data" }), {
      code: 3,
      stdout: "data",
      stderr: "talk\n",
    });
  });

  test("a veth pair carries both IP versions at its MTU and nothing larger", async () => {
    await using pair = await createVethPair({ mtu: 1400 });
    const { left, right } = pair;
    assert.equal((await ping(left, right.address, 2)).timesMs.length, 2);
    assert.equal((await ping(left, right.address6!, 2)).timesMs.length, 2);
    const fits = await left.exec("ping", ["-c1", "-Mdo", "-s1372", right.address]);
    const tooLarge = await left.exec("ping", ["-c1", "-W1", "-Mdo", "-s1373", right.address]);
    assert.deepEqual([fits.code, tooLarge.code], [0, 1]);
  });
});
