import { parseArgs } from "node:util";
import { messageOf } from "#base/errors.ts";
import type { Peer } from "#gen/daemon_pb.ts";
import { PeerState } from "#gen/daemon_pb.ts";
import { ensurePackages } from "../../scripts/system-packages.ts";
import { AgentView, pathName } from "../agent-view.ts";
import { createLab, type Lab } from "../lab.ts";
import { NAT } from "../nat.ts";
import { PerchNetwork } from "../perch-network.ts";
import { ensurePrivileges } from "../rootless.ts";
import { Screen } from "./screen.ts";

/** Each site's half of the 20 ms that a packet takes between two of them: 40 ms there and back. */
const SITE_LATENCY_MS = 10;
/** Peers of the demo sleep after this long without traffic; the product's default is 15 minutes. */
const INACTIVITY = "8s";

const PACKAGES = [
  { name: "iproute2", command: "ip" },
  { name: "iputils-ping", command: "ping" },
];

const HELP = `npm run demo [-- --keep]

Builds a small internet of network namespaces on this machine: a server and four
agents at five sites, 40 ms apart there and back, behind different NATs. Shows how
peers sleep, wake, connect and go to sleep again. Takes about a minute, leaves
nothing behind.

  --keep   leave everything running afterwards, with the commands to try (Ctrl-C ends it)
  --help   this text`;

interface PingResult {
  readonly sent: number;
  readonly received: number;
  readonly firstMs: number;
  readonly lastMs: number;
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { keep: { type: "boolean" }, help: { type: "boolean", short: "h" } } });
  if (values.help) {
    process.stdout.write(`${HELP}\n`);
    return;
  }
  const missing = ensurePackages(PACKAGES, (line) => process.stderr.write(`${line}\n`));
  if (missing.length > 0)
    throw new Error(`missing programs: apt-get install ${missing.map(({ name }) => name).join(" ")}`);
  await ensurePrivileges();
  const screen = new Screen();
  screen.heading("Perch: peers sleep until somebody talks to them");
  screen.say("building five sites: harbour (public, with the server), alder and birch behind home routers,");
  screen.say("cedar behind a symmetric NAT, dune in the open; 40 ms there and back between any two");
  await using lab = await createLab({
    sites: [
      { name: "harbour", latencyMs: SITE_LATENCY_MS },
      { name: "alder", latencyMs: SITE_LATENCY_MS, nat: NAT.portRestricted },
      { name: "birch", latencyMs: SITE_LATENCY_MS, nat: NAT.addressRestricted },
      { name: "cedar", latencyMs: SITE_LATENCY_MS, nat: NAT.symmetric },
      { name: "dune", latencyMs: SITE_LATENCY_MS },
    ],
    hosts: ["harbour", "alder", "birch", "cedar", "dune"].map((name) => ({ name, site: name })),
  });
  await using network = await PerchNetwork.start(lab, {
    server: "harbour",
    agents: ["alder", "birch", "cedar", "dune"],
    inactivity: INACTIVITY,
    log: (line) => screen.say(line),
  });
  await tell(network, screen, values.keep === true);
  if (values.keep) await keep(lab, network);
}

/** The story itself; throws when anything is not as it should be. */
async function tell(network: PerchNetwork, screen: Screen, keeps: boolean): Promise<void> {
  const alder = network.agent("alder");
  const view: AgentView = new AgentView(alder.socket, () => screen.table("peers of alder", view.peers));
  try {
    await view.until("birch", "in the table", (peer) => peer.state === PeerState.IDLE, 10_000);
    screen.heading("Everybody is idle: no connection, no packet between any two of them");

    screen.heading("alder pings birch; both are behind NATs");
    const first = await pingThrough(network, screen, view, "birch", true);

    screen.heading("alder pings cedar, behind a NAT that allows no direct path");
    const second = await pingThrough(network, screen, view, "cedar", false);

    screen.heading(`Nobody talks for ${INACTIVITY}: back to sleep, agreed with the other side`);
    for (const name of ["birch", "cedar"])
      await view.until(name, "asleep", (peer) => peer.state === PeerState.IDLE, 30_000);
    screen.say("all peers are idle again");

    screen.heading("And once more: the way that worked before is tried first");
    const again = await pingThrough(network, screen, view, "birch", true);
    screen.end();

    const lines = [
      ["alder -> birch, asleep", first],
      ["alder -> cedar, asleep, relay only", second],
      ["alder -> birch, asleep, known", again],
    ] as const;
    screen.heading("Summary");
    for (const [what, { sent, received, firstMs, lastMs }] of lines) {
      screen.say(
        `${what.padEnd(36)} first reply ${firstMs.toFixed(0)} ms, last ${lastMs.toFixed(0)} ms, ${sent - received} of ${sent} lost`,
      );
    }
    if (!keeps) screen.say("done; nothing is left behind");
  } finally {
    await view.close();
  }
}

/** Pings a sleeping peer, watches its row, and tells what happened in between. */
async function pingThrough(
  network: PerchNetwork,
  screen: Screen,
  view: AgentView,
  name: string,
  direct: boolean,
): Promise<PingResult> {
  const target = network.agent(name);
  const wokenBefore = wakes(view.peer(name));
  const pinging = network
    .agent("alder")
    .host.exec("ping", ["-n", "-c", "12", "-i", "0.25", "-W", "3", target.address], { timeoutMs: 20_000 });
  const woken = await view.until(
    name,
    "woken",
    (peer) => wakes(peer) > wokenBefore && peer.state === PeerState.CONNECTED,
    10_000,
  );
  if (direct) await view.until(name, "on a direct path", (peer) => peer.path?.path.case === "direct", 10_000);
  const result = readPing((await pinging).stdout);
  const peer = view.peer(name);
  for (const entry of sinceLastWake(peer)) {
    const at = entry.sinceWakeMs === undefined ? "" : `${entry.sinceWakeMs.toFixed(0)} ms`;
    screen.say(`  ${at.padStart(7)}  ${entry.event.padEnd(12)} ${entry.detail}`);
  }
  screen.say(
    `first reply after ${result.firstMs.toFixed(0)} ms, last one after ${result.lastMs.toFixed(0)} ms, ${result.received} of ${result.sent} delivered, now ${pathName(peer)}`,
  );
  if (result.received !== result.sent)
    throw new Error(`${result.sent - result.received} of ${result.sent} packets to ${name} were lost`);
  if (!direct && peer.path?.path.case !== "relay") throw new Error(`${woken.fqdn} was expected to stay on the relay`);
  return result;
}

function wakes(peer: Peer): number {
  return peer.timeline.filter(({ event }) => event === "wake").length;
}

function sinceLastWake(peer: Peer): Peer["timeline"] {
  const start = peer.timeline.findLastIndex(({ event }) => event === "wake");
  return peer.timeline.slice(Math.max(0, start));
}

function readPing(output: string): PingResult {
  const times = [...output.matchAll(/time=([\d.]+) ms/g)].map((match) => Number(match[1]));
  const sent = Number(/(\d+) packets transmitted/.exec(output)?.[1] ?? 0);
  return { sent, received: times.length, firstMs: times[0] ?? Number.NaN, lastMs: times.at(-1) ?? Number.NaN };
}

async function keep(lab: Lab, network: PerchNetwork): Promise<void> {
  const alder = network.agent("alder");
  const birch = network.agent("birch");
  const inside = alder.host.commandLine("bin/perch", ["status", "-d", "--daemon-addr", alder.daemonAddr]);
  process.stdout.write(
    [
      "",
      "Still running. Try in another terminal, in this folder:",
      `  ${alder.host.commandLine("ping", [birch.address]).join(" ")}`,
      `  ${inside.join(" ")}`,
      `  bin/perch why birch --daemon-addr ${alder.daemonAddr}`,
      `  bin/perch peers wake cedar --daemon-addr ${alder.daemonAddr}`,
      `  bin/perch status --watch --daemon-addr ${alder.daemonAddr}`,
      "Ctrl-C ends it and cleans up.",
      "",
    ].join("\n"),
  );
  await new Promise<void>((resolve) => {
    for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => resolve());
  });
  process.stdout.write(`\ncleaning up ${lab.hosts.length} hosts\n`);
}

main().catch((error: unknown) => {
  process.stderr.write(`demo: ${messageOf(error)}\n`);
  process.exitCode = 1;
});
