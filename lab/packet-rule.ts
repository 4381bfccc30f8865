import { ipToBytes } from "#base/ip.ts";
import type { Packet } from "./flight.ts";
import { addressKey6, ipv4, ipv4ToNumber, ipv6, PROTOCOL, protocolOf, transportOffset } from "./packet.ts";
import type { HostPlan, Site } from "./topology.ts";

/** Names packets that are to be lost, one by one: "the first handshake message". All given parts must match. */
export interface PacketRuleSpec {
  /** Name of the sending host. */
  readonly from?: string;
  /** Name of the host the packet is for; behind a NAT every host of the site. */
  readonly to?: string;
  readonly protocol?: "udp" | "tcp" | "icmp";
  /** Bytes of the UDP payload. */
  readonly payloadBytes?: number;
  /** First bytes of the UDP payload, such as `[1, 0, 0, 0]` for a WireGuard initiation. */
  readonly payloadStart?: readonly number[];
  /** How many matching packets are lost before the rule is gone. Default 1. */
  readonly count?: number;
}

const UDP_HEADER_BYTES = 8;

/** Matches packets as the sending host's kernel gave them out, before any NAT. */
export class PacketRule {
  readonly #spec: PacketRuleSpec;
  readonly #from: number;
  readonly #to4: number | undefined;
  readonly #to6: string | undefined;
  #left: number;

  constructor(spec: PacketRuleSpec, hosts: readonly HostPlan[], sites: readonly Site[]) {
    this.#spec = spec;
    this.#left = spec.count ?? 1;
    this.#from = hosts.findIndex((host) => host.name === spec.from);
    const to = hosts.find((host) => host.name === spec.to);
    if (!to) return;
    const site = sites.find((candidate) => candidate.name === to.site);
    this.#to4 = ipv4ToNumber(site?.publicAddress ?? to.address);
    this.#to6 = to.address6 && addressKey6(ipToBytes(to.address6), 0);
  }

  get isUsedUp(): boolean {
    return this.#left <= 0;
  }

  /** Counts the packet when it matches. */
  matches(packet: Packet, version: 4 | 6): boolean {
    if (this.isUsedUp || !this.#describes(packet, version)) return false;
    this.#left--;
    return true;
  }

  #describes({ bytes, length, from }: Packet, version: 4 | 6): boolean {
    const spec = this.#spec;
    if (spec.from !== undefined && from !== this.#from) return false;
    if (spec.to !== undefined) {
      const isTo = version === 4 ? ipv4.destination(bytes) === this.#to4 : ipv6.destination(bytes) === this.#to6;
      if (!isTo) return false;
    }
    const protocol = protocolOf(bytes, version);
    if (spec.protocol !== undefined && !protocolsOf(spec.protocol).includes(protocol)) return false;
    if (spec.payloadBytes === undefined && spec.payloadStart === undefined) return true;
    if (protocol !== PROTOCOL.udp) return false;
    const payload = transportOffset(bytes, version) + UDP_HEADER_BYTES;
    if (spec.payloadBytes !== undefined && length - payload !== spec.payloadBytes) return false;
    return (spec.payloadStart ?? []).every(
      (byte, index) => payload + index < length && bytes[payload + index] === byte,
    );
  }
}

function protocolsOf(name: "udp" | "tcp" | "icmp"): readonly number[] {
  switch (name) {
    case "udp":
      return [PROTOCOL.udp];
    case "tcp":
      return [PROTOCOL.tcp];
    case "icmp":
      return [PROTOCOL.icmp, PROTOCOL.icmp6];
  }
}
