import assert from "node:assert/strict";
import type { ChildProcess } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { after, before, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { createDaemonClient, type DaemonClient } from "#agent/daemon/daemon-client.ts";
import { AgentState } from "#gen/daemon_pb.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { LabAgent, PerchNetwork, waitFor } from "../../lab/perch-network.ts";
import {
  type HostState,
  programsOn,
  type ResolverState,
  readHostState,
  readResolver,
  strayFiles,
} from "./crash-clean/host-state.ts";
import { describeMoment, drawMoments, type Moment, MomentWatch } from "./crash-clean/moments.ts";
import { OwnEtcHost } from "./crash-clean/own-etc-host.ts";

/** How many crashes, and which: PERCH_CRASH_MOMENTS=100 PERCH_CRASH_SEED=7 for more of them, or for the same ones again. */
const MOMENTS = Number(process.env.PERCH_CRASH_MOMENTS ?? 14);
const SEED = Number(process.env.PERCH_CRASH_SEED ?? Math.floor(Math.random() * 1_000_000));
const PERCH = resolve(import.meta.dirname, "../../bin/perch");
/** Files of an agent that was up once. */
const KEPT: ReadonlySet<string> = new Set([
  "daemon.log",
  "state/",
  "state/handshake-timestamp",
  "state/private.key",
  "state/settings.json",
]);
const isRoot = process.getuid?.() === 0;

describe("a machine after a crash", { skip: !isRoot && "needs root: an /etc of its own for a host" }, () => {
  let lab: Lab;
  let network: PerchNetwork;
  let box: OwnEtcHost;
  let agent: LabAgent;
  let client: DaemonClient;
  /** What was met right after the kills. */
  const met = new Map<string, number>();

  before(async () => {
    const site = (name: string) => ({ name, latencyMs: 5, ipv6: true });
    const names = ["hub", "box", "birch"];
    lab = await createLab({ sites: names.map(site), hosts: names.map((name) => ({ name, site: name })) });
    network = await PerchNetwork.start(lab, { server: "hub", agents: ["birch"] });
    box = new OwnEtcHost(lab.host("box"), join(network.directory, "box-etc"));
    await furnish();
    agent = new LabAgent(box, join(network.directory, "box"));
    mkdirSync(join(agent.directory, "state"), { mode: 0o700 });
    client = createDaemonClient(agent.socket);
    await start();
    await agent.mustPerch(["up", ...network.joinFlags("box")]);
    await agent.stop("SIGTERM");
  });

  after(async () => {
    await agent?.stop();
    await network?.close();
    await lab?.close();
  });

  /** Things of the machine's own that have to be there afterwards. */
  async function furnish(): Promise<void> {
    const rules = "table inet own { chain input { type filter hook input priority 0; ct state established accept; }; }";
    const script = [
      "ip rule add from 192.0.2.0/24 lookup 77 priority 500",
      "ip -6 rule add from 2001:db8:77::/48 lookup 77 priority 500",
      "ip route add 198.18.0.0/15 dev net0 table 77",
      "ip -6 route add 2001:db8:7::/48 dev net0 table 77",
      "ip tuntap add own0 mode tun",
      "ip addr add 100.127.0.1/32 dev own0",
      "ip link set own0 up",
      `nft '${rules}'`,
    ];
    const { code, stderr } = await box.exec("sh", ["-ec", script.join("\n")]);
    assert.equal(code, 0, stderr);
  }

  async function start(): Promise<void> {
    agent.startDaemon();
    await waitFor(() => agent.isListening(), "the daemon", 20_000);
  }

  /** What the agent shall do at its next start. */
  function setWantUp(wantUp: boolean): void {
    const path = join(agent.directory, "state/settings.json");
    writeFileSync(path, JSON.stringify({ ...(JSON.parse(readFileSync(path, "utf8")) as object), wantUp }));
  }

  async function isUp(): Promise<boolean> {
    for await (const { head } of client.getStatus({})) if (head) return head.state === AgentState.UP;
    return false;
  }

  const resolverText = (): string => {
    const found = readResolver(box.resolverFile);
    return found.kind === "file" ? found.text : "";
  };
  const isOurs = (): boolean => resolverText().startsWith("# Written by Perch");
  const come = async (): Promise<void> => {
    setWantUp(true);
    await start();
    await waitFor(async () => isOurs() && (await isUp()), "up with names", 20_000);
  };
  const ignore = (): void => {};

  async function callUp(): Promise<void> {
    for await (const _ of client.up({ flags: {}, environment: {} }));
  }

  const place = (): string[] => ["--daemon-addr", agent.daemonAddr, "--state-dir", join(agent.directory, "state")];
  const spawnPerch = (...args: string[]): ChildProcess => box.spawn(PERCH, [...args, ...place()], { stdio: "ignore" });

  /** Brings the agent into the phase, waits for the moment and kills it there. */
  async function crash(moment: Moment): Promise<void> {
    const { phase, rewrittenMs } = moment;
    let child: ChildProcess | undefined;
    if (phase === "coming-up") {
      setWantUp(false);
      await start();
    } else if (phase !== "starting" && phase !== "foreground") await come();
    if (phase === "mending") await agent.stop("SIGKILL");
    using watch = new MomentWatch(moment, [box.etc, join(agent.directory, "state")]);
    switch (phase) {
      case "starting":
        setWantUp(true);
        agent.startDaemon();
        break;
      case "foreground":
        child = spawnPerch("up", "-F");
        break;
      case "coming-up":
        callUp().catch(ignore);
        break;
      case "running": {
        const { address } = network.agent("birch");
        box.exec("ping", ["-n", "-c", "1", "-W", "3", address]).catch(ignore);
        if (rewrittenMs !== undefined) {
          box.rewriteResolver(rewritten(moment));
          await sleep(rewrittenMs);
        }
        break;
      }
      case "going-down":
        client.down({}).catch(ignore);
        break;
      case "stopping":
        process.kill(agent.pid!, "SIGTERM");
        break;
      case "mending":
        if (moment.recovery === "clean") child = spawnPerch("state", "clean");
        else agent.startDaemon();
        break;
    }
    await watch.come();
    if (child) await kill(child);
    else await agent.stop("SIGKILL");
  }

  function note(): void {
    const stateFile = (name: string): boolean => existsSync(join(agent.directory, "state", name));
    const facts = {
      "file ours": isOurs(),
      "record there": stateFile("resolver.json"),
      "record, file theirs": stateFile("resolver.json") && !isOurs(),
      "draft of the record": stateFile("resolver.json.new"),
      "draft of the file": existsSync(`${box.resolverFile}.perch`),
      "lock there": stateFile("daemon.lock"),
    };
    for (const [fact, is] of Object.entries(facts)) if (is) met.set(fact, (met.get(fact) ?? 0) + 1);
  }

  /** The machine as it should be again: as before, but for what somebody else wrote meanwhile. */
  function expected(untouched: HostState, moment: Moment): HostState {
    if (moment.rewrittenMs === undefined) return untouched;
    const { resolver, etc } = untouched;
    const isSameFile = resolver.kind === "file" && moment.shape === "mounted";
    const { mode, owner } = isSameFile ? resolver : { mode: "644", owner: "0:0" };
    return {
      ...untouched,
      resolver: { kind: "file", text: rewritten(moment), mode, owner, modifiedAt: 0 },
      etc: [...new Set([...etc, "resolv.conf"])].sort(),
    };
  }

  async function recover({ recovery }: Moment): Promise<void> {
    if (recovery === "clean") {
      const { code, stderr } = await box.exec(PERCH, ["state", "clean", ...place()]);
      assert.equal(code, 0, stderr);
      return;
    }
    await start();
    await client.down({});
    const running = readResolver(box.resolverFile);
    await agent.stop("SIGTERM");
    assert.deepEqual(readResolver(box.resolverFile), running, "the end of a daemon that is down changes nothing");
  }

  async function check(moment: Moment): Promise<void> {
    const left = (): string[] => strayFiles(agent.directory, KEPT);
    for (const path of left()) rmSync(join(agent.directory, path), { force: true });
    rmSync(`${box.resolverFile}.perch`, { force: true });
    box.giveResolver(moment.shape, foreign(moment));
    const before = await readHostState(box);
    const wanted = expected(before, moment);
    await crash(moment);
    note();
    await recover(moment);
    await waitFor(async () => programsOn(box).length === 0, "no programs", 5000).catch(ignore);
    assert.deepEqual(programsOn(box), [], "programs left");
    const now = await readHostState(box);
    for (const [question, answer] of Object.entries(wanted.network))
      assert.deepEqual(now.network[question], answer, question);
    assert.deepEqual(changesOf(wanted.settings, now.settings), [], "settings");
    assert.deepEqual(moment.rewrittenMs === undefined ? now.resolver : withoutTime(now.resolver), wanted.resolver);
    assert.deepEqual(now.etc, wanted.etc);
    assert.deepEqual(left(), [], "files left");
  }

  for (const shape of ["file", "mounted"] as const) {
    test(`a resolver file (${shape}) that another program rewrites is taken over, and is what comes back`, async () => {
      box.giveResolver(shape, "# by hand\nnameserver 192.0.2.1\n");
      await come();
      const theirs = "# from dhcp\nnameserver 192.0.2.200\nsearch elsewhere.example\n";
      box.rewriteResolver(theirs);
      await waitFor(async () => isOurs() && resolverText().includes("192.0.2.200"), "ours again", 10_000);
      const { fqdn } = await agent.peer("birch");
      assert.match((await box.exec("getent", ["ahostsv4", fqdn])).stdout, new RegExp(network.agent("birch").address));
      await client.down({});
      assert.equal(resolverText(), theirs);
      await agent.stop("SIGTERM");
      assert.deepEqual(strayFiles(agent.directory, KEPT), []);
    });
  }

  test(`${MOMENTS} kills, seed ${SEED}`, { timeout: 1_800_000 }, async (t) => {
    for (const moment of drawMoments(MOMENTS, SEED)) {
      await t.test(describeMoment(moment), { timeout: 60_000 }, () => check(moment));
    }
    t.diagnostic(`met after the kills: ${[...met].map(([fact, count]) => `${fact} ${count}`).join(", ")}`);
  });
});

/** Somebody else's file is as old as that says. */
function withoutTime(resolver: ResolverState): ResolverState {
  return resolver.kind === "file" ? { ...resolver, modifiedAt: 0 } : resolver;
}

function changesOf(then: HostState["settings"], now: HostState["settings"]): string[] {
  const names = new Set([...Object.keys(then), ...Object.keys(now)]);
  return [...names].flatMap((name) =>
    then[name] === now[name] ? [] : [`${name}: ${then[name]} before, now ${now[name]}`],
  );
}

function foreign({ index }: Moment): string {
  return `# by hand ${index}\nnameserver 192.0.2.${(index % 250) + 1}\nsearch lab.example\noptions timeout:1 attempts:1\n`;
}

function rewritten(moment: Moment): string {
  return `${foreign(moment)}# again\n`;
}

async function kill(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise((done) => child.once("exit", done));
  child.kill("SIGKILL");
  await gone;
}
