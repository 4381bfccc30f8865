import { AgentState, type Peer, PeerState, type StatusHead } from "#gen/daemon_pb.ts";
import { agentStateName, keyText, type StatusView, stateName } from "./status-view.ts";

/** What JSON can hold. */
export type Json = string | number | boolean | null | readonly Json[] | { readonly [name: string]: Json };

/** How stock agents write a time that never was. */
const NEVER = "0001-01-01T00:00:00Z";

/**
 * The machine-readable status. Field names, units and meanings are those of `netbird status --json` (latency in nanoseconds,
 * `peers` counts what passed the filters, path facts only while connected); ours are under `perch`, at the top and in each peer.
 */
export function statusDocument(view: StatusView, cliVersion: string): { readonly [name: string]: Json } {
  const { head, peers } = view;
  return {
    peers: {
      total: peers.length,
      connected: peers.reduce((sum, peer) => sum + (peer.state === PeerState.CONNECTED ? 1 : 0), 0),
      details: peers.map(peerDocument),
    },
    cliVersion,
    daemonVersion: head.daemonVersion,
    daemonStatus: daemonStatus(head),
    management: serviceDocument(head.management),
    signal: serviceDocument(head.signal),
    relays: relaysDocument([...head.stuns, ...head.relays]),
    netbirdIp: head.address,
    netbirdIpv6: head.address6,
    publicKey: head.publicKey.length > 0 ? keyText(head.publicKey) : "",
    usesKernelInterface: head.device === "kernel",
    fqdn: head.fqdn,
    quantumResistance: false,
    quantumResistancePermissive: false,
    networks: [],
    forwardingRules: 0,
    dnsServers: (head.dns?.groups ?? []).map(({ servers, domains }) => ({
      servers,
      domains,
      enabled: head.dns?.enabled ?? false,
      error: "",
    })),
    events: [],
    lazyConnectionEnabled: head.lazy?.enabled ?? false,
    profileName: "default",
    sshServer: { enabled: false, sessions: [] },
    perch: perchDocument(view),
  };
}

function perchDocument({ head }: StatusView): Json {
  const { total = 0, idle = 0, connecting = 0, connected = 0 } = head.peers ?? {};
  const { negotiating = 0, waiting = 0, held = 0, kept = 0 } = head.wakes ?? {};
  return {
    state: agentStateName(head.state).replace(" ", "-"),
    reason: head.reason,
    takenAt: timeText(head.takenAt),
    agentVersion: head.agentVersion,
    daemon: { pid: head.pid, startedAt: timeText(head.startedAt), logLevel: head.logLevel },
    hostname: head.hostname,
    interface: {
      name: head.interfaceName,
      device: head.device,
      features: head.deviceFeatures,
      wireguardPort: head.wireguardPort,
      mtu: head.mtu,
    },
    lazyConnection: {
      enabled: head.lazy?.enabled ?? false,
      source: head.lazy?.source ?? "default",
      inactivityThresholdMs: head.lazy?.thresholdMs ?? 0,
    },
    managementSince: timeText(head.management?.since ?? 0),
    signalSince: timeText(head.signal?.since ?? 0),
    networkSerial: Number(head.serial),
    firewall: head.firewall ? { enforced: head.firewall.enforced, rules: head.firewall.rules } : null,
    dns: head.dns ? dnsDocument(head.dns) : null,
    relays: [...head.stuns, ...head.relays].map(({ uri, since }) => ({ uri, since: timeText(since) })),
    peers: { total, idle, connecting, connected },
    wakes: { negotiating, waiting, held, kept },
    settings: Object.fromEntries(head.settings.map(({ name, value, source }) => [name, { value, source }])),
    counters: head.counters,
  };
}

function dnsDocument({ enabled, domain, server, host, problem, wakes }: NonNullable<StatusView["head"]["dns"]>): Json {
  return { enabled, domain, server, host, problem, wakes };
}

/** One peer. */
export function peerDocument(peer: Peer): { readonly [name: string]: Json } {
  const connected = peer.state === PeerState.CONNECTED;
  const path = connected ? peer.path?.path : undefined;
  const direct = path?.case === "direct" ? path.value : undefined;
  return {
    fqdn: peer.fqdn,
    netbirdIp: peer.addresses.find((address) => !address.includes(":")) ?? peer.addresses[0] ?? "",
    netbirdIpv6: peer.addresses.find((address) => address.includes(":")) ?? "",
    publicKey: keyText(peer.key),
    status: stateName(peer.state),
    lastStatusUpdate: timeText(peer.since),
    connectionType: path?.case === "direct" ? "P2P" : path?.case === "relay" ? "Relayed" : "-",
    iceCandidateType: { local: direct?.localKind ?? "", remote: direct?.remoteKind ?? "" },
    iceCandidateEndpoint: { local: direct?.local ?? "", remote: direct?.remote ?? "" },
    relayAddress: connected ? peer.relayServer || (path?.case === "relay" ? path.value : "") : "",
    lastWireguardHandshake: connected ? timeText(peer.lastHandshake) : NEVER,
    transferReceived: connected ? peer.rxBytes : 0,
    transferSent: connected ? peer.txBytes : 0,
    latency: Math.round((peer.latencyMs ?? 0) * 1e6),
    quantumResistance: false,
    networks: peer.routes,
    perch: {
      reason: peer.reason,
      lazy: peer.lazy,
      lazyReason: peer.lazyReason,
      pinned: peer.pinned,
      pathSince: peer.pathSince > 0 ? timeText(peer.pathSince) : null,
      agentVersion: peer.agentVersion,
      addresses: peer.addresses,
      transferReceived: peer.rxBytes,
      transferSent: peer.txBytes,
      lastHandshake: peer.lastHandshake > 0 ? timeText(peer.lastHandshake) : null,
      ...(peer.timeline.length > 0
        ? {
            timeline: peer.timeline.map(({ at, event, detail, sinceWakeMs }) => ({
              at: timeText(at),
              event,
              detail,
              sinceWakeMs: sinceWakeMs ?? null,
            })),
          }
        : {}),
    },
  };
}

function daemonStatus(head: StatusHead): string {
  switch (head.state) {
    case AgentState.UP:
      return "Connected";
    case AgentState.STARTING:
      return "Connecting";
    case AgentState.NEEDS_LOGIN:
      return "NeedsLogin";
    default:
      return "Idle";
  }
}

function serviceDocument(service: StatusHead["management"]): Json {
  return { url: service?.url ?? "", connected: service?.connected ?? false, error: service?.error ?? "" };
}

function relaysDocument(relays: StatusHead["relays"]): Json {
  const details = relays.map(({ uri, available, error }) => ({ uri, available, error }));
  return { total: details.length, available: details.filter(({ available }) => available).length, details };
}

function timeText(at: number): string {
  return at > 0 ? new Date(at).toISOString() : NEVER;
}
