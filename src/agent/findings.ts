import { formatEndpoint, formatPrefix, isV6, maskPrefix, type Prefix, prefixContains } from "#base/ip.ts";
import type { Millis } from "#base/time.ts";
import type { MappingObservation } from "#ice/mapping.ts";
import type { StunServerReport } from "#ice/stun-client.ts";
import type { AgentStatus, LazySource, PeerStatus, ServiceStatus } from "./control.ts";
import type { Area, Finding } from "./examination.ts";
import type { NatView } from "./peer/direct-paths.ts";
import type { MachineAddress, MachineRoute } from "./routing/machine-linux.ts";
import type { ClockReading } from "./server-clock.ts";

/** Everything a check of this agent is made from. */
export interface AgentFacts {
  readonly status: AgentStatus;
  readonly wall: number;
  /** Undefined while the agent is down, as are the routes. */
  readonly nat: NatView | undefined;
  /** Undefined: the server does not tell its time. */
  readonly clock: ClockReading | undefined;
  readonly forceRelay: boolean;
  /** The device was left to us: `auto`. */
  readonly autoDevice: boolean;
  /** May this process configure interfaces; undefined: the system does not tell. */
  readonly mayAdminister: boolean | undefined;
  /** Why TUN devices cannot be made. */
  readonly tunProblem: string | undefined;
  readonly kernel: string;
  /** Of all interfaces. */
  readonly addresses: readonly MachineAddress[];
  readonly machineRoutes: readonly MachineRoute[];
  /** What has to lead into the tunnel: our own range and routed networks. */
  readonly wantedRoutes: readonly Prefix[];
}

/** A clock that is off by less disturbs nobody; by more, tokens and certificates begin to fail. */
const CLOCK_NOTE: Millis = 5_000;
const CLOCK_PROBLEM: Millis = 120_000;
/** A clock before 2025 was never set. */
const EARLIEST_WALL = Date.UTC(2025, 0, 1);
/** A finding about many peers names so many. */
const NAMED_PEERS = 5;
const RENUMBER = "renumber one of the two networks";
/** Maybe it is the same network twice. */
const TWO_OF_ONE_PREFIX = `two agents of one network need a network namespace each; else ${RENUMBER}`;

/** What each offload of the device is good for, and what a kernel without it is missing. */
const FEATURES: Readonly<Record<string, string>> = {
  "tun-tso": "large TCP packets are not taken whole from the kernel, which costs throughput",
  "tun-uso":
    "large UDP packets are not taken whole from the kernel (Linux 6.2 and newer can), which costs throughput of UDP",
  "udp-gso": "every outgoing packet is a system call of its own (Linux 4.18 and newer can do better)",
  "udp-gro": "every incoming packet is a system call of its own (Linux 5.0 and newer can do better)",
  ipv6: "no IPv6 socket could be opened, so there are no direct ways over IPv6",
};

const SOURCES: Readonly<Record<LazySource, string>> = {
  flag: "the flag of perch up",
  environment: "the environment",
  setting: "the stored setting",
  network: "the network",
  default: "the default",
};

/** What is in order, what is worth knowing and what has to be mended, in the order of AREAS. Pure. */
export function examineAgent(facts: AgentFacts): Finding[] {
  const { status } = facts;
  const always = [...examineState(facts), ...examineRights(facts)];
  if (status.state !== "up") return [...always, ...examineClock(facts)];
  return [
    ...always,
    ...examineServices(status),
    ...examineStun(facts),
    ...examineUdp(facts),
    ...examineClock(facts),
    ...examineDevice(facts),
    ...examineInterface(facts),
    ...examineOverlap(facts),
    ...examineLazy(status),
    ...examineFirewall(status),
  ];
}

function examineState({ status }: AgentFacts): Finding[] {
  const { state, reason, peers } = status;
  const why = reason ? `: ${reason}` : "";
  switch (state) {
    case "up": {
      const connected = peers.filter((peer) => peer.state === "connected").length;
      return [
        ok(
          "agent",
          `up as ${status.fqdn ?? "?"}, ${status.address ? formatPrefix(status.address) : "no address"}; ${connected} of ${count(peers.length, "peer")} connected`,
        ),
      ];
    }
    case "starting":
      return [problem("agent", `connecting${why}`, "wait a moment, or see the daemon's log")];
    case "needs-login":
      return [problem("agent", `not registered${why}`, "perch up --setup-key-file FILE")];
    case "down":
    case "stopping":
      return [problem("agent", `down${why}`, "perch up")];
    default:
      return state satisfies never;
  }
}

function examineRights({ mayAdminister, tunProblem }: AgentFacts): Finding[] {
  if (mayAdminister === false)
    return [problem("rights", "the daemon may not configure interfaces", "run it as root or with CAP_NET_ADMIN")];
  if (tunProblem) return [problem("rights", tunProblem, "load the module tun, or give the container its device")];
  return [ok("rights", "the daemon may make interfaces and TUN devices")];
}

function examineServices(status: AgentStatus): Finding[] {
  const findings = [examineService("management", status.management), examineService("signal", status.signal)];
  if (status.relays.length === 0) {
    const remedy = "let the management server name one; perch server brings its own";
    return [
      ...findings,
      problem("relay", "the network names no relay: peers that cannot be reached directly are lost", remedy),
    ];
  }
  const home = status.relays.find(({ available }) => available);
  for (const { uri, available, error } of status.relays) {
    if (available) findings.push(ok("relay", `connected to ${uri}`));
    else if (home && error)
      findings.push(note("relay", `no connection to ${uri}: ${error}; ${home.uri} is used`, wayTo(uri)));
    else if (home) findings.push(ok("relay", `${uri} is not used, ${home.uri} is`));
    else findings.push(problem("relay", `no connection to ${uri}${error ? `: ${error}` : ""}`, wayTo(uri)));
  }
  return findings;
}

function examineService(area: "management" | "signal", { url, connected, error }: ServiceStatus): Finding {
  if (connected) return ok(area, `connected to ${url}`);
  return problem(area, `no connection to ${url || "any server"}${error ? `: ${error}` : ""}`, wayTo(url));
}

function wayTo(url: string): string {
  const port = /:(\d+)(?:\/.*)?$/.exec(url)?.[1];
  return `see whether the server runs and ${port ? `TCP port ${port}` : "its TCP port"} is open on the way`;
}

function examineStun({ nat, addresses }: AgentFacts): Finding[] {
  const servers = nat?.servers ?? [];
  if (servers.length === 0) {
    const remedy = "let the management server name one; perch server brings its own";
    return [
      problem(
        "stun",
        "the network names no STUN server, or its name cannot be resolved: addresses outside a NAT stay unknown",
        remedy,
      ),
    ];
  }
  const hasV6 = addresses.some(({ prefix }) => isGlobal6(prefix));
  const anyAnswers = servers.some((report) => isAnswering(report));
  return servers.map((report) => {
    const name = formatEndpoint(report.server);
    if (isAnswering(report)) {
      const after = report.rtt === undefined ? "" : ` after ${Math.round(report.rtt)} ms`;
      return ok("stun", `${name} answers${after} and sees ${formatEndpoint(report.mapped!)}`);
    }
    if (isV6(report.server.address) && !hasV6) return ok("stun", `${name} is not reached: there is no IPv6 here`);
    const text = `${name} does not answer`;
    const remedy = `see whether the server runs and UDP port ${report.server.port} is open on the way`;
    return anyAnswers ? note("stun", text, remedy) : problem("stun", text, remedy);
  });
}

function isAnswering({ mapped, silentAt }: StunServerReport): boolean {
  return mapped !== undefined && silentAt === undefined;
}

function examineUdp({ nat, forceRelay, addresses }: AgentFacts): Finding[] {
  if (!nat) return [];
  const findings: Finding[] = [];
  if (forceRelay) {
    findings.push(
      note("udp", "direct ways are switched off, everything takes the relay", "perch up --force-relay=false"),
    );
  } else if (nat.udp === "works") findings.push(ok("udp", "packets get out and answers come back"));
  else if (nat.udp === "silent") {
    const remedy = "allow outgoing UDP, or see whether the STUN servers run; until then the relay carries everything";
    findings.push(
      problem("udp", "no answer from outside: this network lets no UDP through, or every STUN server is down", remedy),
    );
  } else findings.push(note("udp", "not tried yet", "ask again in a few seconds"));
  findings.push(...examineNat(nat));
  const offered = nat.addresses.map(({ address }) => address);
  if (offered.length === 0) {
    findings.push(
      problem("addresses", "this machine has no address that could be offered to peers", "connect it to a network"),
    );
  } else {
    const v6 = addresses.some(({ prefix }) => isGlobal6(prefix)) ? "" : "; no IPv6 beyond this network";
    findings.push(ok("addresses", `offered to peers: ${offered.join(", ")}${v6}`));
  }
  return findings;
}

function examineNat(nat: NatView): Finding[] {
  switch (nat.mapping) {
    case "none":
      return [ok("nat", "none: the address that others see is our own")];
    case "endpoint-independent":
      return [
        ok(
          "nat",
          `one outer address for all destinations (endpoint-independent): ${seen(translatedOf(nat)).slice(-1).join()}`,
        ),
      ];
    case "endpoint-dependent":
      return [
        note(
          "nat",
          `another outer address for every destination (endpoint-dependent, "symmetric"): ${seen(translatedOf(nat)).slice(-3).join(", ")}; peers with a strict NAT are relayed`,
          "forward the WireGuard UDP port to this machine in the router, or switch it to cone NAT",
        ),
      ];
    case "unknown":
      return nat.udp === "works"
        ? [
            note(
              "nat",
              "there is one; whether it uses the same outer address for all destinations is unknown, because only one place has told what it sees",
              "a second STUN server, or one direct connection to a peer elsewhere, tells",
            ),
          ]
        : [];
    default:
      return nat.mapping satisfies never;
  }
}

function translatedOf({ observations }: NatView): MappingObservation[] {
  return observations.filter(({ translated, destination }) => translated && !isV6(destination.address));
}

function seen(observations: readonly MappingObservation[]): string[] {
  return observations.map(
    ({ destination, mapped }) => `${formatEndpoint(mapped)} towards ${formatEndpoint(destination)}`,
  );
}

function examineClock({ clock, wall, status }: AgentFacts): Finding[] {
  const remedy = "set the clock, best with a time service such as systemd-timesyncd or chrony";
  if (wall < EARLIEST_WALL)
    return [problem("clock", `it says ${new Date(wall).toISOString()}: it was never set`, remedy)];
  if (!clock)
    return status.management.url === "" ? [] : [ok("clock", "not compared: the server does not tell its time")];
  const off = Math.max(0, Math.abs(clock.aheadMs) - clock.uncertaintyMs);
  const side = clock.aheadMs > 0 ? "ahead of" : "behind";
  if (off <= CLOCK_NOTE) return [ok("clock", "agrees with the server's")];
  const text = `${span(Math.abs(clock.aheadMs))} ${side} the server's`;
  return [off > CLOCK_PROBLEM ? problem("clock", text, remedy) : note("clock", text, remedy)];
}

function examineDevice({ status, kernel, autoDevice }: AgentFacts): Finding[] {
  const { device, wireguardPort, mtu, counters } = status;
  if (!device) return [problem("device", "there is none", "perch down, then perch up")];
  const isOurs = device.kind === "embedded";
  const present = isOurs ? device.features.filter((feature) => feature in FEATURES) : device.features;
  const findings = [
    ok(
      "device",
      `${device.kind}, UDP port ${wireguardPort}, MTU ${mtu}${present.length > 0 ? `; ${present.join(", ")}` : ""}`,
    ),
  ];
  for (const [feature, loss] of isOurs ? Object.entries(FEATURES) : []) {
    if (!device.features.includes(feature))
      findings.push(note("device", `without ${feature} (kernel ${kernel}): ${loss}`, ""));
  }
  if (isOurs && autoDevice) {
    const text = `--device auto found no WireGuard of the kernel (${kernel}) that can be used`;
    findings.push(note("device", text, "the daemon's log says what it lacks"));
  }
  const restarts = counters.get("worker-restarts") ?? 0;
  if (restarts > 0) {
    const times = restarts === 1 ? "once" : `${restarts} times`;
    const who = isOurs ? "the data worker" : device.kind;
    const text = `${who} died ${times} since the tunnel was built, and another took over`;
    findings.push(note("device", text, `the daemon's log has the cause${isOurs ? "; please report it" : ""}`));
  }
  if ((counters.get("gso-disabled") ?? 0) > 0) {
    const text = "udp-gso was switched off: the way out of this machine refused it";
    findings.push(note("device", text, "see the driver of the network card, or of the tunnel below"));
  }
  return findings;
}

function examineInterface({ status, addresses, machineRoutes, wantedRoutes }: AgentFacts): Finding[] {
  const name = status.interfaceName ?? "";
  const mine = addresses.filter(({ interfaceName }) => interfaceName === name);
  const wanted = [status.address, status.address6].filter((prefix) => prefix !== undefined);
  const missing = wanted.filter(({ address }) => !mine.some(({ prefix }) => prefix.address === address));
  const again = "perch down, then perch up";
  const findings: Finding[] = [];
  if (mine.length === 0) findings.push(problem("interface", `${name} is gone or down`, again));
  else if (missing.length > 0) {
    // A machine without IPv6 has the rest all the same.
    const severity = missing.every(({ address }) => isV6(address)) ? note : problem;
    findings.push(severity("interface", `${name} lacks ${missing.map(formatPrefix).join(", ")}`, again));
  } else findings.push(ok("interface", `${name} is up with ${wanted.map(formatPrefix).join(", ")}`));
  const absent: Prefix[] = [];
  const shadowed: Finding[] = [];
  for (const prefix of wantedRoutes) {
    const same = machineRoutes.filter((route) => samePrefix(route.prefix, prefix));
    if (!same.some(({ interfaceName }) => interfaceName === name)) absent.push(prefix);
    const other = same.find(({ interfaceName }) => interfaceName !== name);
    if (other) {
      const text = `${formatPrefix(prefix)} is a network of ${other.interfaceName} as well, which may be preferred`;
      shadowed.push(note("routes", text, RENUMBER));
    }
  }
  if (absent.length > 0) {
    const severity = absent.every(({ address }) => isV6(address)) ? note : problem;
    findings.push(severity("routes", `not in place: ${absent.map(formatPrefix).join(", ")}`, again));
  } else findings.push(ok("routes", `${wantedRoutes.map(formatPrefix).join(", ") || "none"} through ${name}`));
  return [...findings, ...shadowed];
}

/** The overlay's range against the networks around: who has the longer prefix gets the packets. */
function examineOverlap({ status, machineRoutes, addresses }: AgentFacts): Finding[] {
  const ranges = [status.address, status.address6].filter((prefix) => prefix !== undefined).map(maskPrefix);
  const around = [
    ...machineRoutes,
    ...addresses.map(({ prefix, interfaceName }) => ({ interfaceName, prefix: maskPrefix(prefix) })),
  ];
  const findings = new Map<string, Finding>();
  for (const range of ranges) {
    for (const { prefix, interfaceName } of around) {
      if (interfaceName === status.interfaceName || interfaceName === "lo" || prefix.bits === 0) continue;
      const overlay = `the overlay's ${formatPrefix(range)}`;
      const local = `${formatPrefix(prefix)} of ${interfaceName}`;
      if (prefix.bits >= range.bits && prefixContains(range, prefix.address)) {
        const text = `${local} lies in ${overlay}: peers with such addresses cannot be reached`;
        findings.set(text, problem("overlap", text, samePrefix(prefix, range) ? TWO_OF_ONE_PREFIX : RENUMBER));
      } else if (prefix.bits < range.bits && prefixContains(prefix, range.address)) {
        const text = `${overlay} lies in ${local}: machines there with such addresses cannot be reached`;
        findings.set(text, note("overlap", text, `${RENUMBER} if that matters`));
      }
    }
  }
  if (findings.size > 0) return [...findings.values()];
  return [ok("overlap", `${ranges.map(formatPrefix).join(", ")} overlaps no network of this machine`)];
}

function examineLazy({ lazy, peers }: AgentStatus): Finding[] {
  const who = `decided by ${SOURCES[lazy.source]}`;
  if (!lazy.enabled) return [ok("lazy", `lazy connections are off, ${who}: every peer stays connected`)];
  const permanent = peers.filter((peer) => !peer.lazy.lazy).length;
  const stay = permanent === 0 ? "" : `; ${permanent} of ${count(peers.length, "peer")} stay connected all the same`;
  const kept = peers.filter((peer) => peer.lazy.kept);
  return [
    ok("lazy", `lazy connections are on, ${who}: peers sleep after ${span(lazy.thresholdMs)} without traffic${stay}`),
    ...(kept.length > 0 ? [describeKept(kept)] : []),
  ];
}

function describeKept(kept: readonly PeerStatus[]): Finding {
  const names = kept.slice(0, NAMED_PEERS).map(({ fqdn }) => fqdn);
  const more = kept.length > names.length ? ` and ${kept.length - names.length} more` : "";
  const text = `waking failed twice in a row, so these stay connected for a while: ${names.join(", ")}${more}`;
  return note("lazy", text, "`perch doctor PEER` says what the connection lacks");
}

function examineFirewall({ firewall }: AgentStatus): Finding[] {
  if (!firewall) return [];
  if (firewall.kind === "rules")
    return [ok("firewall", `the network's access rules are enforced, ${count(firewall.rules, "rule")}`)];
  const text = "the network has no access rules: every peer of the map can reach this machine";
  return [note("firewall", text, "where that matters, filter on the interface by other means")];
}

function isGlobal6({ address }: Prefix): boolean {
  return isV6(address) && /^[23]/.test(address);
}

function samePrefix(a: Prefix, b: Prefix): boolean {
  return a.bits === b.bits && maskPrefix(a).address === maskPrefix(b).address;
}

function count(number: number, what: string): string {
  return number === 1 ? `1 ${what}` : `${number} ${what}s`;
}

function span(ms: Millis): string {
  if (ms < 90_000) return `${Math.round(ms / 1000)} s`;
  return ms < 5_400_000 ? `${Math.round(ms / 60_000)} min` : `${(ms / 3_600_000).toFixed(1)} h`;
}

function ok(area: Area, text: string): Finding {
  return { area, level: "ok", text, remedy: "" };
}

function note(area: Area, text: string, remedy: string): Finding {
  return { area, level: "note", text, remedy };
}

function problem(area: Area, text: string, remedy: string): Finding {
  return { area, level: "problem", text, remedy };
}
