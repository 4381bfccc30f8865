/**
 * The classic network map as an agent uses it: keys, addresses and numbers parsed once, what cannot be used left out and
 * named. Source: protocol/management.md, sections 3.6, 3.7 and 4.4.
 */
import { messageOf } from "#base/errors.ts";
import { isHostPrefix, type Prefix, parsePrefix } from "#base/ip.ts";
import { PublicKey } from "#base/keys.ts";
import type { NetworkMap, PeerConfig, RemotePeerConfig, Route } from "#gen/management_pb.ts";
import { decodeCompactPrefix } from "./compact-prefix.ts";
import { supportsLazyConnections } from "./version.ts";

/** The receiver's own settings. */
export interface SelfView {
  /** Overlay address with the network's prefix length, host bits kept. */
  readonly address: Prefix;
  readonly address6: Prefix | undefined;
  /** The address as text, exactly as sent: stock agents compare this. */
  readonly addressText: string;
  readonly fqdn: string;
  readonly lazyConnections: boolean;
  readonly routingPeerDns: boolean;
}

export interface RemotePeerView {
  readonly key: PublicKey;
  /** At least one; host prefixes of the peer. */
  readonly allowedIps: readonly Prefix[];
  readonly fqdn: string;
  readonly agentVersion: string;
  /** False: the connection to this peer is permanent (agent older than 0.45.0). */
  readonly supportsLazy: boolean;
}

export interface RouteView {
  readonly id: string;
  readonly networkId: string;
  /** Undefined for a route by domains. */
  readonly network: Prefix | undefined;
  readonly domains: readonly string[];
  /** The routing peer; may be the receiver itself. */
  readonly via: PublicKey;
  /** 1 to 9999, lower wins. */
  readonly metric: number;
  readonly masquerade: boolean;
}

export interface NetworkMapView {
  /** Ignore the map if this is lower than the last applied one; apply equal ones. */
  readonly serial: bigint;
  /** Undefined: lazy connections are off and the address is not checked. */
  readonly self: SelfView | undefined;
  readonly remotePeers: readonly RemotePeerView[];
  readonly offlinePeers: readonly RemotePeerView[];
  readonly routes: readonly RouteView[];
  /** True: no rule means that everything may come in (servers of old). */
  readonly allowsAllInbound: boolean;
  /** The firewall rules, DNS and route rules are read from here by their own parts. */
  readonly raw: NetworkMap;
  /** Entries that were left out, in words. */
  readonly problems: readonly string[];
}

/** Throws AddressError for a malformed `address`: without it there is no interface. */
export function readPeerConfig(config: PeerConfig): SelfView {
  return {
    address: parsePrefix(config.address),
    address6: config.addressV6.length > 0 ? decodeCompactPrefix(config.addressV6) : undefined,
    addressText: config.address,
    fqdn: config.fqdn,
    lazyConnections: config.LazyConnectionEnabled,
    routingPeerDns: config.RoutingPeerDnsResolutionEnabled,
  };
}

/** Never throws; `own` is left out of the peers, as are duplicates of a key after the first. */
export function readNetworkMap(map: NetworkMap, own: PublicKey): NetworkMapView {
  const problems: string[] = [];
  const attempt = <T>(what: string, read: () => T): T | undefined => {
    try {
      return read();
    } catch (error) {
      problems.push(`${what}: ${messageOf(error)}`);
      return undefined;
    }
  };
  const readPeers = (configs: readonly RemotePeerConfig[]): readonly RemotePeerView[] => {
    const peers = new Map<PublicKey, RemotePeerView>();
    for (const config of configs) {
      const peer = attempt(`peer ${config.fqdn || config.wgPubKey}`, () => readRemotePeer(config));
      if (peer && peer.key !== own && !peers.has(peer.key)) peers.set(peer.key, peer);
    }
    return [...peers.values()];
  };
  return {
    serial: map.Serial,
    self: map.peerConfig && attempt("own settings", () => readPeerConfig(map.peerConfig!)),
    remotePeers: map.remotePeersIsEmpty ? [] : readPeers(map.remotePeers),
    offlinePeers: readPeers(map.offlinePeers),
    routes: map.Routes.map((route) => attempt(`route ${route.ID}`, () => readRoute(route))).filter(
      (route) => route !== undefined,
    ),
    allowsAllInbound: map.FirewallRules.length === 0 && !map.firewallRulesIsEmpty,
    raw: map,
    problems,
  };
}

function readRemotePeer(config: RemotePeerConfig): RemotePeerView {
  const allowedIps = config.allowedIps.map(parsePrefix);
  if (!allowedIps.some(isHostPrefix)) throw new RangeError("has no overlay address");
  return {
    key: PublicKey.parse(config.wgPubKey),
    allowedIps,
    fqdn: config.fqdn,
    agentVersion: config.agentVersion,
    supportsLazy: supportsLazyConnections(config.agentVersion),
  };
}

function readRoute(route: Route): RouteView {
  return {
    id: route.ID,
    networkId: route.NetID,
    network: route.Domains.length > 0 ? undefined : parsePrefix(route.Network),
    domains: route.Domains,
    via: PublicKey.parse(route.Peer),
    metric: Number(route.Metric),
    masquerade: route.Masquerade,
  };
}
