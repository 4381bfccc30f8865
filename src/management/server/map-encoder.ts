/**
 * Turns what a peer sees into SyncResponse bytes. What is the same in the maps of many receivers (a remote peer, a rule, a DNS
 * record) is encoded once per peer and copied: a change in a network of n peers costs n copies, not n*n encodings.
 * Sources: protocol/management.md, sections 3.3 to 3.9, 5.1 and 5.5.
 */
import { create, type DescMessage, type MessageInitShape, type MessageShape, toBinary } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { isVersionAtLeast } from "#base/agent-version.ts";
import { type IpAddress, isV6, type Prefix } from "#base/ip.ts";
import { PublicKey } from "#base/keys.ts";
import {
  CustomZoneSchema,
  DNSConfigSchema,
  FirewallRuleSchema,
  type NetbirdConfig,
  NetworkMapSchema,
  PeerCapability,
  type PeerConfig,
  PeerConfigSchema,
  type PerchHeldMap,
  PerchHeldMapSchema,
  PerchMapPartSchema,
  RemotePeerConfigSchema,
  RuleAction,
  RuleDirection,
  RuleProtocol,
  SimpleRecordSchema,
  type SyncResponse,
  SyncResponseSchema,
} from "#gen/management_pb.ts";
import { encodeCompactPrefix } from "../protocol/compact-prefix.ts";
import { fqdnOf } from "../protocol/dns-label.ts";
import { noSessionDeadline } from "../protocol/no-session-deadline.ts";
import { hasCapability, VERSION_WITHOUT_LEGACY_PEERS } from "../protocol/version.ts";
import { type AccountState, DIRECTION_IN, DIRECTION_OUT, type RuleMatch } from "./account-state.ts";
import type { Peer, PolicyRule, RuleProtocolName } from "./model.ts";

/** Field numbers of the repeated fields that are put together from encoded parts. */
const FIELD = {
  /** The same in SyncResponse, for old agents, and in NetworkMap. */
  remotePeers: 3,
  syncNetworkMap: 5,
  mapDnsConfig: 6,
  mapFirewallRules: 8,
  partRules: 7,
  dnsCustomZones: 3,
  zoneRecords: 2,
  syncPerch: 100,
  partPeers: 5,
} as const;

/** Peers in one part of a map: some 50 KB, read and applied by an agent in a few milliseconds. */
const PEERS_PER_PART = 128;

const DNS_TYPE_A = 1n;
const DNS_TYPE_AAAA = 28n;
const DNS_TTL_SECONDS = 300n;

/** Agent versions are passed on to every peer; nobody needs a longer one. */
const AGENT_VERSION_MAX = 64;

const PROTOCOL: Readonly<Record<RuleProtocolName, RuleProtocol>> = {
  all: RuleProtocol.ALL,
  tcp: RuleProtocol.TCP,
  udp: RuleProtocol.UDP,
  icmp: RuleProtocol.ICMP,
};

/**
 * What a peer is in the maps of others, each part with its tags and lengths, ready to be copied. The index is a variant: what
 * the receiver can do.
 */
interface PeerParts {
  /** Index: whether IPv6 is shown, as a number. */
  readonly remote: (Uint8Array | undefined)[];
  readonly records: (Uint8Array | undefined)[];
  /** Index: directions * 4 + compact prefixes * 2 + IPv6. */
  readonly rules: Map<PolicyRule, (Uint8Array | undefined)[]>;
}

/** What one part of a map holds. */
interface MapPart {
  readonly epoch: string;
  readonly revision: number;
  readonly reset: boolean;
  readonly peers: { readonly peer: Peer; readonly rules: readonly RuleMatch[] }[];
  readonly removed: Uint8Array[];
  readonly config?: NetbirdConfig | undefined;
}

export class MapEncoder {
  readonly #state: AccountState;
  /** A changed peer is a new object, so nothing here grows stale. */
  readonly #parts = new WeakMap<Peer, PeerParts>();

  constructor(state: AccountState) {
    this.#state = state;
  }

  /** The receiver's own settings, the same in Login and in every map. */
  peerConfig(peer: Peer): PeerConfig {
    const { network, network6, domain, lazy } = this.#state;
    return create(PeerConfigSchema, {
      address: `${peer.address}/${network.bits}`,
      sshConfig: {},
      fqdn: fqdnOf(peer.dnsLabel, domain),
      LazyConnectionEnabled: lazy,
      ...(peer.ipv6Usable && {
        addressV6: encodeCompactPrefix({ address: peer.address6, bits: network6.bits }),
      }),
    });
  }

  /** A map for the receiver; with `config` it is the first message of a stream. */
  encode(receiver: Peer, config?: NetbirdConfig): Uint8Array {
    const state = this.#state;
    const { peers, rules } = state.visibleTo(receiver);
    const remotes = peers.map((peer) => this.#remotePeer(peer, receiver.ipv6Usable && peer.ipv6Usable));
    const peerConfig = this.peerConfig(receiver);
    const map = [
      encodeMessage(NetworkMapSchema, {
        Serial: BigInt(state.serial),
        peerConfig,
        remotePeersIsEmpty: remotes.length === 0,
        firewallRulesIsEmpty: rules.length === 0,
        // No routes yet; false without rules would mean that all routed traffic is allowed.
        routesFirewallRulesIsEmpty: true,
      }),
      ...field(FIELD.mapDnsConfig, this.#dnsConfig([receiver, ...peers], receiver.ipv6Usable)),
      ...remotes,
      ...rules.map((match) => this.#firewallRules(match, receiver)),
    ];
    const needsCopy = !isVersionAtLeast(receiver.meta.netbirdVersion, VERSION_WITHOUT_LEGACY_PEERS);
    return Buffer.concat([
      encodeMessage(SyncResponseSchema, {
        ...(config && { netbirdConfig: config }),
        peerConfig,
        remotePeersIsEmpty: remotes.length === 0,
        sessionExpiresAt: noSessionDeadline(),
      }),
      ...(needsCopy ? remotes : []),
      ...field(FIELD.syncNetworkMap, map),
    ]);
  }

  /**
   * A map for a Perch agent, in parts made one by one: what changed since the revision it has, or everything when that is not
   * known. Peers that change while the parts are read come again with the next map. Returns what the agent has afterwards.
   */
  *encodeParts(
    receiver: () => Peer,
    held: PerchHeldMap | undefined,
    config?: NetbirdConfig,
  ): Generator<Uint8Array, PerchHeldMap> {
    const state = this.#state;
    const now = create(PerchHeldMapSchema, { epoch: this.#epochOf(receiver()), revision: state.changes.revision });
    const forAll = state.rulesForAll(receiver());
    const changed = held?.epoch === now.epoch ? state.changes.since(held.revision) : undefined;
    const keys = changed ?? state.peers.keys();
    let part: MapPart = { ...now, reset: changed === undefined, peers: [], removed: [], config };
    for (const key of keys) {
      if (part.peers.length >= PEERS_PER_PART) {
        yield this.#encodePart(receiver(), part, true);
        part = { ...now, reset: false, peers: [], removed: [] };
      }
      const peer = state.peers.get(key);
      const rules = peer ? state.rulesBetween(receiver(), peer) : [];
      if (peer && rules.length > 0) part.peers.push({ peer, rules: rules.flatMap((match) => without(match, forAll)) });
      else if (changed && key !== receiver().key) part.removed.push(PublicKey.toBytes(key));
    }
    yield this.#encodePart(receiver(), part, false);
    return now;
  }

  /** What a receiver can do decides how each peer is encoded: with another ability nothing that it has is right. */
  #epochOf(receiver: Peer): string {
    const withPrefixes = hasCapability(receiver.meta, PeerCapability.PeerCapabilitySourcePrefixes);
    return `${this.#state.changes.epoch}${receiver.ipv6Usable ? ".v6" : ""}${withPrefixes ? ".p" : ""}`;
  }

  #encodePart(receiver: Peer, part: MapPart, more: boolean): Uint8Array {
    const { epoch, revision, reset, removed, config } = part;
    const peerConfig = this.peerConfig(receiver);
    const peers = part.peers.flatMap(({ peer, rules }) => {
      const withV6 = receiver.ipv6Usable && peer.ipv6Usable;
      return field(FIELD.partPeers, [
        this.#records(peer, withV6),
        this.#remotePeer(peer, withV6),
        ...rules.map((match) => this.#firewallRules(match, receiver)),
      ]);
    });
    return Buffer.concat([
      encodeMessage(SyncResponseSchema, {
        ...(config && { netbirdConfig: config }),
        peerConfig,
        sessionExpiresAt: noSessionDeadline(),
      }),
      ...(more ? [] : field(FIELD.syncNetworkMap, this.#head(receiver, peerConfig))),
      ...field(FIELD.syncPerch, [
        encodeMessage(PerchMapPartSchema, { epoch, revision, reset, more, removed }),
        ...peers,
        ...(more ? [] : this.#rulesForAll(receiver)),
      ]),
    ]);
  }

  /** A map without other peers. */
  #head(receiver: Peer, peerConfig: PeerConfig): readonly Uint8Array[] {
    return [
      encodeMessage(NetworkMapSchema, {
        Serial: BigInt(this.#state.serial),
        peerConfig,
        routesFirewallRulesIsEmpty: true,
      }),
      ...field(FIELD.mapDnsConfig, this.#dnsConfig([receiver], receiver.ipv6Usable)),
    ];
  }

  #dnsConfig(peers: readonly Peer[], withV6: boolean): readonly Uint8Array[] {
    const zone = [
      encodeMessage(CustomZoneSchema, { Domain: `${this.#state.domain}.` }),
      ...peers.map((peer) => this.#records(peer, withV6 && peer.ipv6Usable)),
    ];
    return [
      encodeMessage(DNSConfigSchema, { ServiceEnable: true, ForwarderPort: BigInt(this.#state.forwarderPort) }),
      ...field(FIELD.dnsCustomZones, zone),
    ];
  }

  #records(peer: Peer, withV6: boolean): Uint8Array {
    return part(this.#partsOf(peer).records, Number(withV6), () =>
      [peer.dnsLabel, ...peer.extraLabels].flatMap((label) =>
        (withV6 ? [peer.address, peer.address6] : [peer.address]).flatMap((address) =>
          field(FIELD.zoneRecords, [
            encodeMessage(SimpleRecordSchema, {
              Name: fqdnOf(label, this.#state.domain),
              Type: isV6(address) ? DNS_TYPE_AAAA : DNS_TYPE_A,
              Class: "IN",
              TTL: DNS_TTL_SECONDS,
              RData: address,
            }),
          ]),
        ),
      ),
    );
  }

  #remotePeer(peer: Peer, withV6: boolean): Uint8Array {
    return part(this.#partsOf(peer).remote, Number(withV6), () =>
      field(FIELD.remotePeers, [
        encodeMessage(RemotePeerConfigSchema, {
          wgPubKey: peer.key,
          // IPv4 first; one entry that cannot be parsed would cost a stock agent the whole map.
          allowedIps: withV6 ? [`${peer.address}/32`, `${peer.address6}/128`] : [`${peer.address}/32`],
          sshConfig: { sshPubKey: peer.sshPublicKey },
          fqdn: fqdnOf(peer.dnsLabel, this.#state.domain),
          agentVersion: peer.meta.netbirdVersion.slice(0, AGENT_VERSION_MAX),
        }),
      ]),
    );
  }

  /** One rule per direction, address family and port. */
  #firewallRules({ rule, peer, directions }: RuleMatch, receiver: Peer): Uint8Array {
    const withPrefixes = hasCapability(receiver.meta, PeerCapability.PeerCapabilitySourcePrefixes);
    const withV6 = receiver.ipv6Usable && peer.ipv6Usable;
    const known = this.#partsOf(peer).rules;
    const variants = known.get(rule) ?? [];
    known.set(rule, variants);
    const variant = directions * 4 + Number(withPrefixes) * 2 + Number(withV6);
    const prefixes = (withV6 ? [peer.address, peer.address6] : [peer.address]).map(hostPrefix);
    return part(variants, variant, () =>
      encodeRules(rule, directions, prefixes, withPrefixes).flatMap((bytes) => field(FIELD.mapFirewallRules, [bytes])),
    );
  }

  /** Rules between the receiver and everybody, once for the network instead of once for each peer. */
  #rulesForAll(receiver: Peer): readonly Uint8Array[] {
    const { network, network6 } = this.#state;
    const prefixes = receiver.ipv6Usable ? [network, network6] : [network];
    return [...this.#state.rulesForAll(receiver)].flatMap(([rule, directions]) =>
      encodeRules(rule, directions, prefixes, true).flatMap((bytes) => field(FIELD.partRules, [bytes])),
    );
  }

  #partsOf(peer: Peer): PeerParts {
    const known = this.#parts.get(peer);
    if (known) return known;
    const made: PeerParts = { remote: [], records: [], rules: new Map() };
    this.#parts.set(peer, made);
    return made;
  }
}

/** What of a match is not said by the rules between the receiver and everybody. */
function without(match: RuleMatch, forAll: ReadonlyMap<PolicyRule, number>): readonly RuleMatch[] {
  const directions = match.directions & ~(forAll.get(match.rule) ?? 0);
  return directions === 0 ? [] : [{ ...match, directions }];
}

/** A rule as FirewallRules: one for each direction, prefix and port. */
function encodeRules(
  rule: PolicyRule,
  directions: number,
  prefixes: readonly Prefix[],
  withPrefixes: boolean,
): readonly Uint8Array[] {
  const ports = rule.ports.length > 0 ? rule.ports.map(String) : [""];
  return [DIRECTION_IN, DIRECTION_OUT]
    .filter((direction) => (directions & direction) !== 0)
    .flatMap((direction) =>
      prefixes.flatMap((prefix) =>
        ports.map((port) =>
          encodeMessage(FirewallRuleSchema, {
            PeerIP: prefix.address,
            Direction: direction === DIRECTION_IN ? RuleDirection.IN : RuleDirection.OUT,
            Action: rule.action === "drop" ? RuleAction.DROP : RuleAction.ACCEPT,
            Protocol: PROTOCOL[rule.protocol],
            Port: port,
            // Without a port TCP and UDP carry an explicit range, 0-0 for every port.
            ...(port === "" &&
              (rule.protocol === "tcp" || rule.protocol === "udp") && {
                PortInfo: { portSelection: { case: "range", value: { start: 0, end: 0 } } } as const,
              }),
            PolicyID: new TextEncoder().encode(rule.id),
            sourcePrefixes: withPrefixes ? [encodeCompactPrefix(prefix)] : [],
          }),
        ),
      ),
    );
}

/** The last message to a peer that was removed (section 5.8): it drops every peer of its own. */
export function removalNotice(serial: number, forwarderPort: number): SyncResponse {
  return create(SyncResponseSchema, {
    remotePeersIsEmpty: true,
    NetworkMap: {
      Serial: BigInt(serial),
      remotePeersIsEmpty: true,
      firewallRulesIsEmpty: true,
      DNSConfig: { ForwarderPort: BigInt(forwarderPort) },
    },
  });
}

function hostPrefix(address: IpAddress): { address: IpAddress; bits: number } {
  return { address, bits: isV6(address) ? 128 : 32 };
}

function encodeMessage<Desc extends DescMessage>(schema: Desc, init: MessageInitShape<Desc>): Uint8Array {
  return toBinary(schema, create(schema, init) as MessageShape<Desc>);
}

/** A message field as tag, length and content; the content may come in pieces, for encoded messages may be appended. */
function field(number: number, content: readonly Uint8Array[]): readonly Uint8Array[] {
  let length = 0;
  for (const piece of content) length += piece.length;
  return [new BinaryWriter().tag(number, WireType.LengthDelimited).uint32(length).finish(), ...content];
}

/** The part of a variant, made the first time. */
function part(variants: (Uint8Array | undefined)[], index: number, make: () => readonly Uint8Array[]): Uint8Array {
  const known = variants[index];
  if (known) return known;
  const made = Buffer.concat(make());
  variants[index] = made;
  return made;
}
