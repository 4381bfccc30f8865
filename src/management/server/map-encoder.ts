/**
 * Turns what a peer sees into SyncResponse bytes. What is the same in the maps of many receivers (a remote peer, a rule, a DNS
 * record) is encoded once per peer and copied: a change in a network of n peers costs n copies, not n*n encodings.
 * Sources: protocol/management.md, sections 3.3 to 3.9, 5.1 and 5.5.
 */
import { create, type DescMessage, type MessageInitShape, type MessageShape, toBinary } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { type IpAddress, isV6 } from "#base/ip.ts";
import {
  CustomZoneSchema,
  DNSConfigSchema,
  FirewallRuleSchema,
  type NetbirdConfig,
  NetworkMapSchema,
  PeerCapability,
  type PeerConfig,
  PeerConfigSchema,
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
import { encodeSessionDeadline } from "../protocol/session-deadline.ts";
import { hasCapability, isVersionAtLeast, VERSION_WITHOUT_LEGACY_PEERS } from "../protocol/version.ts";
import type { AccountState, RuleMatch } from "./account-state.ts";
import type { Peer, RuleProtocolName } from "./model.ts";

/** Field numbers of the repeated fields that are put together from encoded parts. */
const FIELD = {
  syncRemotePeers: 3,
  syncNetworkMap: 5,
  mapRemotePeers: 3,
  mapDnsConfig: 6,
  mapFirewallRules: 8,
  dnsCustomZones: 3,
  zoneRecords: 2,
} as const;

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

export class MapEncoder {
  readonly #state: AccountState;
  /** Encoded parts by peer; a changed peer is a new object, so nothing here grows stale. */
  readonly #parts = new WeakMap<Peer, Map<string, Uint8Array>>();

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
    const firewall = rules.flatMap((match) => this.#firewallRules(match, receiver));
    const peerConfig = this.peerConfig(receiver);
    const map = concat(
      encodeMessage(NetworkMapSchema, {
        Serial: BigInt(state.serial),
        peerConfig,
        remotePeersIsEmpty: remotes.length === 0,
        firewallRulesIsEmpty: firewall.length === 0,
        // No routes yet; false without rules would mean that all routed traffic is allowed.
        routesFirewallRulesIsEmpty: true,
      }),
      field(FIELD.mapDnsConfig, [this.#dnsConfig([receiver, ...peers], receiver.ipv6Usable)]),
      field(FIELD.mapRemotePeers, remotes),
      field(FIELD.mapFirewallRules, firewall),
    );
    const needsCopy = !isVersionAtLeast(receiver.meta.netbirdVersion, VERSION_WITHOUT_LEGACY_PEERS);
    const sessionExpiresAt = encodeSessionDeadline({ kind: "none" });
    return concat(
      encodeMessage(SyncResponseSchema, {
        ...(config && { netbirdConfig: config }),
        peerConfig,
        remotePeersIsEmpty: remotes.length === 0,
        ...(sessionExpiresAt && { sessionExpiresAt }),
      }),
      needsCopy ? field(FIELD.syncRemotePeers, remotes) : [],
      field(FIELD.syncNetworkMap, [map]),
    );
  }

  #dnsConfig(peers: readonly Peer[], withV6: boolean): Uint8Array {
    const zone = concat(
      encodeMessage(CustomZoneSchema, { Domain: `${this.#state.domain}.` }),
      field(
        FIELD.zoneRecords,
        peers.flatMap((peer) => this.#records(peer, withV6 && peer.ipv6Usable)),
      ),
    );
    return concat(
      encodeMessage(DNSConfigSchema, { ServiceEnable: true, ForwarderPort: BigInt(this.#state.forwarderPort) }),
      field(FIELD.dnsCustomZones, [zone]),
    );
  }

  #records(peer: Peer, withV6: boolean): readonly Uint8Array[] {
    return [peer.dnsLabel, ...peer.extraLabels].flatMap((label) =>
      (withV6 ? [peer.address, peer.address6] : [peer.address]).map((address) =>
        this.#part(peer, `record ${label} ${address}`, () =>
          encodeMessage(SimpleRecordSchema, {
            Name: fqdnOf(label, this.#state.domain),
            Type: isV6(address) ? DNS_TYPE_AAAA : DNS_TYPE_A,
            Class: "IN",
            TTL: DNS_TTL_SECONDS,
            RData: address,
          }),
        ),
      ),
    );
  }

  #remotePeer(peer: Peer, withV6: boolean): Uint8Array {
    return this.#part(peer, `peer ${withV6}`, () =>
      encodeMessage(RemotePeerConfigSchema, {
        wgPubKey: peer.key,
        // IPv4 first; one entry that cannot be parsed would cost a stock agent the whole map.
        allowedIps: withV6 ? [`${peer.address}/32`, `${peer.address6}/128`] : [`${peer.address}/32`],
        sshConfig: { sshPubKey: peer.sshPublicKey },
        fqdn: fqdnOf(peer.dnsLabel, this.#state.domain),
        agentVersion: peer.meta.netbirdVersion.slice(0, AGENT_VERSION_MAX),
      }),
    );
  }

  /** One rule per address family and port. */
  #firewallRules({ rule, peer, direction }: RuleMatch, receiver: Peer): readonly Uint8Array[] {
    const withPrefixes = hasCapability(receiver.meta, PeerCapability.PeerCapabilitySourcePrefixes);
    const addresses = receiver.ipv6Usable && peer.ipv6Usable ? [peer.address, peer.address6] : [peer.address];
    const ports = rule.ports.length > 0 ? rule.ports.map(String) : [""];
    return addresses.flatMap((address) =>
      ports.map((port) =>
        this.#part(peer, `rule ${rule.id} ${direction} ${address} ${port} ${withPrefixes}`, () =>
          encodeMessage(FirewallRuleSchema, {
            PeerIP: address,
            Direction: direction === "in" ? RuleDirection.IN : RuleDirection.OUT,
            Action: rule.action === "drop" ? RuleAction.DROP : RuleAction.ACCEPT,
            Protocol: PROTOCOL[rule.protocol],
            Port: port,
            // Without a port TCP and UDP carry an explicit range, 0-0 for every port.
            ...(port === "" &&
              (rule.protocol === "tcp" || rule.protocol === "udp") && {
                PortInfo: { portSelection: { case: "range", value: { start: 0, end: 0 } } } as const,
              }),
            PolicyID: new TextEncoder().encode(rule.id),
            sourcePrefixes: withPrefixes ? [encodeCompactPrefix(hostPrefix(address))] : [],
          }),
        ),
      ),
    );
  }

  #part(peer: Peer, name: string, make: () => Uint8Array): Uint8Array {
    let parts = this.#parts.get(peer);
    if (!parts) {
      parts = new Map();
      this.#parts.set(peer, parts);
    }
    const known = parts.get(name);
    if (known) return known;
    const made = make();
    parts.set(name, made);
    return made;
  }
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

/** A repeated message field as tag, length and content for each part; encoded messages may be appended to each other. */
function field(number: number, parts: readonly Uint8Array[]): Uint8Array[] {
  return parts.flatMap((part) => [
    new BinaryWriter().tag(number, WireType.LengthDelimited).uint32(part.length).finish() as Uint8Array,
    part,
  ]);
}

function concat(...chunks: readonly (Uint8Array | readonly Uint8Array[])[]): Uint8Array {
  return Buffer.concat(chunks.flat() as Uint8Array[]);
}
