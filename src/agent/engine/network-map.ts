import { messageOf } from "#base/errors.ts";
import {
  formatPrefix,
  type IpAddress,
  ipFromBytes,
  isHostPrefix,
  maskPrefix,
  type Prefix,
  parsePrefix,
} from "#base/ip.ts";
import { PublicKey } from "#base/keys.ts";
import type { NetworkMap, PeerConfig, RemotePeerConfig } from "#gen/management_pb.ts";
import type { PeerInfo } from "../peer/peer-connection.ts";

/** What a network map says, parsed once at the border. */
export interface NetworkModel {
  readonly serial: number;
  readonly peers: ReadonlyMap<PublicKey, PeerInfo>;
  /** Peers whose login expired: shown, not connected. */
  readonly offline: readonly PeerInfo[];
  /** Routed networks for the interface. */
  readonly routes: readonly Prefix[];
  /** Peers that serve the same routed network, by route. */
  readonly groups: ReadonlyMap<string, ReadonlySet<PublicKey>>;
  /** Addresses that ingress forwards lead to; their peers stay permanent. */
  readonly forwardTargets: ReadonlySet<IpAddress>;
  /** What was left out and why, for the log. */
  readonly problems: readonly string[];
}

/** Our own place in the network. */
export interface OwnConfig {
  readonly address: Prefix;
  readonly address6: Prefix | undefined;
  readonly fqdn: string;
  readonly lazy: boolean;
}

export const EMPTY_MODEL: NetworkModel = {
  serial: 0,
  peers: new Map(),
  offline: [],
  routes: [],
  groups: new Map(),
  forwardTargets: new Set(),
  problems: [],
};

/** Reads our own config; throws AddressError when the address is malformed. */
export function parseOwnConfig(config: PeerConfig): OwnConfig {
  const v6 = config.addressV6;
  return {
    address: parsePrefix(config.address),
    address6: v6.length === 17 ? { address: ipFromBytes(v6.subarray(0, 16)), bits: v6[16]! } : undefined,
    fqdn: config.fqdn,
    lazy: config.LazyConnectionEnabled,
  };
}

/** Reads a classic map (management document, section 3.7). A bad entry is left out and named in `problems`, never fatal. */
export function parseNetworkMap(map: NetworkMap, ownKey: PublicKey): NetworkModel {
  const problems: string[] = [];
  const routing = chooseRoutes(map, ownKey, problems);
  const peers = new Map<PublicKey, PeerInfo>();
  if (!map.remotePeersIsEmpty) {
    for (const remote of map.remotePeers) {
      const info = parsePeer(remote, routing.byPeer, problems);
      if (info && info.key !== ownKey) peers.set(info.key, info);
    }
  }
  const offline = map.offlinePeers.map((remote) => parsePeer(remote, new Map(), problems));
  return {
    serial: Number(map.Serial),
    peers,
    offline: offline.filter((info) => info !== undefined),
    routes: [...routing.byPeer].flatMap(([key, prefixes]) => (peers.has(key) ? prefixes : [])),
    groups: routing.groups,
    forwardTargets: new Set(
      map.forwardingRules.flatMap(({ translatedAddress: bytes }) =>
        bytes.length === 4 || bytes.length === 16 ? [ipFromBytes(bytes)] : [],
      ),
    ),
    problems,
  };
}

export interface MapDifference {
  readonly removed: readonly PublicKey[];
  readonly changed: readonly PeerInfo[];
  readonly added: readonly PeerInfo[];
}

/** What has to happen to get from one set of peers to the other. */
export function diffPeers(before: NetworkModel["peers"], after: NetworkModel["peers"]): MapDifference {
  const removed: PublicKey[] = [];
  const changed: PeerInfo[] = [];
  const added: PeerInfo[] = [];
  for (const key of before.keys()) if (!after.has(key)) removed.push(key);
  for (const [key, info] of after) {
    const old = before.get(key);
    if (!old) added.push(info);
    else if (!sameInfo(old, info)) changed.push(info);
  }
  return { removed, changed, added };
}

function sameInfo(a: PeerInfo, b: PeerInfo): boolean {
  if (a.fqdn !== b.fqdn || a.agentVersion !== b.agentVersion || a.allowedIps.length !== b.allowedIps.length)
    return false;
  return a.allowedIps.every((prefix, i) => {
    const other = b.allowedIps[i]!;
    return prefix.address === other.address && prefix.bits === other.bits;
  });
}

function parsePeer(
  remote: RemotePeerConfig,
  routed: ReadonlyMap<PublicKey, readonly Prefix[]>,
  problems: string[],
): PeerInfo | undefined {
  try {
    const key = PublicKey.parse(remote.wgPubKey);
    const overlay = remote.allowedIps.map((text) => maskPrefix(parsePrefix(text)));
    const routes = routed.get(key) ?? [];
    return {
      key,
      fqdn: remote.fqdn,
      addresses: overlay.filter(isHostPrefix).map((prefix) => prefix.address),
      allowedIps: [...overlay, ...routes],
      routes,
      agentVersion: remote.agentVersion,
    };
  } catch (error) {
    problems.push(`peer ${remote.fqdn || remote.wgPubKey.slice(0, 16)}: ${messageOf(error)}`);
    return undefined;
  }
}

/** One routing peer per routed network: the lowest metric, then the smallest key, so that all agents choose alike. */
function chooseRoutes(
  map: NetworkMap,
  ownKey: PublicKey,
  problems: string[],
): { byPeer: Map<PublicKey, Prefix[]>; groups: Map<string, Set<PublicKey>> } {
  const candidates = new Map<string, { prefix: Prefix; routers: { key: PublicKey; metric: number }[] }>();
  const served = new Set<string>();
  for (const route of map.Routes) {
    if (route.Domains.length > 0) continue;
    try {
      const key = PublicKey.parse(route.Peer);
      const prefix = maskPrefix(parsePrefix(route.Network));
      const id = `${route.NetID} ${formatPrefix(prefix)}`;
      if (key === ownKey) served.add(id);
      if (prefix.bits === 0) {
        problems.push(`route ${route.ID}: exit nodes (${formatPrefix(prefix)}) are not used yet`);
        continue;
      }
      const group = candidates.get(id) ?? { prefix, routers: [] };
      group.routers.push({ key, metric: Number(route.Metric) });
      candidates.set(id, group);
    } catch (error) {
      problems.push(`route ${route.ID}: ${messageOf(error)}`);
    }
  }
  const byPeer = new Map<PublicKey, Prefix[]>();
  const groups = new Map<string, Set<PublicKey>>();
  for (const [id, { prefix, routers }] of candidates) {
    if (served.has(id)) continue;
    routers.sort((a, b) => a.metric - b.metric || (a.key < b.key ? -1 : 1));
    const best = routers[0]!.key;
    byPeer.set(best, [...(byPeer.get(best) ?? []), prefix]);
    groups.set(id, new Set(routers.map((router) => router.key)));
  }
  return { byPeer, groups };
}
