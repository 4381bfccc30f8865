import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import type { Host } from "../../lab/host.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { giveResolverFile } from "../../lab/namespace.ts";
import { type LabAgent, PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { filesBelow } from "./machine-state.ts";

/** As a DHCP client would write it: nobody answers there. */
const HOST_FILE = "# from dhcp\nsearch lab.example\nnameserver 192.0.2.53\noptions timeout:1 attempts:1\n";
const MACHINE_FILE = "/etc/resolv.conf";
const isRoot = process.getuid?.() === 0;

describe("names of the network on a machine", { skip: !isRoot && "needs root: a resolver file for each host" }, () => {
  let lab: Lab;
  let network: PerchNetwork;
  let alder: LabAgent;
  let birch: LabAgent;
  let host: Host;
  let file: string;
  let domain: string;
  const machineFile = readFileSync(MACHINE_FILE, "utf8");

  before(async () => {
    const site = (name: string) => ({ name, latencyMs: 5 });
    const names = ["hub", "alder", "birch", "cedar", "dogwood"];
    lab = await createLab({ sites: names.map(site), hosts: names.map((name) => ({ name, site: name })) });
    for (const name of names) giveResolverFile(lab.host(name).namespace, HOST_FILE);
    host = lab.host("alder");
    file = giveResolverFile(host.namespace, HOST_FILE);
    network = await PerchNetwork.start(lab, { server: "hub", agents: ["alder", "birch", "cedar", "dogwood"] });
    alder = network.agent("alder");
    birch = network.agent("birch");
    domain = (await alder.peer("birch")).fqdn.replace(/^birch\./, "");
    await resolverIs("ours");
  });

  after(async () => {
    await network?.close();
    await lab?.close();
    assert.equal(readFileSync(MACHINE_FILE, "utf8"), machineFile, "the machine's own file is untouched");
  });

  const run = async (where: Host, ...command: readonly [string, ...string[]]): Promise<string> => {
    const { stdout } = await where.exec(command[0], command.slice(1), { timeoutMs: 15_000 });
    return stdout;
  };
  const dig = (...args: string[]): Promise<string> => run(host, "dig", "+tries=1", "+time=2", ...args);
  const content = (): string => readFileSync(file, "utf8");
  const resolverIs = (whose: "ours" | "theirs"): Promise<void> =>
    waitFor(
      async () => (whose === "ours" ? content().startsWith("# Written by Perch (perch0)") : content() === HOST_FILE),
      `resolver file ${whose}`,
      10_000,
    );
  const story = async (agent: LabAgent, peer: string): Promise<string> => agent.mustPerch(["why", peer]);

  test("dig gets peers' addresses, names and refusals, over UDP and TCP", async () => {
    assert.equal((await dig("+short", `birch.${domain}`)).trim(), birch.address);
    assert.equal((await dig("+short", "+tcp", `BIRCH.${domain.toUpperCase()}`)).trim(), birch.address);
    assert.equal((await dig("+short", `alder.${domain}`)).trim(), alder.address);
    assert.equal((await dig("+short", "-x", birch.address)).trim(), `birch.${domain}.`);
    assert.match(
      await dig(`nobody.${domain}`),
      new RegExp(`status: NXDOMAIN[\\s\\S]*\\sIN\\sSOA\\salder\\.${domain}\\.`),
    );
    assert.match(await dig("MX", `birch.${domain}`), /status: NOERROR[\s\S]*ANSWER: 0, AUTHORITY: 1/);
    assert.match(await dig("SOA", domain), /flags: qr aa [\s\S]*ANSWER: 1/);
    assert.match(await dig("CH", "TXT", "version.bind"), /status: REFUSED/);
  });

  test("programs find peers by full and by short name, through the C library", async () => {
    assert.match(await run(host, "getent", "ahostsv4", `birch.${domain}`), new RegExp(`^${birch.address}\\s`));
    assert.match(await run(host, "getent", "ahostsv4", "birch"), new RegExp(`^${birch.address}\\s`));
    assert.match(await run(host, "getent", "hosts", birch.address), new RegExp(`birch\\.${domain}`));
    assert.match(
      content(),
      new RegExp(`nameserver ${alder.address}\\nnameserver 192\\.0\\.2\\.53\\nsearch ${domain} lab\\.example`),
    );
  });

  test("ping NAME wakes the sleeping peer, and the question for its name is in its story", async () => {
    assert.equal((await alder.peer("cedar")).status.toLowerCase(), "idle");
    assert.match(await run(host, "ping", "-n", "-c1", "-W5", `cedar.${domain}`), / 1 received/);
    assert.match(await story(alder, "cedar"), new RegExp(`wake +dns question for cedar\\.${domain}`));
  });

  test("another member of the network gets no answer", async () => {
    assert.match(
      await run(lab.host("birch"), "dig", "+tries=1", "+time=1", `@${alder.address}`, `birch.${domain}`),
      /timed out|no servers could be reached/,
    );
  });

  test("with --dns-wake off a name is answered and nobody wakes", async () => {
    await alder.mustPerch(["up", "--dns-wake", "off"]);
    await resolverIs("ours");
    await waitFor(async () => (await alder.countPeers()) === 3, "peers");
    assert.equal((await dig("+short", `dogwood.${domain}`)).trim(), network.agent("dogwood").address);
    assert.equal((await alder.peer("dogwood")).status.toLowerCase(), "idle");
    assert.doesNotMatch(await story(alder, "dogwood"), /dns question/);
  });

  test("with --dns off the host is left alone and nobody answers", async () => {
    await alder.mustPerch(["up", "--dns", "off"]);
    await resolverIs("theirs");
    assert.match(await dig(`@${alder.address}`, `birch.${domain}`), /timed out|no servers could be reached|refused/);
    await alder.mustPerch(["up", "--dns", "on", "--dns-wake", "on"]);
    await resolverIs("ours");
  });

  test("metrics say what status says, read by Prometheus's own parser", async () => {
    const port = "9464";
    await alder.mustPerch(["up", "--metrics", `127.0.0.1:${port}`]);
    await waitFor(async () => (await alder.countPeers()) === 3, "peers");
    const read = `import json, urllib.request as u; from prometheus_client.parser import text_string_to_metric_families as p
print(json.dumps([[s.name, s.labels, s.value] for f in p(u.urlopen("http://127.0.0.1:${port}/metrics").read().decode()) for s in f.samples]))`;
    const samples = JSON.parse(await run(host, "/usr/bin/python3", "-c", read)) as [
      string,
      Record<string, string>,
      number,
    ][];
    const value = (name: string, ...labels: string[]): number | undefined =>
      samples.find(
        ([each, given]) => each === name && labels.every((label) => Object.values(given).includes(label)),
      )?.[2];
    const status = JSON.parse(await alder.mustPerch(["status", "--json"])) as {
      perch: {
        peers: Record<string, number>;
        dns: { server: string; host: string };
        settings: Record<string, { source: string }>;
      };
    };
    for (const state of ["idle", "connecting", "connected"]) {
      assert.equal(value("perch_peers", state), status.perch.peers[state], state);
    }
    assert.ok((value("perch_wakes_total", "dns") ?? 0) >= 1);
    assert.ok((value("perch_wake_duration_seconds_count") ?? 0) >= 1);
    assert.deepEqual(
      { ...status.perch.dns, domain },
      { ...status.perch.dns, server: `${alder.address}:53`, host: "resolv.conf", domain },
    );
    assert.equal(status.perch.settings.metrics?.source, "flag");
    assert.equal(
      samples.filter(([, labels]) => JSON.stringify(labels).includes("birch")).length,
      0,
      "no names of peers",
    );
    assert.equal((await alder.perch(["up", "--metrics", "0.0.0.0:9464"])).code, 2);
    await alder.mustPerch(["up", "--metrics", ""]);
    assert.notEqual((await host.exec("/usr/bin/python3", ["-c", read])).code, 0);
  });

  test("down puts the host's file back, byte for byte", async () => {
    await alder.mustPerch(["down"]);
    assert.equal(content(), HOST_FILE);
    await alder.mustPerch(["up"]);
    await resolverIs("ours");
  });

  test("a killed daemon leaves its file until the next start, which takes over", async () => {
    await alder.stop("SIGKILL");
    assert.match(content(), /^# Written by Perch/);
    alder.startDaemon();
    await waitFor(async () => (await alder.perch(["status", "--check", "ready"])).code === 0, "up again");
    await resolverIs("ours");
    assert.equal((await dig("+short", `birch.${domain}`)).trim(), birch.address);
    await alder.stop("SIGTERM");
    assert.equal(content(), HOST_FILE);
    alder.startDaemon();
    await resolverIs("ours");
  });

  test("after a kill `perch state clean` puts the file back, says so, and does nothing the second time", async () => {
    const clean = () =>
      host.exec(join(import.meta.dirname, "../../bin/perch"), [
        "state",
        "clean",
        "--state-dir",
        join(alder.directory, "state"),
      ]);
    const refused = await clean();
    assert.equal(refused.code, 1);
    assert.match(refused.stderr, /a daemon \(pid \d+\) uses the state directory/);
    await alder.stop("SIGKILL");
    const done = await clean();
    assert.equal(done.code, 0, done.stderr);
    assert.match(done.stdout, /^\/etc\/resolv\.conf is back as it was before$/m);
    assert.equal(content(), HOST_FILE);
    assert.match((await clean()).stdout, /^nothing to put back$/m);
    assert.ok(!filesBelow(join(alder.directory, "state")).includes("resolver.json"));
  });
});
