import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import type { Millis } from "#base/time.ts";
import { LabAgent, type PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import { Traffic } from "../../lab/traffic.ts";
import { AgentBox, withoutNumber, withoutPrograms } from "./agent-box.ts";
import { filesBelow } from "./machine-state.ts";

/** From the death of wireguard-go until traffic flows again; a busy machine, and a handshake. */
const BACK_MS: Millis = 10_000;
const INTERFACE = `pd${process.pid.toString(36)}`;
const SOCKET = `/var/run/wireguard/${INTERFACE}.sock`;
/** Without a mark of handshake timestamps: wireguard-go makes its own by the clock. */
const KEPT = ["daemon.log", "state/", "state/private.key", "state/settings.json"];
const isRoot = process.getuid?.() === 0;

describe("the life of an agent with wireguard-go", { skip: !isRoot && "needs root" }, () => {
  let box: AgentBox;
  let network: PerchNetwork;
  let agent: LabAgent;

  before(async () => {
    const upFlags = ["--device", "wireguard-go", "--interface-name", INTERFACE];
    box = await AgentBox.start({ upFlags, patienceMs: 20_000 });
    ({ network, agent } = box);
  });

  after(() => box?.[Symbol.asyncDispose]());

  /** Process ids of wireguard-go for our interface, without the word before it that starts it. */
  const pids = (): number[] =>
    readdirSync("/proc")
      .filter((entry) => /^\d+$/.test(entry))
      .filter(
        (pid) => commandLine(pid).endsWith(`wireguard-go ${INTERFACE}`) && !commandLine(pid).includes("pdeathsig"),
      )
      .map(Number);

  test("it has an interface, a filter and a record, and down takes all of it away", async () => {
    await box.ping(3);
    const up = await box.state();
    assert.ok(
      up.links.some((line) => line.includes(INTERFACE) && line.includes("mtu 1280")),
      up.links.join("\n"),
    );
    assert.match(up.nft, new RegExp(`table inet perch-${INTERFACE}`));
    assert.equal(pids().length, 1);
    const record = JSON.parse(readFileSync(join(agent.directory, "state/device.json"), "utf8"));
    assert.equal(record.interfaceName, INTERFACE);
    assert.doesNotMatch(readFileSync(`/proc/${pids()[0]}/environ`, "latin1"), /SETUP|KEY/i);
    await agent.mustPerch(["down"]);
    assert.deepEqual(withoutPrograms(await box.state()), withoutPrograms(box.untouched));
    assert.deepEqual(pids(), []);
    assert.equal(existsSync(SOCKET), false);
    await agent.mustPerch(["up"]);
    await box.ping();
  });

  test("wireguard-go killed under traffic: another takes over, the agent goes on, and traffic is back", {
    timeout: 60_000,
  }, async (t) => {
    await using from = await Traffic.start(box.host);
    await using _to = await Traffic.start(network.agent("birch").host);
    const before = await box.state();
    const { pid } = agent;
    for (let kill = 0; kill < 3; kill++) {
      const flow = from.flow(network.agent("birch").address, { intervalMs: 20 });
      await new Promise((done) => setTimeout(done, 1000));
      const [old] = pids();
      process.kill(old!, "SIGKILL");
      await new Promise((done) => setTimeout(done, 2500));
      const { sentAt, echoedAt } = await flow.stop();
      const lost = sentAt.filter((_, index) => echoedAt[index] === 0);
      const away = lost.length > 0 ? lost.at(-1)! - lost[0]! : 0;
      t.diagnostic(`${lost.length} of ${sentAt.length} lost, within ${away.toFixed(0)} ms`);
      assert.ok(echoedAt.at(-1)! > 0, "the last datagram came back");
      assert.ok(away < BACK_MS);
      assert.notDeepEqual(pids(), [old]);
    }
    assert.equal(agent.pid, pid);
    const now = await box.state();
    assert.deepEqual(withoutNumber(now.addresses), withoutNumber(before.addresses));
    assert.deepEqual(
      [now.routes, now.rules, withoutTraffic(now.nft)],
      [before.routes, before.rules, withoutTraffic(before.nft)],
    );
    const { perch } = JSON.parse(await agent.mustPerch(["status", "--json"]));
    assert.equal(perch.counters["worker-restarts"], 3);
    const doctor = await agent.perch(["doctor"]);
    assert.match(doctor.stdout, /wireguard-go died 3 times/);
  });

  test("SIGKILL of the agent: the next start has one of everything, and `perch state clean` leaves nothing", {
    timeout: 60_000,
  }, async () => {
    const before = await box.state();
    await agent.stop("SIGKILL");
    await box.resume();
    await box.ping();
    const now = await box.state();
    assert.deepEqual(withoutNumber(now.addresses), withoutNumber(before.addresses));
    assert.equal(pids().length, 1);
    await agent.stop("SIGKILL");
    assert.match((await box.state()).nft, /perch-/, "rules outlive their owner");
    const place = ["--state-dir", join(agent.directory, "state")];
    await agent.mustPerch(["state", "clean", ...place]);
    assert.deepEqual(await box.state(), box.untouched);
    assert.equal(existsSync(SOCKET), false);
    assert.deepEqual(
      filesBelow(agent.directory).filter((name) => name !== "perch.sock"),
      KEPT,
    );
    await box.resume();
  });

  test("a setup key is not spent, and nothing is touched, where the interface is somebody else's", async () => {
    const second = new LabAgent(box.host, join(network.directory, "second"));
    const script = "ip tuntap add taken0 mode tun && ip address add 192.0.2.77/32 dev taken0";
    assert.equal((await box.host.exec("sh", ["-c", script])).code, 0);
    try {
      second.startDaemon();
      await waitFor(() => second.isListening(), "the second daemon", 20_000);
      const before = await box.state();
      const flags = ["--wireguard-port", "0", "--device", "wireguard-go", "--interface-name", "taken0"];
      const { code, stderr } = await second.perch(["up", ...network.joinFlags("box"), ...flags]);
      assert.equal(code, 1);
      assert.match(stderr, /there is an interface taken0 already.*--interface-name/);
      assert.deepEqual(await box.state(), before);
      const list = await network.perchServer(["peers", "list"]);
      assert.equal(list.stdout.match(/^box/gm)?.length, 1, JSON.stringify(list));
    } finally {
      await second.stop();
      await box.host.exec("ip", ["link", "delete", "taken0"]);
    }
  });

  test("an interface that somebody deletes is made anew, with the tunnel", { timeout: 60_000 }, async () => {
    await box.ping();
    await box.host.exec("ip", ["link", "delete", INTERFACE]);
    await waitFor(
      async () => (await box.host.exec("ip", ["link", "show", INTERFACE])).code === 0 && (await box.isUp()),
      "up again",
      30_000,
    );
    await box.ping();
  });
});

function commandLine(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "latin1").replaceAll("\0", " ").trim();
  } catch {
    return "";
  }
}

/** Rules and sets as they were made: without counts, and without the flows that packets put into sets. */
function withoutTraffic(ruleset: string): string {
  return ruleset.replaceAll(/packets \d+ bytes \d+/g, "").replaceAll(/\n\s*elements = \{[^}]* expires [^}]*\}/g, "");
}
