import { messageOf } from "#base/errors.ts";
import { formatPrefix, type IpAddress, isHostPrefix, maskPrefix, type Prefix, parsePrefix } from "#base/ip.ts";
import { PublicKey } from "#base/keys.ts";
import type { PerchMapPart, RemotePeerConfig } from "#gen/management_pb.ts";
import type { PeerInfo } from "../peer/peer-connection.ts";

/** What has to happen to get from one set of peers to the other. */
export interface MapDifference {
  readonly removed: PublicKey[];
  readonly changed: PeerInfo[];
  readonly added: PeerInfo[];
  /** What was left out and why, for the log. */
  readonly problems: string[];
  /** Keys in `changed` and `added`: an entry that is named twice counts as it was named first. */
  readonly touched: Set<PublicKey>;
}

/** Networks routed through peers. */
export type RoutesByPeer = ReadonlyMap<PublicKey, readonly Prefix[]>;

/** Versions of agents in a network are few; more than these are kept once for each peer. */
const VERSIONS_MAX = 256;
const NO_PREFIXES: readonly Prefix[] = [];

/**
 * The peers of the network map, kept from update to update: one object for each, parsed when its text changes and never
 * again. With 50,000 peers an update that changes one costs that one; a whole map costs a comparison of texts.
 */
export class PeerBook {
  readonly #ownKey: PublicKey;
  readonly #peers = new Map<PublicKey, PeerInfo>();
  readonly #versions = new Set<string>();
  /** Peers of the whole map whose parts are being read. */
  #seen: Set<PublicKey> | undefined;
  #routed: RoutesByPeer = new Map();

  constructor(ownKey: PublicKey) {
    this.#ownKey = ownKey;
  }

  get peers(): ReadonlyMap<PublicKey, PeerInfo> {
    return this.#peers;
  }

  /**
   * Takes the networks that are routed through peers. Goes before the peers of the same update: theirs are parsed with it.
   */
  setRoutes(routed: RoutesByPeer, difference: MapDifference): void {
    const before = this.#routed;
    this.#routed = routed;
    for (const key of new Set([...before.keys(), ...routed.keys()])) {
      const info = this.#peers.get(key);
      const routes = routed.get(key) ?? NO_PREFIXES;
      if (!info || samePrefixes(info.routes, routes)) continue;
      const next = new MapPeer(key, info.fqdn, overlayOf(info), routes, info.agentVersion);
      this.#peers.set(key, next);
      difference.changed.push(next);
    }
  }

  /** Takes a whole list. A bad entry is left out and named, never fatal. */
  replace(remotes: readonly RemotePeerConfig[], difference: MapDifference): void {
    this.#seen = undefined;
    const before = this.#peers.size;
    let known = 0;
    for (const remote of remotes) if (this.#put(remote, difference)) known++;
    // As many known ones as there were: nobody left. With an entry named twice the count says nothing.
    if (known === before && remotes.length === this.#peers.size) return;
    const kept = new Set<string>(remotes.map((remote) => remote.wgPubKey));
    this.#removeUnless((key) => kept.has(key) || difference.touched.has(key), difference);
  }

  /** Takes one part of a map; peers that are in no part of a whole map leave with its last. */
  applyPart(part: PerchMapPart, difference: MapDifference): void {
    if (part.reset) this.#seen = new Set();
    for (const { peer } of part.peers) {
      if (!peer) continue;
      this.#put(peer, difference);
      this.#seen?.add(peer.wgPubKey as PublicKey);
    }
    for (const bytes of part.removed) this.#remove(bytes, difference);
    const seen = this.#seen;
    if (part.more || !seen) return;
    this.#seen = undefined;
    this.#removeUnless((key) => seen.has(key), difference);
  }

  /** Parses an entry outside of the list: a peer that is shown but not connected. */
  parse(remote: RemotePeerConfig, problems: string[]): PeerInfo | undefined {
    try {
      const key = PublicKey.parse(remote.wgPubKey);
      const overlay = remote.allowedIps.map(parseOverlay);
      return new MapPeer(
        key,
        remote.fqdn,
        overlay,
        this.#routed.get(key) ?? NO_PREFIXES,
        this.#version(remote.agentVersion),
      );
    } catch (error) {
      problems.push(`peer ${remote.fqdn || remote.wgPubKey.slice(0, 16)}: ${messageOf(error)}`);
      return undefined;
    }
  }

  /** True when the peer was known before. */
  #put(remote: RemotePeerConfig, difference: MapDifference): boolean {
    const old = this.#peers.get(remote.wgPubKey as PublicKey);
    if (old && saysTheSame(old, remote)) return true;
    const info = this.parse(remote, difference.problems);
    // What it said before is not true any more.
    if (!info && old && this.#peers.delete(old.key)) difference.removed.push(old.key);
    if (!info || info.key === this.#ownKey) return false;
    const before = old ?? this.#peers.get(info.key);
    if (before && (difference.touched.has(info.key) || sameInfo(before, info))) return true;
    this.#peers.set(info.key, info);
    difference.touched.add(info.key);
    (before ? difference.changed : difference.added).push(info);
    return before !== undefined;
  }

  #remove(bytes: Uint8Array, difference: MapDifference): void {
    if (bytes.length !== 32) return;
    const key = PublicKey.fromBytes(bytes);
    if (this.#peers.delete(key)) difference.removed.push(key);
  }

  #removeUnless(isKept: (key: PublicKey) => boolean, difference: MapDifference): void {
    for (const key of this.#peers.keys()) {
      if (isKept(key)) continue;
      this.#peers.delete(key);
      difference.removed.push(key);
    }
  }

  #version(text: string): string {
    if (this.#versions.size < VERSIONS_MAX) this.#versions.add(text);
    // The set hands out its own copy of the text, so that equal ones take memory once.
    for (const version of this.#versions) if (version === text) return version;
    return text;
  }
}

/** A peer with as little as 50,000 of it need. The overlay's prefixes come first in `allowedIps`. */
class MapPeer implements PeerInfo {
  readonly key: PublicKey;
  readonly fqdn: string;
  readonly allowedIps: readonly Prefix[];
  readonly routes: readonly Prefix[];
  readonly agentVersion: string;

  constructor(
    key: PublicKey,
    fqdn: string,
    overlay: readonly Prefix[],
    routes: readonly Prefix[],
    agentVersion: string,
  ) {
    this.key = key;
    this.fqdn = fqdn;
    this.allowedIps = routes.length > 0 ? [...overlay, ...routes] : overlay;
    this.routes = routes;
    this.agentVersion = agentVersion;
  }

  get addresses(): readonly IpAddress[] {
    return overlayOf(this)
      .filter(isHostPrefix)
      .map((prefix) => prefix.address);
  }
}

export function createDifference(): MapDifference {
  return { removed: [], changed: [], added: [], problems: [], touched: new Set() };
}

/** Without the networks that are routed through the peer. */
function overlayOf({ allowedIps, routes }: Pick<PeerInfo, "allowedIps" | "routes">): readonly Prefix[] {
  return routes.length > 0 ? allowedIps.slice(0, -routes.length) : allowedIps;
}

function parseOverlay(text: string): Prefix {
  const { address, bits } = maskPrefix(parsePrefix(text));
  // A copy of its own: a part of another string would keep all of that one in memory.
  return { address: Buffer.from(address, "latin1").toString("latin1") as IpAddress, bits };
}

/** Whether the entry says what is known, compared as text; false may also mean another way to write the same. */
function saysTheSame(info: PeerInfo, remote: RemotePeerConfig): boolean {
  if (info.fqdn !== remote.fqdn || info.agentVersion !== remote.agentVersion) return false;
  const { allowedIps, routes } = info;
  if (allowedIps.length - routes.length !== remote.allowedIps.length) return false;
  return remote.allowedIps.every((text, index) => isPrefixText(text, allowedIps[index]!));
}

function isPrefixText(text: string, prefix: Prefix): boolean {
  const { address, bits } = prefix;
  if (bits === 32 && text.length === address.length + 3) return text.endsWith("/32") && text.startsWith(address);
  if (bits === 128 && text.length === address.length + 4) return text.endsWith("/128") && text.startsWith(address);
  return text === formatPrefix(prefix);
}

function sameInfo(a: PeerInfo, b: PeerInfo): boolean {
  return a.fqdn === b.fqdn && a.agentVersion === b.agentVersion && samePrefixes(a.allowedIps, b.allowedIps);
}

function samePrefixes(a: readonly Prefix[], b: readonly Prefix[]): boolean {
  if (a.length !== b.length) return false;
  return a.every((prefix, i) => prefix.address === b[i]!.address && prefix.bits === b[i]!.bits);
}
