import { type IpAddress, ipToBytes } from "#base/ip.ts";
import type { Millis } from "#base/time.ts";
import { Flight, type Packet, PacketPool } from "./flight.ts";
import { Link, type LinkCounters, type LinkOptions } from "./link.ts";
import { NAT_DROPS, Nat, type NatOptions } from "./nat.ts";
import {
  addressKey6,
  decrementHops,
  encodeIcmpError,
  type IcmpReason,
  ipVersion,
  ipv4,
  ipv4ToNumber,
  ipv6,
  mayAnswerWithIcmp,
  PROTOCOL,
  protocolOf,
} from "./packet.ts";
import { PacketRule, type PacketRuleSpec } from "./packet-rule.ts";
import { createRandom, type Random } from "./random.ts";
import { addressIn, type HostPlan, type ResolvedTopology, type Site } from "./topology.ts";

/** Packets that may be under way at once in the whole lab; more are dropped and counted. */
export const FLIGHT_MAX_PACKETS = 65_536;
/** Room behind the largest packet, so that an ICMP error always fits. */
const SPARE_BYTES = 128;

/** Why the network, apart from links, did not deliver a packet. */
export const NETWORK_DROPS = [
  ...NAT_DROPS,
  "malformed",
  "foreign-source",
  "no-route",
  "hops-exceeded",
  "too-big",
  "udp-blocked",
  "flight-full",
  "rule",
] as const;
export type NetworkDrop = (typeof NETWORK_DROPS)[number];

/** What passed from one host to another, counted at delivery. */
export interface PairCounters {
  packets: number;
  bytes: number;
  udpPackets: number;
}

export interface NetworkCounters {
  /** By site name. */
  readonly sites: Readonly<
    Record<string, { readonly up: LinkCounters; readonly down: LinkCounters; readonly natMappings: number }>
  >;
  readonly drops: Readonly<Record<NetworkDrop, number>>;
  /** `pairs[from][to]`, host names; a pair that never talked is absent. */
  readonly pairs: Readonly<Record<string, Readonly<Record<string, PairCounters>>>>;
}

/** Where packets leave the network, and who watches. Buffers are the network's and valid until the call returns. */
export interface NetworkPort {
  deliver(host: number, bytes: Uint8Array, length: number): void;
  /** A packet at a site's outer edge: leaving before the link takes it, or come in before the NAT changes it. */
  seenAtSite(site: number, bytes: Uint8Array, length: number, now: Millis): void;
}

interface SiteState {
  readonly index: number;
  plan: Site;
  nat: Nat | undefined;
  readonly up: Link;
  readonly down: Link;
  udp: "pass" | "blocked";
  /** Hosts of the LAN by IPv4 number and by IPv6 key. */
  readonly hosts4: Map<number, number>;
  readonly hosts6: Map<string, number>;
  /** The site's router, as it signs ICMP errors. */
  readonly router4: Uint8Array;
  readonly router6: Uint8Array;
}

/**
 * The internet of a topology: packets of hosts go in, packets to hosts come out when their time has come. No IO, no clock:
 * the caller passes `now`, calls `advance` when `nextDue` has come, and owns neither side's timers.
 *
 * A packet's way: host -> LAN or edge (hop count, size, UDP block, NAT) -> link up -> core (route) -> link down -> edge
 * (UDP block, NAT, hop count) -> host.
 */
export class Network {
  readonly #port: NetworkPort;
  readonly #random: Random;
  readonly #sites: SiteState[];
  readonly #hosts: HostPlan[];
  readonly #siteOfHost: number[] = [];
  readonly #pool: PacketPool;
  readonly #flight = new Flight();
  /** Public IPv4 address to site, public IPv6 address to site. */
  readonly #routes4 = new Map<number, number>();
  readonly #routes6 = new Map<string, number>();
  readonly #drops = Object.fromEntries(NETWORK_DROPS.map((drop) => [drop, 0])) as Record<NetworkDrop, number>;
  readonly #pairs = new Map<number, PairCounters>();
  #rules: PacketRule[] = [];

  constructor(topology: ResolvedTopology, port: NetworkPort) {
    this.#port = port;
    this.#random = createRandom(topology.seed);
    this.#hosts = [...topology.hosts];
    this.#pool = new PacketPool(
      Math.max(...topology.sites.map((site) => site.mtu), 0) + SPARE_BYTES,
      FLIGHT_MAX_PACKETS,
    );
    this.#sites = topology.sites.map((plan, index) => ({
      index,
      plan,
      nat: undefined,
      up: new Link(plan.link, this.#random),
      down: new Link(plan.link, this.#random),
      udp: plan.udp,
      hosts4: new Map(),
      hosts6: new Map(),
      router4: ipToBytes(plan.publicAddress ?? addressIn(plan.lan, 1)),
      router6: plan.lan6 ? ipToBytes(addressIn(plan.lan6, 1)) : new Uint8Array(16),
    }));
    for (const site of this.#sites) this.#installNat(site, site.plan.nat);
    this.#hosts.forEach((host, index) => {
      this.#siteOfHost.push(this.#sites.findIndex((site) => site.plan.name === host.site));
      this.#attach(index);
    });
  }

  /** A buffer to read a packet of a host into; undefined while too many are under way. Give it to `receive` or `putBack`. */
  take(): Packet | undefined {
    const packet = this.#pool.take();
    if (!packet) this.#drops["flight-full"]++;
    return packet;
  }

  putBack(packet: Packet): void {
    this.#pool.give(packet);
  }

  /** When `advance` has something to do next. */
  nextDue(): Millis | undefined {
    return this.#flight.nextDue();
  }

  /** Takes over a packet that a host has sent. */
  receive(host: number, packet: Packet, now: Millis): void {
    const { bytes, length } = packet;
    const version = ipVersion(bytes, length);
    const site = this.#sites[this.#siteOfHost[host]!]!;
    packet.from = host;
    packet.site = site.index;
    if (version === 0) return this.#drop(packet, "malformed");
    if (this.#isHeldByRule(packet, version)) return this.#drop(packet, "rule");
    if (version === 4 ? isGroup4(bytes, site.plan.lan.bits) : bytes[24] === 0xff)
      return this.#flood(packet, site, host);
    const own = version === 4 ? site.hosts4.get(ipv4.source(bytes)) : site.hosts6.get(ipv6.source(bytes));
    if (own !== host) return this.#drop(packet, "foreign-source");
    const neighbour = lanHost(site, bytes, version);
    if (neighbour !== undefined) return this.#deliver(neighbour, packet, version);
    this.#leaveSite(site, packet, version, now);
  }

  /** Moves everything on that is due by `now`. */
  advance(now: Millis): void {
    for (;;) {
      const packet = this.#flight.take(now);
      if (!packet) return;
      const site = this.#sites[packet.site]!;
      if (packet.leg === "to-core") {
        if (!site.up.arrives()) this.#pool.give(packet);
        else this.#route(packet, packet.due);
      } else if (site.down.arrives()) this.#enterSite(site, packet, packet.due);
      else this.#pool.give(packet);
    }
  }

  #leaveSite(site: SiteState, packet: Packet, version: 4 | 6, now: Millis): void {
    const { bytes, length } = packet;
    if (isPrivateGarbage(bytes, version)) return this.#drop(packet, "no-route");
    if (!decrementHops(bytes, version)) return this.#refuse(packet, version, site, { kind: "hops-exceeded" }, now);
    if (length > site.plan.linkMtu)
      return this.#refuse(packet, version, site, { kind: "too-big", mtu: site.plan.linkMtu }, now);
    if (site.udp === "blocked" && protocolOf(bytes, version) === PROTOCOL.udp) return this.#drop(packet, "udp-blocked");
    if (version === 4 && site.nat) {
      const verdict = site.nat.outbound(bytes, length, now);
      if (verdict === "hairpin") return this.#deliverInside(site, packet, version);
      if (verdict !== "forward") return this.#drop(packet, verdict);
    }
    this.#port.seenAtSite(site.index, bytes, length, now);
    this.#enterLink(site.up, "to-core", site.index, packet, now);
  }

  #route(packet: Packet, now: Millis): void {
    const { bytes } = packet;
    const version = ipVersion(bytes, packet.length) as 4 | 6;
    const index =
      version === 4 ? this.#routes4.get(ipv4.destination(bytes)) : this.#routes6.get(ipv6.destination(bytes));
    const site = index === undefined ? undefined : this.#sites[index]!;
    const from = this.#sites[packet.site]!;
    if (!site) return this.#refuseAtCore(packet, version, from, { kind: "unreachable" }, now);
    if (packet.length > site.plan.linkMtu)
      return this.#refuseAtCore(packet, version, from, { kind: "too-big", mtu: site.plan.linkMtu }, now);
    this.#enterLink(site.down, "to-site", site.index, packet, now);
  }

  #enterSite(site: SiteState, packet: Packet, now: Millis): void {
    const { bytes, length } = packet;
    const version = ipVersion(bytes, length) as 4 | 6;
    this.#port.seenAtSite(site.index, bytes, length, now);
    if (site.udp === "blocked" && protocolOf(bytes, version) === PROTOCOL.udp) return this.#drop(packet, "udp-blocked");
    if (version === 4 && site.nat) {
      const verdict = site.nat.inbound(bytes, length, now);
      if (verdict !== "forward") return this.#drop(packet, verdict);
    }
    if (!decrementHops(bytes, version)) return this.#drop(packet, "hops-exceeded");
    this.#deliverInside(site, packet, version);
  }

  #deliverInside(site: SiteState, packet: Packet, version: 4 | 6): void {
    const host = lanHost(site, packet.bytes, version);
    if (host === undefined) return this.#drop(packet, "no-route");
    this.#deliver(host, packet, version);
  }

  #deliver(host: number, packet: Packet, version: 4 | 6): void {
    if (packet.from >= 0) this.#countPair(packet.from, host, packet, version);
    this.#port.deliver(host, packet.bytes, packet.length);
    this.#pool.give(packet);
  }

  #flood(packet: Packet, site: SiteState, from: number): void {
    for (const host of site.hosts4.values()) {
      if (host !== from) this.#port.deliver(host, packet.bytes, packet.length);
    }
    this.#pool.give(packet);
  }

  #enterLink(link: Link, leg: Packet["leg"], site: number, packet: Packet, now: Millis): void {
    const due = link.admit(packet.length, now);
    if (due === undefined) return this.#pool.give(packet);
    packet.leg = leg;
    packet.site = site;
    this.#flight.add(packet, due);
    if (!link.wantDuplicate()) return;
    const twin = this.take();
    if (!twin) return;
    twin.bytes.set(packet.bytes.subarray(0, packet.length));
    Object.assign(twin, { length: packet.length, from: packet.from, leg, site });
    this.#flight.add(twin, due);
  }

  /** Answers from the site's router, straight back into the LAN. */
  #refuse(packet: Packet, version: 4 | 6, site: SiteState, reason: IcmpReason, _now: Millis): void {
    if (isDroppedForSize(packet, version, reason)) return this.#drop(packet, "too-big");
    const answer = this.#icmpError(packet, version, site, reason);
    this.#drop(packet, dropOf(reason));
    if (answer) this.#deliverInside(site, answer, version);
  }

  /** Answers from the core, over the link that the packet came in by. */
  #refuseAtCore(packet: Packet, version: 4 | 6, site: SiteState, reason: IcmpReason, now: Millis): void {
    if (isDroppedForSize(packet, version, reason)) return this.#drop(packet, "too-big");
    const answer = this.#icmpError(packet, version, site, reason);
    this.#drop(packet, dropOf(reason));
    if (answer) this.#enterLink(site.down, "to-site", site.index, answer, now);
  }

  #icmpError(packet: Packet, version: 4 | 6, site: SiteState, reason: IcmpReason): Packet | undefined {
    if (!mayAnswerWithIcmp(packet.bytes, packet.length, version)) return undefined;
    const answer = this.take();
    if (!answer) return undefined;
    const source = version === 4 ? site.router4 : site.router6;
    answer.length = encodeIcmpError(answer.bytes, packet.bytes, packet.length, version, source, reason);
    answer.from = -1;
    return answer;
  }

  #drop(packet: Packet, reason: NetworkDrop): void {
    this.#drops[reason]++;
    this.#pool.give(packet);
  }

  #isHeldByRule(packet: Packet, version: 4 | 6): boolean {
    if (this.#rules.length === 0) return false;
    const rule = this.#rules.find((candidate) => candidate.matches(packet, version));
    if (rule?.isUsedUp) this.#rules = this.#rules.filter((other) => other !== rule);
    return rule !== undefined;
  }

  #countPair(from: number, to: number, packet: Packet, version: 4 | 6): void {
    const key = from * 0x10000 + to;
    let pair = this.#pairs.get(key);
    if (!pair) {
      pair = { packets: 0, bytes: 0, udpPackets: 0 };
      this.#pairs.set(key, pair);
    }
    pair.packets++;
    pair.bytes += packet.length;
    if (protocolOf(packet.bytes, version) === PROTOCOL.udp) pair.udpPackets++;
  }

  // -- control: each call takes effect for the next packet --------------------------------------------------------

  cutSite(site: number, isCut: boolean): void {
    for (const link of [this.#sites[site]!.up, this.#sites[site]!.down]) {
      if (isCut) link.cut();
      else link.restore();
    }
  }

  changeLink(site: number, direction: "up" | "down" | "both", options: LinkOptions): void {
    if (direction !== "down") this.#sites[site]!.up.change(options);
    if (direction !== "up") this.#sites[site]!.down.change(options);
  }

  setUdp(site: number, udp: "pass" | "blocked"): void {
    this.#sites[site]!.udp = udp;
  }

  /** Another kind of NAT at the same outer address; its mappings start empty. Only for sites that have a NAT. */
  setNat(site: number, nat: NatOptions): void {
    this.#installNat(this.#sites[site]!, nat);
  }

  rebindNat(site: number): void {
    this.#sites[site]!.nat?.rebind();
  }

  setPublicAddress(site: number, address: IpAddress): void {
    const state = this.#sites[site]!;
    if (!state.nat) return;
    this.#routes4.delete(state.nat.outer);
    state.nat.setOuter(ipv4ToNumber(address));
    this.#routes4.set(state.nat.outer, site);
    state.router4.set(ipToBytes(address));
    state.plan = { ...state.plan, publicAddress: address };
  }

  /** Gives a host other addresses, maybe in another site. Packets to the old ones find nobody. */
  placeHost(host: number, plan: HostPlan): void {
    this.#detach(host);
    this.#hosts[host] = plan;
    this.#siteOfHost[host] = this.#sites.findIndex((site) => site.plan.name === plan.site);
    this.#attach(host);
  }

  addRule(spec: PacketRuleSpec): void {
    this.#rules.push(
      new PacketRule(
        spec,
        this.#hosts,
        this.#sites.map((site) => site.plan),
      ),
    );
  }

  counters(): NetworkCounters {
    const pairs: Record<string, Record<string, PairCounters>> = {};
    for (const [key, pair] of this.#pairs) {
      const from = this.#hosts[Math.floor(key / 0x10000)]!.name;
      pairs[from] ??= {};
      pairs[from][this.#hosts[key % 0x10000]!.name] = { ...pair };
    }
    const sites = this.#sites.map((site) => [
      site.plan.name,
      { up: { ...site.up.counters }, down: { ...site.down.counters }, natMappings: site.nat?.size ?? 0 },
    ]);
    return { sites: Object.fromEntries(sites), drops: { ...this.#drops }, pairs };
  }

  #installNat(site: SiteState, nat: NatOptions | undefined): void {
    const { publicAddress } = site.plan;
    if (!nat || !publicAddress) return;
    const outer = ipv4ToNumber(publicAddress);
    site.nat = new Nat(nat, outer, this.#random);
    this.#routes4.set(outer, site.index);
  }

  #attach(host: number): void {
    const { address, address6 } = this.#hosts[host]!;
    const site = this.#sites[this.#siteOfHost[host]!]!;
    site.hosts4.set(ipv4ToNumber(address), host);
    if (!site.nat) this.#routes4.set(ipv4ToNumber(address), site.index);
    if (!address6) return;
    const key = addressKey6(ipToBytes(address6), 0);
    site.hosts6.set(key, host);
    this.#routes6.set(key, site.index);
  }

  #detach(host: number): void {
    const { address, address6 } = this.#hosts[host]!;
    const site = this.#sites[this.#siteOfHost[host]!]!;
    site.hosts4.delete(ipv4ToNumber(address));
    if (!site.nat) this.#routes4.delete(ipv4ToNumber(address));
    if (!address6) return;
    const key = addressKey6(ipToBytes(address6), 0);
    site.hosts6.delete(key);
    this.#routes6.delete(key);
  }
}

function lanHost(site: SiteState, bytes: Uint8Array, version: 4 | 6): number | undefined {
  return version === 4 ? site.hosts4.get(ipv4.destination(bytes)) : site.hosts6.get(ipv6.destination(bytes));
}

/** Multicast, or the broadcast address of the LAN or of all. */
function isGroup4(bytes: Uint8Array, lanBits: number): boolean {
  const destination = ipv4.destination(bytes);
  if (destination >= 0xe0000000) return true;
  const hostMask = 2 ** (32 - lanBits) - 1;
  const isSameNet = Math.floor(destination / (hostMask + 1)) === Math.floor(ipv4.source(bytes) / (hostMask + 1));
  return isSameNet && (destination & hostMask) >>> 0 === hostMask;
}

/** Destinations that no provider carries: private, shared and link-local ranges. They vanish without an answer. */
function isPrivateGarbage(bytes: Uint8Array, version: 4 | 6): boolean {
  if (version === 6) return (bytes[24]! & 0xfe) === 0xfc || (bytes[24] === 0xfe && (bytes[25]! & 0xc0) === 0x80);
  const [first, second] = [bytes[16]!, bytes[17]!];
  if (first === 10 || first === 127 || first === 0) return true;
  if (first === 172) return second >= 16 && second < 32;
  if (first === 100) return second >= 64 && second < 128;
  return (first === 192 && second === 168) || (first === 169 && second === 254);
}

/** A too large IPv4 packet that may be cut: no router of the lab does that, so it is lost as behind a broken one. */
function isDroppedForSize(packet: Packet, version: 4 | 6, reason: IcmpReason): boolean {
  return reason.kind === "too-big" && version === 4 && !ipv4.dontFragment(packet.bytes);
}

function dropOf(reason: IcmpReason): NetworkDrop {
  return reason.kind === "unreachable" ? "no-route" : reason.kind;
}
