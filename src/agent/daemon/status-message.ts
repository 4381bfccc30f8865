import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { formatEndpoint, formatPrefix } from "#base/ip.ts";
import { PublicKey } from "#base/keys.ts";
import {
  AgentState as AgentStateWire,
  type DirectPath,
  type DnsSchema,
  type FirewallSchema,
  type Path,
  type Peer,
  PeerState as PeerStateWire,
  type RelaySchema,
  type StatusHead,
  StatusHeadSchema,
  type TimelineEntry,
  type WakesSchema,
} from "#gen/daemon_pb.ts";
import type { AgentState, AgentStatus, PeerPath, PeerState, PeerStatus, RelayStatus, WakeCounts } from "../control.ts";
import type { DnsStatus } from "../dns/name-service.ts";
import type { FirewallStatus } from "../firewall/firewall.ts";
import { type ResolvedSettings, SETTING_NAMES, SETTINGS, showSetting } from "./settings.ts";

const PEER_STATES: Readonly<Record<PeerState, PeerStateWire>> = {
  idle: PeerStateWire.IDLE,
  connecting: PeerStateWire.CONNECTING,
  connected: PeerStateWire.CONNECTED,
};

const AGENT_STATES: Readonly<Record<AgentState, AgentStateWire>> = {
  down: AgentStateWire.DOWN,
  starting: AgentStateWire.STARTING,
  up: AgentStateWire.UP,
  "needs-login": AgentStateWire.NEEDS_LOGIN,
  stopping: AgentStateWire.STOPPING,
};

/** What the daemon adds to the agent's status. */
export interface DaemonFacts {
  readonly version: string;
  readonly pid: number;
  /** Wall clock ms. */
  readonly startedAt: number;
  readonly settings: ResolvedSettings;
  readonly logLevel: string;
  /** Why the last attempt to come up failed, for as long as it matters. */
  readonly failure?: string | undefined;
}

/**
 * The peer as the API shows it; the timeline only where it is asked for. An object as it is, not one made by `create`: there
 * may be tens of thousands in an answer.
 */
export function encodePeer(peer: PeerStatus, withTimeline: boolean): Peer {
  const message: Peer = {
    $typeName: "perch.daemon.v1.Peer",
    key: PublicKey.toBytes(peer.key),
    fqdn: peer.fqdn,
    addresses: peer.addresses as readonly string[] as string[],
    state: PEER_STATES[peer.state],
    reason: peer.reason,
    since: peer.since,
    lazy: peer.lazy.lazy,
    lazyReason: peer.lazy.why,
    pinned: peer.pinned,
    agentVersion: peer.agentVersion,
    relayServer: peer.relayServer ?? "",
    lastHandshake: peer.lastHandshake,
    rxBytes: peer.rxBytes,
    txBytes: peer.txBytes,
    routes: peer.routes.map(formatPrefix),
    pathSince: peer.pathSince ?? 0,
    timeline: withTimeline ? peer.timeline.map(encodeTimelineEntry) : [],
  };
  if (peer.path.kind !== "none") message.path = encodePath(peer.path);
  if (peer.latencyMs !== undefined) message.latencyMs = peer.latencyMs;
  return message;
}

function encodeTimelineEntry({ at, event, detail, sinceWake }: PeerStatus["timeline"][number]): TimelineEntry {
  const entry: TimelineEntry = { $typeName: "perch.daemon.v1.TimelineEntry", at, event, detail };
  if (sinceWake !== undefined) entry.sinceWakeMs = sinceWake;
  return entry;
}

export function encodeHead(status: AgentStatus, facts: DaemonFacts, takenAt: number): StatusHead {
  const settings = SETTING_NAMES.flatMap((name) => {
    const found = facts.settings.get(name);
    if (name === "lazy") {
      return { name: SETTINGS.lazy.flag, value: String(status.lazy.enabled), source: status.lazy.source };
    }
    if (name === "dns" && !found && status.dns) {
      return { name: SETTINGS.dns.flag, value: String(status.dns.enabled), source: "network" };
    }
    return found ? { name: SETTINGS[name].flag, value: showSetting(name, found.value), source: found.source } : [];
  });
  return create(StatusHeadSchema, {
    daemonVersion: facts.version,
    pid: facts.pid,
    startedAt: facts.startedAt,
    state: AGENT_STATES[status.state],
    reason: status.reason ?? (status.state === "up" ? "" : (facts.failure ?? "")),
    agentVersion: status.version,
    publicKey: status.publicKey ? PublicKey.toBytes(status.publicKey) : new Uint8Array(),
    fqdn: status.fqdn ?? "",
    hostname: status.hostname ?? "",
    address: status.address ? formatPrefix(status.address) : "",
    address6: status.address6 ? formatPrefix(status.address6) : "",
    interfaceName: status.interfaceName ?? "",
    wireguardPort: status.wireguardPort ?? 0,
    mtu: status.mtu ?? 0,
    device: status.device?.kind ?? "",
    deviceFeatures: [...(status.device?.features ?? [])],
    lazy: { enabled: status.lazy.enabled, source: status.lazy.source, thresholdMs: status.lazy.thresholdMs },
    management: { ...status.management, error: status.management.error ?? "" },
    signal: { ...status.signal, error: status.signal.error ?? "" },
    relays: status.relays.map(encodeRelay),
    stuns: status.stuns.map(encodeRelay),
    serial: BigInt(status.serial),
    ...(status.firewall && { firewall: encodeFirewall(status.firewall) }),
    peers: status.counts,
    ...(status.dns && { dns: encodeDns(status.dns) }),
    ...(status.wakes && { wakes: encodeWakes(status.wakes) }),
    counters: Object.fromEntries(status.counters),
    settings,
    takenAt,
    logLevel: facts.logLevel,
  });
}

function encodeRelay({ uri, available, error = "", since = 0 }: RelayStatus): MessageInitShape<typeof RelaySchema> {
  return { uri, available, error, since };
}

function encodeDns(dns: DnsStatus): MessageInitShape<typeof DnsSchema> {
  const groups = dns.groups.map(({ servers, domains, primary }) => ({
    servers: servers.map(formatEndpoint),
    domains: primary ? [] : [...domains],
  }));
  return {
    enabled: dns.enabled,
    domain: dns.domain,
    server: dns.server ? formatEndpoint(dns.server) : "",
    host: dns.host ?? "",
    problem: dns.problem ?? "",
    wakes: dns.wakes,
    groups,
  };
}

function encodeWakes({ negotiating, waiting, held, kept }: WakeCounts): MessageInitShape<typeof WakesSchema> {
  return { negotiating, waiting, held, kept };
}

function encodeFirewall(firewall: FirewallStatus): MessageInitShape<typeof FirewallSchema> {
  return firewall.kind === "rules" ? { enforced: true, rules: firewall.rules } : { enforced: false };
}

function encodePath(path: Exclude<PeerPath, { readonly kind: "none" }>): Path {
  switch (path.kind) {
    case "relay":
      return { $typeName: "perch.daemon.v1.Path", path: { case: "relay", value: path.server } };
    case "direct": {
      const value: DirectPath = {
        $typeName: "perch.daemon.v1.DirectPath",
        remote: formatEndpoint(path.endpoint),
        local: path.local ? formatEndpoint(path.local) : "",
        remoteKind: path.remoteKind,
        localKind: path.localKind,
      };
      return { $typeName: "perch.daemon.v1.Path", path: { case: "direct", value } };
    }
    default:
      return path satisfies never;
  }
}
