import type { IpAddress, Prefix } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import type { PeerSystemMeta } from "#gen/management_pb.ts";

/** A registered peer. Never changed in place: what is derived from it is cached by its identity. */
export interface Peer {
  readonly id: string;
  readonly key: PublicKey;
  /** The host name at registration; later ones do not rename a peer. */
  readonly name: string;
  readonly dnsLabel: string;
  readonly extraLabels: readonly string[];
  readonly address: IpAddress;
  readonly address6: IpAddress;
  /** Decided by Login and kept until the next one: Login and Sync must tell the same addresses. */
  readonly ipv6Usable: boolean;
  readonly ephemeral: boolean;
  /** Ids of the groups besides All. */
  readonly groups: readonly string[];
  readonly sshPublicKey: Uint8Array;
  readonly meta: PeerSystemMeta;
  /** Milliseconds since the Unix epoch. */
  readonly createdAt: number;
}

/** Name of the built-in group. */
export const ALL_GROUP = "All";

export interface Group {
  readonly id: string;
  readonly name: string;
  /** The built-in group of every peer; its members are not listed. */
  readonly isAll: boolean;
}

export type RuleProtocolName = "all" | "tcp" | "udp" | "icmp";

export interface PolicyRule {
  readonly id: string;
  readonly bidirectional: boolean;
  readonly action: "accept" | "drop";
  readonly protocol: RuleProtocolName;
  /** Empty: all ports. */
  readonly ports: readonly number[];
  /** Group ids. */
  readonly sources: readonly string[];
  readonly destinations: readonly string[];
}

/** The network as the store holds it. Disabled policies and rules are left out. */
export interface Account {
  readonly id: string;
  /** Empty: the server's default. */
  readonly domain: string;
  readonly network: Prefix;
  readonly network6: Prefix;
  readonly lazy: boolean;
  readonly serial: number;
  readonly groups: readonly Group[];
  readonly rules: readonly PolicyRule[];
  readonly peers: readonly Peer[];
}

/** A setup key as an administrator sees it; the key itself is shown once, when it is made. */
export interface SetupKeyInfo {
  readonly id: string;
  /** The first characters of the key. */
  readonly prefix: string;
  readonly name: string;
  readonly reusable: boolean;
  readonly ephemeral: boolean;
  readonly allowExtraLabels: boolean;
  /** 0: no limit. */
  readonly usageLimit: number;
  readonly used: number;
  readonly groups: readonly string[];
  readonly createdAt: number;
  readonly expiresAt: number | undefined;
  readonly revokedAt: number | undefined;
  readonly lastUsedAt: number | undefined;
  /** Whether it admits a peer now. */
  readonly state: "valid" | "revoked" | "expired" | "used-up";
}

/** What decides whether a setup key admits a peer, named as its table names it. */
export interface SetupKeyLimits {
  readonly revoked_at: number | null;
  readonly expires_at: number | null;
  readonly usage_limit: number;
  readonly used: number;
}

/** Whether a key admits a peer at `now`, and if not, the first reason why. */
export function setupKeyState(key: SetupKeyLimits, now: number): SetupKeyInfo["state"] {
  if (key.revoked_at !== null) return "revoked";
  if (key.expires_at !== null && now >= key.expires_at) return "expired";
  if (key.usage_limit > 0 && key.used >= key.usage_limit) return "used-up";
  return "valid";
}

/** Whether a peer is online, and when it was last seen or logged in. */
export interface PeerInfo extends Peer {
  readonly connected: boolean;
  readonly lastSeenAt: number;
  readonly lastLoginAt: number;
}
