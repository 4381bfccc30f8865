import { release } from "node:os";
import { maskPrefix, type Prefix } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import type { Clock } from "#base/time.ts";
import { isPrivate } from "#ice/mapping.ts";
import type { PairSnapshot } from "#ice/pair.ts";
import type { AgentSettings, AgentStatus, PeerStatus } from "./control.ts";
import { interfaceAddresses } from "./engine/engine.ts";
import { AgentError } from "./errors.ts";
import type { AgentExamination, PairExamination } from "./examination.ts";
import { examineAgent } from "./findings.ts";
import { diagnosePair, type PairFacts } from "./peer/diagnosis.ts";
import type { DirectAttempt } from "./peer/direct-attempts.ts";
import { canAdministerNetwork, readAddresses, readRoutes, tunProblem } from "./routing/machine-linux.ts";
import { readServerClock } from "./server-clock.ts";
import type { Session } from "./session.ts";

/** What an examination looks at. It changes nothing; the only packets are STUN queries and a HEAD to management. */
export interface DoctorDeps {
  readonly clock: Clock;
  readonly settings: AgentSettings | undefined;
  /** Undefined while the agent is down. */
  readonly session: Session | undefined;
  /** Read when the servers have answered. */
  readonly status: () => AgentStatus;
}

/** Checks this agent; takes as long as the slowest STUN server, 3.1 s at most. */
export async function examine(deps: DoctorDeps, signal: AbortSignal): Promise<AgentExamination> {
  const { clock, settings, session } = deps;
  const [serverClock] = await Promise.all([
    settings && readServerClock(settings.managementUrl, clock, signal),
    session?.engine.direct.askServers(),
  ]);
  const nat = session?.engine.direct.view();
  const findings = examineAgent({
    status: deps.status(),
    wall: clock.wall(),
    nat,
    clock: serverClock,
    forceRelay: settings?.forceRelay ?? false,
    autoDevice: settings?.device === "auto",
    mayAdminister: canAdministerNetwork(),
    tunProblem: tunProblem(),
    kernel: release(),
    addresses: readAddresses(),
    machineRoutes: readRoutes(),
    wantedRoutes: session ? wantedRoutes(session) : [],
  });
  return { findings, nat };
}

/** Our own range and what is routed through peers. */
function wantedRoutes({ engine }: Session): Prefix[] {
  const routed = [...engine.connections.peers].flatMap(({ info }) => info.routes);
  return [...interfaceAddresses(engine.own), ...routed].map(maskPrefix);
}

/** Looks at one pair, with fresh answers of the STUN servers. Throws AgentError `peer-unknown`. */
export async function examinePair(deps: DoctorDeps, key: PublicKey): Promise<PairExamination> {
  const { session } = deps;
  if (!session) throw new AgentError("peer-unknown", "the tunnel is not up: `perch up` first");
  await session.engine.direct.askServers();
  const peer = deps.status().peers.find((each) => each.key === key);
  if (!peer) throw new AgentError("peer-unknown", `no peer with the key ${key} in this network`);
  const nat = session.engine.direct.view();
  const attempt = session.engine.direct.attemptOf(key);
  const facts = pairFacts(deps.clock, session, peer, attempt);
  return { peer, facts, diagnosis: diagnosePair(facts), attempt, nat, relayRtt: session.relay.home.rtt };
}

function pairFacts(clock: Clock, session: Session, peer: PeerStatus, attempt: DirectAttempt | undefined): PairFacts {
  const { engine, device, services } = session;
  const connection = engine.connections.find(peer.key);
  const { remote, delivered, initiations = 0 } = connection?.negotiation ?? {};
  const wokeAt = connection?.wokeAt;
  const counters = device.counters();
  const pairs = attempt?.pairs ?? [];
  return {
    name: shortName(peer),
    state: peer.state,
    reason: peer.reason,
    expired: connection === undefined,
    lazy: peer.lazy.lazy,
    awakeFor: wokeAt === undefined ? 0 : clock.now() - wokeAt,
    path: peer.path.kind,
    port: device.listenPort,
    directAllowed: engine.direct.allowed,
    here: engine.direct.nat,
    there: {
      agent: remote === undefined ? "unheard" : remote.perch ? "perch" : "stock",
      ice: remote?.ice ?? false,
      relay: remote?.relay ?? false,
      named: addressesNamed(pairs),
      mapping: remote?.nat?.mapping ?? "unknown",
      udp: remote?.nat?.udp ?? "unknown",
    },
    stunServers: engine.direct.servers.length,
    signal: { connected: services.signal.state.connected, delivered },
    relay: {
      configured: engine.relayUrls.length,
      usable: engine.relays.isUp(peer.key),
      server: engine.relays.serverOf(peer.key),
    },
    checks: {
      outcome: attempt === undefined || pairs.length === 0 ? "none" : attempt.outcome,
      pairs: pairs.length,
      answered: pairs.reduce((sum, pair) => sum + pair.answered, 0),
      received: pairs.reduce((sum, pair) => sum + pair.received, 0),
    },
    handshake: {
      initiations,
      last: peer.lastHandshake,
      unopened: counters.get("drop-handshake-authentication") ?? 0,
      replayed: counters.get("drop-handshake-replay") ?? 0,
    },
  };
}

/** What the remote's own candidates say of where it is. */
function addressesNamed(pairs: readonly PairSnapshot[]): PairFacts["there"]["named"] {
  const named = pairs.filter(({ remote }) => remote.type !== "prflx").map(({ remote }) => remote.endpoint.address);
  if (named.length === 0) return "none";
  return named.every(isPrivate) ? "private" : "public";
}

/** The first label of its name, as people type it. */
function shortName({ fqdn, addresses, key }: PeerStatus): string {
  return fqdn.split(".")[0] || addresses[0] || key.slice(0, 8);
}
