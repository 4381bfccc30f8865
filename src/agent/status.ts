import { formatEndpoint } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import { PERCH_VERSION } from "#base/version.ts";
import type {
  AgentSettings,
  AgentState,
  AgentStatus,
  LazySource,
  PeerCounts,
  PeerStatus,
  RelayStatus,
  ServiceStatus,
} from "./control.ts";
import type { WakeTotals } from "./metrics/wake-meter.ts";
import type { PeerConnection, PeerInfo } from "./peer/peer-connection.ts";
import type { ServiceRecorder } from "./service-recorder.ts";
import type { Session } from "./session.ts";

export interface StatusSources {
  readonly state: AgentState;
  readonly reason: string | undefined;
  readonly settings: AgentSettings | undefined;
  readonly session: Session | undefined;
  readonly publicKey: PublicKey | undefined;
  readonly isPinned: (key: PublicKey) => boolean;
  readonly wakeTotals: WakeTotals;
}

const DEFAULT_THRESHOLD = 15 * 60_000;

/** A snapshot from what is at hand: no network, no waiting. */
export function buildStatus(sources: StatusSources): AgentStatus {
  const { state, reason, settings, session, publicKey } = sources;
  const own = session?.engine.own;
  let peers: readonly PeerStatus[] | undefined;
  return {
    state,
    reason,
    version: PERCH_VERSION,
    publicKey,
    fqdn: own?.fqdn,
    hostname: settings?.hostname,
    address: own?.address,
    address6: own?.address6,
    interfaceName: session?.device.interfaceName,
    wireguardPort: session?.device.listenPort,
    mtu: session?.device.mtu,
    device: session && { kind: session.device.kind, features: session.device.features },
    lazy: lazyStatus(settings, session),
    management: serviceStatus(settings?.managementUrl ?? "", session?.services.management),
    signal: serviceStatus(session?.signalUri ?? "", session?.services.signal),
    relays: session ? relayStatus(session) : [],
    stuns: session ? stunStatus(session) : [],
    serial: session?.engine.model.serial ?? 0,
    firewall: session?.engine.firewall,
    dns: session?.names.status,
    counts: session ? countPeers(session) : { total: 0, idle: 0, connecting: 0, connected: 0 },
    get peers() {
      peers ??= session ? [...peerStatuses(session, sources.isPinned)] : [];
      return peers;
    },
    wakes: session?.engine.connections.wakes,
    wakeTotals: sources.wakeTotals,
    get paths() {
      return countPaths(session);
    },
    counters: session ? counters(session) : new Map(),
  };
}

/** The device's, those of wakes, and what the relay client could not pass on. */
function counters({ device, engine, relay, names }: Session): AgentStatus["counters"] {
  const { counters: wakes } = engine.connections.wakes;
  return new Map<string, number>([
    ...device.counters(),
    ...wakes,
    ...names.counters,
    ["drop-relay-client", relay.counters().dropped],
  ]);
}

function lazyStatus(settings: AgentSettings | undefined, session: Session | undefined): AgentStatus["lazy"] {
  const thresholdMs = settings?.inactivityThreshold ?? DEFAULT_THRESHOLD;
  const source: LazySource = settings?.lazy?.source ?? (session ? "network" : "default");
  const enabled = session?.engine.connections.lazy ?? settings?.lazy?.enabled ?? true;
  return { enabled, source, thresholdMs };
}

function serviceStatus(url: string, recorder: ServiceRecorder | undefined): ServiceStatus {
  return { url, ...(recorder?.state ?? { connected: false, since: 0 }) };
}

function relayStatus(session: Session): RelayStatus[] {
  const { connected, error, since } = session.services.relay.state;
  const home = session.relay.home.instanceUrl;
  const uris = new Set([...session.engine.relayUrls, ...(home === undefined ? [] : [home])]);
  return [...uris].map((uri) => ({
    uri,
    available: connected && (uri === home || uris.size === 1),
    error: connected ? undefined : (error ?? "not connected yet"),
    since,
  }));
}

function stunStatus(session: Session): RelayStatus[] {
  const { direct } = session.engine;
  return direct.servers.map((server) => ({
    uri: `stun:${formatEndpoint(server)}`,
    available: direct.mappedBy(server) !== undefined,
    error: direct.mappedBy(server) === undefined ? "no answer yet" : undefined,
    since: direct.answeredAt(server),
  }));
}

function countPeers({ engine }: Session): PeerCounts {
  const counts = { idle: 0, connecting: 0, connected: 0 };
  let awake = 0;
  for (const peer of engine.connections.awakePeers) {
    counts[peer.status]++;
    awake++;
  }
  const asleep = engine.connections.size - awake + engine.model.offline.length;
  return { ...counts, total: asleep + awake, idle: asleep + counts.idle };
}

function countPaths(session: Session | undefined): AgentStatus["paths"] {
  const paths = { direct: 0, relay: 0 };
  for (const { status, path } of session?.engine.connections.awakePeers ?? [])
    if (status === "connected" && path.kind !== "none") paths[path.kind]++;
  return paths;
}

/** All peers, each read when it is asked for. */
export function* peerStatuses(session: Session, isPinned: (key: PublicKey) => boolean): Generator<PeerStatus> {
  for (const peer of session.engine.connections.peers) yield peerStatus(session, peer, isPinned(peer.key));
  for (const info of session.engine.model.offline) yield offlineStatus(info, isPinned(info.key));
}

export function findPeerStatus(
  session: Session,
  key: PublicKey,
  isPinned: (key: PublicKey) => boolean,
): PeerStatus | undefined {
  const peer = session.engine.connections.find(key);
  if (peer) return peerStatus(session, peer, isPinned(key));
  const info = session.engine.model.offline.find((each) => each.key === key);
  return info && offlineStatus(info, isPinned(key));
}

function peerStatus(session: Session, peer: PeerConnection, pinned: boolean): PeerStatus {
  const { info } = peer;
  // Who was never awake has no counters worth reading.
  const stats = peer.timeline.length > 0 ? session.device.peerStats(peer.key) : undefined;
  return {
    key: peer.key,
    fqdn: info.fqdn,
    addresses: info.addresses,
    state: peer.status,
    reason: session.engine.connections.whyHeld(peer.key) ?? peer.reason,
    since: peer.since,
    lazy: session.engine.connections.decisionOf(peer.key),
    pinned,
    agentVersion: info.agentVersion,
    path: peer.path,
    pathSince: peer.path.kind === "none" ? undefined : pathSince(peer),
    relayServer: session.engine.relays.serverOf(peer.key) || undefined,
    latencyMs: peer.latencyMs,
    lastHandshake: stats?.lastHandshake ?? 0,
    rxBytes: stats?.rxBytes ?? 0,
    txBytes: stats?.txBytes ?? 0,
    routes: info.routes,
    timeline: peer.timeline,
  };
}

/** The story of a peer tells each choice of a path; before the first one the relay is used, from the wake on. */
function pathSince({ timeline, since }: PeerConnection): number {
  return timeline.findLast(({ event }) => event === "path" || event === "wake")?.at ?? since;
}

function offlineStatus(info: PeerInfo, pinned: boolean): PeerStatus {
  return {
    key: info.key,
    fqdn: info.fqdn,
    addresses: info.addresses,
    state: "idle",
    reason: "its login expired",
    since: 0,
    lazy: { lazy: false, why: "its login expired" },
    pinned,
    agentVersion: info.agentVersion,
    path: { kind: "none" },
    lastHandshake: 0,
    rxBytes: 0,
    txBytes: 0,
    routes: info.routes,
    timeline: [],
  };
}
