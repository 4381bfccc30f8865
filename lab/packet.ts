/**
 * IPv4, IPv6, UDP, TCP and ICMP as far as a router and a NAT read and rewrite them, in place and without allocation.
 *
 * ```
 * IPv4  0 version, IHL | 2 total length | 4 id | 6 flags, fragment | 8 TTL | 9 protocol | 10 checksum | 12 source | 16 destination
 * IPv6  0 version | 4 payload length | 6 next header | 7 hop limit | 8 source | 24 destination
 * UDP   0 source port | 2 destination port | 4 length | 6 checksum
 * TCP   0 source port | 2 destination port | 13 flags | 16 checksum
 * ICMP  0 type | 1 code | 2 checksum | 4 id (echo) | 8 quoted packet (errors)
 * ```
 *
 * Functions take a buffer and the length of the packet at its start; what lies behind is not theirs.
 */
export const PROTOCOL = { icmp: 1, tcp: 6, udp: 17, icmp6: 58 } as const;

const IPV4_HEADER_BYTES = 20;
const IPV6_HEADER_BYTES = 40;
const ICMP_HEADER_BYTES = 8;
/** Largest ICMP error made here (RFC 1812 section 4.3.2.3 for IPv4; IPv6 may go up to 1280, less is allowed). */
const ICMP_ERROR_MAX_BYTES = 576;

const IPV4 = { length: 2, id: 4, fragment: 6, ttl: 8, protocol: 9, checksum: 10, source: 12, destination: 16 } as const;
const IPV6 = { payloadLength: 4, nextHeader: 6, hopLimit: 7, source: 8, destination: 24 } as const;

export function read16(bytes: Uint8Array, at: number): number {
  return (bytes[at]! << 8) | bytes[at + 1]!;
}

export function read32(bytes: Uint8Array, at: number): number {
  return ((bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!) >>> 0;
}

export function write16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8;
  bytes[at + 1] = value & 0xff;
}

export function write32(bytes: Uint8Array, at: number, value: number): void {
  write16(bytes, at, value >>> 16);
  write16(bytes, at + 2, value & 0xffff);
}

/** An IPv4 address as a number. The text must be a valid address. */
export function ipv4ToNumber(text: string): number {
  return text.split(".").reduce((value, part) => value * 256 + Number(part), 0);
}

export function ipv4ToText(value: number): string {
  return `${value >>> 24}.${(value >>> 16) & 0xff}.${(value >>> 8) & 0xff}.${value & 0xff}`;
}

/** 4, 6, or 0 for what is neither or shorter than its own header says. */
export function ipVersion(bytes: Uint8Array, length: number): 4 | 6 | 0 {
  if (length < IPV4_HEADER_BYTES) return 0;
  const version = bytes[0]! >>> 4;
  if (version === 4) {
    const header = (bytes[0]! & 0x0f) * 4;
    const total = read16(bytes, IPV4.length);
    return header >= IPV4_HEADER_BYTES && total >= header && total <= length ? 4 : 0;
  }
  if (version === 6 && length >= IPV6_HEADER_BYTES) {
    return IPV6_HEADER_BYTES + read16(bytes, IPV6.payloadLength) <= length ? 6 : 0;
  }
  return 0;
}

export const ipv4 = {
  headerBytes: (bytes: Uint8Array): number => (bytes[0]! & 0x0f) * 4,
  id: (bytes: Uint8Array): number => read16(bytes, IPV4.id),
  /** In units of 8 bytes; not zero means that there is no transport header here. */
  fragmentOffset: (bytes: Uint8Array): number => read16(bytes, IPV4.fragment) & 0x1fff,
  moreFragments: (bytes: Uint8Array): boolean => (bytes[IPV4.fragment]! & 0x20) !== 0,
  dontFragment: (bytes: Uint8Array): boolean => (bytes[IPV4.fragment]! & 0x40) !== 0,
  protocol: (bytes: Uint8Array): number => bytes[IPV4.protocol]!,
  source: (bytes: Uint8Array): number => read32(bytes, IPV4.source),
  destination: (bytes: Uint8Array): number => read32(bytes, IPV4.destination),
} as const;

export const ipv6 = {
  nextHeader: (bytes: Uint8Array): number => bytes[IPV6.nextHeader]!,
  /** 16 bytes as a binary string: a key for maps, equal exactly for equal addresses. */
  source: (bytes: Uint8Array): string => addressKey6(bytes, IPV6.source),
  destination: (bytes: Uint8Array): string => addressKey6(bytes, IPV6.destination),
} as const;

/** The key of the 16 bytes at `at`, as `ipv6.source` gives it. */
export function addressKey6(bytes: Uint8Array, at: number): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset + at, 16).toString("latin1");
}

/** Protocol number of either version. IPv6 extension headers are not walked: hosts of the lab send none but hop-by-hop. */
export function protocolOf(bytes: Uint8Array, version: 4 | 6): number {
  return version === 4 ? ipv4.protocol(bytes) : ipv6.nextHeader(bytes);
}

export function transportOffset(bytes: Uint8Array, version: 4 | 6): number {
  return version === 4 ? ipv4.headerBytes(bytes) : IPV6_HEADER_BYTES;
}

/** One's complement sum over `bytes[from, to)`, added to `sum`; not folded. */
export function onesSum(bytes: Uint8Array, from: number, to: number, sum = 0): number {
  let total = sum;
  let at = from;
  for (; at + 1 < to; at += 2) total += (bytes[at]! << 8) | bytes[at + 1]!;
  if (at < to) total += bytes[at]! << 8;
  return total;
}

/** Folds a sum to the 16 bits that go into a checksum field. */
export function foldChecksum(sum: number): number {
  let folded = sum;
  while (folded > 0xffff) folded = (folded & 0xffff) + Math.floor(folded / 0x10000);
  return ~folded & 0xffff;
}

/** Changes the checksum at `at` as the replacement of one 16-bit word asks (RFC 1624, equation 3). */
function adjustChecksum(bytes: Uint8Array, at: number, before: number, after: number): void {
  let sum = (~read16(bytes, at) & 0xffff) + (~before & 0xffff) + after;
  sum = (sum & 0xffff) + (sum >>> 16);
  sum = (sum & 0xffff) + (sum >>> 16);
  write16(bytes, at, ~sum & 0xffff);
}

function adjustChecksum32(bytes: Uint8Array, at: number, before: number, after: number): void {
  adjustChecksum(bytes, at, before >>> 16, after >>> 16);
  adjustChecksum(bytes, at, before & 0xffff, after & 0xffff);
}

/** Offset of the transport checksum that covers the addresses, or -1: none, not yet there, or UDP without one. */
function transportChecksumAt(bytes: Uint8Array, length: number, ip: number): number {
  const transport = ip + (bytes[ip]! & 0x0f) * 4;
  const protocol = bytes[ip + IPV4.protocol]!;
  if ((read16(bytes, ip + IPV4.fragment) & 0x1fff) !== 0) return -1;
  const at = protocol === PROTOCOL.udp ? transport + 6 : protocol === PROTOCOL.tcp ? transport + 16 : -1;
  if (at < 0 || at + 2 > length) return -1;
  return protocol === PROTOCOL.udp && read16(bytes, at) === 0 ? -1 : at;
}

function fixUdpZero(bytes: Uint8Array, ip: number, at: number): void {
  // A computed zero is sent as 0xffff: zero means "no checksum" (RFC 768).
  if (bytes[ip + IPV4.protocol] === PROTOCOL.udp && read16(bytes, at) === 0) write16(bytes, at, 0xffff);
}

/**
 * Replaces the source or destination address of the IPv4 packet that starts at `ip` and brings header and transport
 * checksum along. `length` is the end of the buffer's valid part, so a packet cut off in an ICMP quote is fine.
 */
export function rewriteAddress(
  bytes: Uint8Array,
  length: number,
  side: "source" | "destination",
  address: number,
  ip = 0,
): void {
  const at = ip + IPV4[side];
  const before = read32(bytes, at);
  if (before === address) return;
  write32(bytes, at, address);
  adjustChecksum32(bytes, ip + IPV4.checksum, before, address);
  const checksum = transportChecksumAt(bytes, length, ip);
  if (checksum < 0) return;
  adjustChecksum32(bytes, checksum, before, address);
  fixUdpZero(bytes, ip, checksum);
}

/** Replaces a port (or, for ICMP, the echo id) of the IPv4 packet at `ip`; the transport header must be there. */
export function rewritePort(
  bytes: Uint8Array,
  length: number,
  side: "source" | "destination",
  port: number,
  ip = 0,
): void {
  const transport = ip + (bytes[ip]! & 0x0f) * 4;
  const isIcmp = bytes[ip + IPV4.protocol] === PROTOCOL.icmp;
  const at = isIcmp ? transport + 4 : transport + (side === "source" ? 0 : 2);
  const before = read16(bytes, at);
  if (before === port) return;
  write16(bytes, at, port);
  const checksum = isIcmp ? transport + 2 : transportChecksumAt(bytes, length, ip);
  if (checksum < 0) return;
  adjustChecksum(bytes, checksum, before, port);
  fixUdpZero(bytes, ip, checksum);
}

/** Takes one hop off. False, with nothing changed, when none is left to take: the packet must not go on. */
export function decrementHops(bytes: Uint8Array, version: 4 | 6): boolean {
  if (version === 6) {
    if (bytes[IPV6.hopLimit]! <= 1) return false;
    bytes[IPV6.hopLimit]! -= 1;
    return true;
  }
  if (bytes[IPV4.ttl]! <= 1) return false;
  const before = read16(bytes, IPV4.ttl);
  bytes[IPV4.ttl]! -= 1;
  adjustChecksum(bytes, IPV4.checksum, before, read16(bytes, IPV4.ttl));
  return true;
}

/** Why a router sends a packet back. */
export type IcmpReason =
  | { readonly kind: "unreachable" }
  | { readonly kind: "hops-exceeded" }
  | { readonly kind: "too-big"; readonly mtu: number };

const ICMP4_CODES = { unreachable: [3, 0], "hops-exceeded": [11, 0], "too-big": [3, 4] } as const;
const ICMP6_CODES = { unreachable: [1, 0], "hops-exceeded": [3, 0], "too-big": [2, 0] } as const;

/** May an error be sent about this packet? Not about errors, later fragments and multicast (RFC 1122 section 3.2.2). */
export function mayAnswerWithIcmp(bytes: Uint8Array, length: number, version: 4 | 6): boolean {
  const transport = transportOffset(bytes, version);
  if (version === 6) {
    const isError = ipv6.nextHeader(bytes) === PROTOCOL.icmp6 && transport < length && bytes[transport]! < 128;
    return !isError && bytes[IPV6.destination] !== 0xff && bytes[IPV6.source] !== 0xff;
  }
  if (ipv4.fragmentOffset(bytes) !== 0 || ipv4.destination(bytes) >= 0xe0000000) return false;
  return ipv4.protocol(bytes) !== PROTOCOL.icmp || (transport < length && isIcmpQuery(bytes[transport]!));
}

/** Echo request and reply; everything else that a NAT meets quotes a packet or is none of its business. */
export function isIcmpQuery(type: number): boolean {
  return type === 0 || type === 8;
}

/** Destination unreachable, source quench, time exceeded, parameter problem: they quote the packet they are about. */
export function isIcmpError(type: number): boolean {
  return type === 3 || type === 4 || type === 11 || type === 12;
}

/**
 * Writes an ICMP error about `about` into `into`, from the router's address `source` (4 or 16 bytes) to the packet's
 * sender, and returns its length. The two buffers must not overlap; `into` holds 576 bytes or more.
 */
export function encodeIcmpError(
  into: Uint8Array,
  about: Uint8Array,
  aboutLength: number,
  version: 4 | 6,
  source: Uint8Array,
  reason: IcmpReason,
): number {
  const header = version === 4 ? IPV4_HEADER_BYTES : IPV6_HEADER_BYTES;
  const quoted = Math.min(aboutLength, ICMP_ERROR_MAX_BYTES - header - ICMP_HEADER_BYTES);
  const length = header + ICMP_HEADER_BYTES + quoted;
  const [type, code] = version === 4 ? ICMP4_CODES[reason.kind] : ICMP6_CODES[reason.kind];
  into.fill(0, 0, header + ICMP_HEADER_BYTES);
  into[header] = type;
  into[header + 1] = code;
  if (reason.kind === "too-big") write16(into, header + 6, reason.mtu);
  into.set(about.subarray(0, quoted), header + ICMP_HEADER_BYTES);
  if (version === 4) {
    into[0] = 0x45;
    write16(into, IPV4.length, length);
    into[IPV4.ttl] = 64;
    into[IPV4.protocol] = PROTOCOL.icmp;
    into.set(source, IPV4.source);
    into.set(about.subarray(IPV4.source, IPV4.source + 4), IPV4.destination);
    write16(into, IPV4.checksum, foldChecksum(onesSum(into, 0, header)));
    write16(into, header + 2, foldChecksum(onesSum(into, header, length)));
  } else {
    into[0] = 0x60;
    write16(into, IPV6.payloadLength, length - header);
    into[IPV6.nextHeader] = PROTOCOL.icmp6;
    into[IPV6.hopLimit] = 64;
    into.set(source, IPV6.source);
    into.set(about.subarray(IPV6.source, IPV6.source + 16), IPV6.destination);
    const pseudo = onesSum(into, IPV6.source, header, length - header + PROTOCOL.icmp6);
    write16(into, header + 2, foldChecksum(onesSum(into, header, length, pseudo)));
  }
  return length;
}
