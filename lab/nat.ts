import type { Millis } from "#base/time.ts";
import {
  foldChecksum,
  ipv4,
  isIcmpError,
  isIcmpQuery,
  onesSum,
  PROTOCOL,
  read16,
  read32,
  rewriteAddress,
  rewritePort,
  write16,
} from "./packet.ts";
import type { Random } from "./random.ts";

/** What a mapping (RFC 4787 section 4.1) or a filter (section 5) looks at of the remote side. */
export type NatDependence = "endpoint-independent" | "address-dependent" | "address-and-port-dependent";

/** Behaviour of an IPv4 NAT. All parts but `mapping` and `filtering` have defaults. */
export interface NatOptions {
  /** Which packets of one inner endpoint share an outer port. */
  readonly mapping: NatDependence;
  /** Whose packets may come in through a mapping: anybody's, or those who were sent to before. UDP; TCP is always exact. */
  readonly filtering: NatDependence;
  /** `preserve` keeps the inner port while it is free. Default: preserve with endpoint-independent mapping, else random. */
  readonly ports?: "preserve" | "random";
  /** Does a packet from inside to the NAT's own outer address come back in (RFC 4787 section 6)? Default false. */
  readonly hairpin?: boolean;
  /** How long a silent UDP mapping lives. Default 120 s, the shortest that RFC 4787 allows. */
  readonly mappingTimeoutMs?: Millis;
  /** Do packets from outside keep a mapping alive too, as on Linux? Default true. */
  readonly refreshInbound?: boolean;
}

/** The NATs that people meet, by name. */
export const NAT = {
  /** "Full cone". */
  endpointIndependent: { mapping: "endpoint-independent", filtering: "endpoint-independent" },
  /** "Address-restricted cone". */
  addressRestricted: { mapping: "endpoint-independent", filtering: "address-dependent" },
  /** "Port-restricted cone": the common home router. */
  portRestricted: { mapping: "endpoint-independent", filtering: "address-and-port-dependent" },
  /** "Symmetric": a new outer port for every remote endpoint. */
  symmetric: { mapping: "address-and-port-dependent", filtering: "address-and-port-dependent" },
} as const satisfies Record<string, NatOptions>;

/** Why a NAT does not pass a packet. */
export const NAT_DROPS = [
  "no-mapping",
  "filtered",
  "no-hairpin",
  "ports-exhausted",
  "unknown-protocol",
  "orphan-fragment",
] as const;
export type NatDrop = (typeof NAT_DROPS)[number];
/** `forward`: rewritten, goes on. `hairpin`: rewritten and turned back, its destination is inside. */
export type NatVerdict = "forward" | "hairpin" | NatDrop;

const UDP_TIMEOUT_MS: Millis = 120_000;
/** RFC 5382 REQ-5: an established connection at least 2 h 4 min. */
const TCP_TIMEOUT_MS: Millis = 7_440_000;
/** After a reset, or a FIN from both sides, the port is soon free again. */
const TCP_CLOSED_TIMEOUT_MS: Millis = 10_000;
/** RFC 5508 REQ-1. */
const ICMP_TIMEOUT_MS: Millis = 60_000;
const FRAGMENT_TIMEOUT_MS: Millis = 30_000;
const FRAGMENTS_MAX = 1024;
const LOWEST_PORT = 1024;
const RANDOM_PORT_TRIES = 64;

const FIN_INNER = 1;
const FIN_OUTER = 2;
const CLOSED = FIN_INNER | FIN_OUTER;

interface Remote {
  usedAt: Millis;
  /** TCP: which sides have said FIN; both after a reset. */
  closing: number;
}

interface Mapping {
  readonly protocol: number;
  readonly address: number;
  readonly port: number;
  readonly outerPort: number;
  /** Key in the table of inner endpoints. */
  readonly key: string;
  usedAt: Millis;
  /** Who was sent to, by `remoteKey`. */
  readonly remotes: Map<number, Remote>;
}

/** Ports, or for an echo the id in both places. */
interface Ports {
  readonly source: number;
  readonly destination: number;
}

/**
 * One IPv4 NAT: one outer address, tables of mappings, no IO and no clock. Packets are rewritten in place; with any other
 * verdict than `forward` and `hairpin` their content is of no use any more.
 *
 * UDP and ICMP echo follow the options; TCP shares the mapping behaviour and admits only those that were connected to.
 * ICMP errors are translated together with the packet they quote. A later fragment follows its first one.
 */
export class Nat {
  readonly #options: Required<NatOptions>;
  readonly #random: Random;
  #outer: number;
  readonly #byOuter = new Map<number, Mapping>();
  readonly #byInner = new Map<string, Mapping>();
  /** Outer ports from before the last `rebind`, by `outerKey`. */
  #burnt: ReadonlySet<number> = new Set();
  readonly #fragments = new Map<string, { readonly address: number; readonly until: Millis }>();

  /** `outer` is the public address (`ipv4ToNumber`). */
  constructor(options: NatOptions, outer: number, random: Random) {
    this.#options = {
      ports: options.mapping === "endpoint-independent" ? "preserve" : "random",
      hairpin: false,
      mappingTimeoutMs: UDP_TIMEOUT_MS,
      refreshInbound: true,
      ...options,
    };
    this.#outer = outer;
    this.#random = random;
  }

  get outer(): number {
    return this.#outer;
  }

  /** Mappings that have not been forgotten, expired ones included until they are met. */
  get size(): number {
    return this.#byOuter.size;
  }

  /** Forgets every mapping, as a restart does; new ones get other outer ports than before. */
  rebind(): void {
    this.#burnt = new Set(this.#byOuter.keys());
    this.#forget();
  }

  /** A new public address; the mappings of the old one are gone. */
  setOuter(outer: number): void {
    this.#outer = outer;
    this.#forget();
  }

  #forget(): void {
    this.#byOuter.clear();
    this.#byInner.clear();
    this.#fragments.clear();
  }

  /** A packet from inside to anywhere that is not inside. */
  outbound(bytes: Uint8Array, length: number, now: Millis): NatVerdict {
    const verdict = this.#translateOut(bytes, length, now);
    if (verdict !== "forward" || ipv4.destination(bytes) !== this.#outer) return verdict;
    if (!this.#options.hairpin) return "no-hairpin";
    const back = this.inbound(bytes, length, now);
    return back === "forward" ? "hairpin" : back;
  }

  #translateOut(bytes: Uint8Array, length: number, now: Millis): NatVerdict {
    if (ipv4.fragmentOffset(bytes) !== 0) return this.#laterFragment(bytes, length, "source", now);
    const protocol = ipv4.protocol(bytes);
    if (isError(bytes, length)) return this.#errorOut(bytes, length, now);
    const ports = readPorts(bytes, length, 0);
    if (!ports) return "unknown-protocol";
    const remote = ipv4.destination(bytes);
    const mapping = this.#mapOut(protocol, ipv4.source(bytes), ports.source, remote, ports.destination, now);
    if (!mapping) return "ports-exhausted";
    mapping.usedAt = now;
    const filter = this.#remoteKey(protocol, remote, ports.destination);
    const known = mapping.remotes.get(filter);
    const entry = known ?? { usedAt: now, closing: 0 };
    if (!known) mapping.remotes.set(filter, entry);
    entry.usedAt = now;
    if (protocol === PROTOCOL.tcp) noteTcpFlags(entry, bytes, length, FIN_INNER);
    this.#rememberFragment(bytes, this.#outer, now);
    rewriteAddress(bytes, length, "source", this.#outer);
    rewritePort(bytes, length, "source", mapping.outerPort);
    return "forward";
  }

  /** A packet from outside to the outer address. */
  inbound(bytes: Uint8Array, length: number, now: Millis): "forward" | NatDrop {
    if (ipv4.fragmentOffset(bytes) !== 0) return this.#laterFragment(bytes, length, "destination", now);
    const protocol = ipv4.protocol(bytes);
    if (isError(bytes, length)) return this.#errorIn(bytes, length, now);
    const ports = readPorts(bytes, length, 0);
    if (!ports) return "unknown-protocol";
    const mapping = this.#live(this.#byOuter.get(outerKey(protocol, ports.destination)), now);
    if (!mapping) return "no-mapping";
    const remote = mapping.remotes.get(this.#remoteKey(protocol, ipv4.source(bytes), ports.source));
    const admitted = remote !== undefined && now - remote.usedAt < this.#timeout(protocol, remote);
    if (!admitted && (protocol !== PROTOCOL.udp || this.#options.filtering !== "endpoint-independent"))
      return "filtered";
    if (this.#options.refreshInbound) {
      mapping.usedAt = now;
      if (remote) remote.usedAt = now;
    }
    if (remote && protocol === PROTOCOL.tcp) noteTcpFlags(remote, bytes, length, FIN_OUTER);
    this.#rememberFragment(bytes, mapping.address, now);
    rewriteAddress(bytes, length, "destination", mapping.address);
    rewritePort(bytes, length, "destination", mapping.port);
    return "forward";
  }

  #mapOut(
    protocol: number,
    address: number,
    port: number,
    remote: number,
    remotePort: number,
    now: Millis,
  ): Mapping | undefined {
    const key = this.#innerKey(protocol, address, port, remote, remotePort);
    const known = this.#live(this.#byInner.get(key), now);
    if (known) return known;
    const outerPort = this.#freePort(protocol, port, now);
    if (outerPort === undefined) return undefined;
    const mapping: Mapping = { protocol, address, port, outerPort, key, usedAt: now, remotes: new Map() };
    this.#byInner.set(key, mapping);
    this.#byOuter.set(outerKey(protocol, outerPort), mapping);
    return mapping;
  }

  #freePort(protocol: number, wanted: number, now: Millis): number | undefined {
    const isFree = (port: number): boolean => {
      const key = outerKey(protocol, port);
      return !this.#burnt.has(key) && !this.#live(this.#byOuter.get(key), now);
    };
    if (this.#options.ports === "preserve" && isFree(wanted)) return wanted;
    const range = 0x10000 - LOWEST_PORT;
    const start = LOWEST_PORT + Math.floor(this.#random() * range);
    for (let i = 0; i < RANDOM_PORT_TRIES; i++) {
      const port = LOWEST_PORT + Math.floor(this.#random() * range);
      if (isFree(port)) return port;
    }
    for (let i = 0; i < range; i++) {
      const port = LOWEST_PORT + ((start - LOWEST_PORT + i) % range);
      if (isFree(port)) return port;
    }
    return undefined;
  }

  /** The mapping if it still lives; an expired one is taken out of the tables. */
  #live(mapping: Mapping | undefined, now: Millis): Mapping | undefined {
    if (!mapping || now - mapping.usedAt < this.#mappingTimeout(mapping)) return mapping;
    this.#byInner.delete(mapping.key);
    this.#byOuter.delete(outerKey(mapping.protocol, mapping.outerPort));
    return undefined;
  }

  #mappingTimeout(mapping: Mapping): Millis {
    if (mapping.protocol !== PROTOCOL.tcp) return this.#timeout(mapping.protocol, undefined);
    let longest = 0;
    for (const remote of mapping.remotes.values()) longest = Math.max(longest, this.#timeout(mapping.protocol, remote));
    return longest;
  }

  #timeout(protocol: number, remote: Remote | undefined): Millis {
    if (protocol === PROTOCOL.udp) return this.#options.mappingTimeoutMs;
    if (protocol === PROTOCOL.icmp) return ICMP_TIMEOUT_MS;
    return remote?.closing === CLOSED ? TCP_CLOSED_TIMEOUT_MS : TCP_TIMEOUT_MS;
  }

  /** An echo has one mapping for each id: there is no remote port to tell apart (RFC 5508 section 3). */
  #innerKey(protocol: number, address: number, port: number, remote: number, remotePort: number): string {
    const inner = `${protocol}:${address}:${port}`;
    if (protocol === PROTOCOL.icmp || this.#options.mapping === "endpoint-independent") return inner;
    return this.#options.mapping === "address-dependent" ? `${inner}>${remote}` : `${inner}>${remote}:${remotePort}`;
  }

  #remoteKey(protocol: number, address: number, port: number): number {
    const isExact =
      protocol === PROTOCOL.tcp ||
      (protocol === PROTOCOL.udp && this.#options.filtering === "address-and-port-dependent");
    return isExact ? address * 0x10000 + port : address * 0x10000;
  }

  /** An error from outside about a packet that went out: the quote carries the outer source. */
  #errorIn(bytes: Uint8Array, length: number, now: Millis): "forward" | NatDrop {
    const quote = quoteOffset(bytes);
    const ports = readPorts(bytes, length, quote);
    if (!ports || read32(bytes, quote + 12) !== this.#outer) return "no-mapping";
    const protocol = bytes[quote + 9]!;
    const mapping = this.#live(this.#byOuter.get(outerKey(protocol, ports.source)), now);
    if (!mapping) return "no-mapping";
    if (!mapping.remotes.has(this.#remoteKey(protocol, read32(bytes, quote + 16), ports.destination)))
      return "filtered";
    this.#rewriteQuote(bytes, length, quote, "source", mapping.address, mapping.port);
    rewriteAddress(bytes, length, "destination", mapping.address);
    return "forward";
  }

  /** An error from inside about a packet that came in: the quote carries the inner destination. */
  #errorOut(bytes: Uint8Array, length: number, now: Millis): NatVerdict {
    const quote = quoteOffset(bytes);
    const ports = readPorts(bytes, length, quote);
    if (!ports) return "no-mapping";
    const protocol = bytes[quote + 9]!;
    const [remote, inner] = [read32(bytes, quote + 12), read32(bytes, quote + 16)];
    const key = this.#innerKey(protocol, inner, ports.destination, remote, ports.source);
    const mapping = this.#live(this.#byInner.get(key), now);
    if (!mapping) return "no-mapping";
    this.#rewriteQuote(bytes, length, quote, "destination", this.#outer, mapping.outerPort);
    rewriteAddress(bytes, length, "source", this.#outer);
    return "forward";
  }

  /** Changes one end of the quoted packet; the ICMP checksum covers the quote and is made anew, errors being rare. */
  #rewriteQuote(
    bytes: Uint8Array,
    length: number,
    quote: number,
    side: "source" | "destination",
    address: number,
    port: number,
  ): void {
    const icmp = ipv4.headerBytes(bytes);
    rewriteAddress(bytes, length, side, address, quote);
    rewritePort(bytes, length, side, port, quote);
    write16(bytes, icmp + 2, 0);
    write16(bytes, icmp + 2, foldChecksum(onesSum(bytes, icmp, length)));
  }

  #rememberFragment(bytes: Uint8Array, address: number, now: Millis): void {
    if (!ipv4.moreFragments(bytes)) return;
    if (this.#fragments.size >= FRAGMENTS_MAX) this.#fragments.clear();
    this.#fragments.set(fragmentKey(bytes), { address, until: now + FRAGMENT_TIMEOUT_MS });
  }

  #laterFragment(
    bytes: Uint8Array,
    length: number,
    side: "source" | "destination",
    now: Millis,
  ): "forward" | "orphan-fragment" {
    const first = this.#fragments.get(fragmentKey(bytes));
    if (!first || first.until < now) return "orphan-fragment";
    rewriteAddress(bytes, length, side, first.address);
    return "forward";
  }
}

function outerKey(protocol: number, port: number): number {
  return protocol * 0x10000 + port;
}

function fragmentKey(bytes: Uint8Array): string {
  return `${ipv4.source(bytes)}>${ipv4.destination(bytes)}:${ipv4.id(bytes)}:${ipv4.protocol(bytes)}`;
}

function isError(bytes: Uint8Array, length: number): boolean {
  const icmp = ipv4.headerBytes(bytes);
  return ipv4.protocol(bytes) === PROTOCOL.icmp && icmp + 28 <= length && isIcmpError(bytes[icmp]!);
}

function quoteOffset(bytes: Uint8Array): number {
  return ipv4.headerBytes(bytes) + 8;
}

/** Ports of the packet at `ip`; an echo's id stands for both. Undefined for what a NAT cannot tell apart. */
function readPorts(bytes: Uint8Array, length: number, ip: number): Ports | undefined {
  if (ip + 20 > length) return undefined;
  const transport = ip + (bytes[ip]! & 0x0f) * 4;
  if (transport + 8 > length) return undefined;
  const protocol = bytes[ip + 9];
  if (protocol === PROTOCOL.udp || protocol === PROTOCOL.tcp) {
    return { source: read16(bytes, transport), destination: read16(bytes, transport + 2) };
  }
  if (protocol !== PROTOCOL.icmp || !isIcmpQuery(bytes[transport]!)) return undefined;
  const id = read16(bytes, transport + 4);
  return { source: id, destination: id };
}

function noteTcpFlags(remote: Remote, bytes: Uint8Array, length: number, fin: number): void {
  const at = ipv4.headerBytes(bytes) + 13;
  if (at >= length) return;
  const flags = bytes[at]!;
  if (flags & 0x04) remote.closing = CLOSED;
  else if (flags & 0x02) remote.closing = 0;
  else if (flags & 0x01) remote.closing |= fin;
}
