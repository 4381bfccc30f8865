import { messageOf } from "#base/errors.ts";
import { formatPrefix, type IpAddress, ipFromBytes, maskPrefix, type Prefix, parsePrefix } from "#base/ip.ts";
import { PublicKey } from "#base/keys.ts";
import type { NetworkMap, PeerConfig } from "#gen/management_pb.ts";
import type { PeerInfo } from "../peer/peer-connection.ts";
import type { RoutesByPeer } from "./peer-book.ts";

/** What the network map says beside its peers, parsed once at the border. */
export interface NetworkModel {
  readonly serial: number;
  /** Peers whose login expired: shown, not connected. */
  readonly offline: readonly PeerInfo[];
  readonly routes: RouteModel;
  readonly forwardTargets: ReadonlySet<IpAddress>;
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
  offline: [],
  routes: { byPeer: new Map(), groups: new Map(), problems: [] },
  forwardTargets: new Set(),
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

/** Routed networks of a map: who carries them, and who could. */
export interface RouteModel {
  readonly byPeer: RoutesByPeer;
  /** Peers that serve the same routed network, by route. */
  readonly groups: ReadonlyMap<string, ReadonlySet<PublicKey>>;
  readonly problems: readonly string[];
}

/** Addresses that ingress forwards lead to; their peers stay permanent. */
export function parseForwardTargets(map: NetworkMap): ReadonlySet<IpAddress> {
  return new Set(
    map.forwardingRules.flatMap(({ translatedAddress: bytes }) =>
      bytes.length === 4 || bytes.length === 16 ? [ipFromBytes(bytes)] : [],
    ),
  );
}

/** Reads the routes of a map. One routing peer per routed network: the lowest metric, then the smallest key, so that all agents choose alike. */
export function parseRoutes(map: NetworkMap, ownKey: PublicKey): RouteModel {
  const problems: string[] = [];
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
  return { byPeer, groups, problems };
}
