import { IPV4, IPV6, PROTOCOL_TCP, PROTOCOL_UDP, TCP, UDP } from "./inner-packet.ts";

/** What can be said of a packet by its headers. */
export const Shape = {
  /** It belongs to a flow: addresses, protocol and ports (0 for protocols without) name it. */
  flow: 0,
  /** An ICMP error; the packet it is about begins at `quoteAt`. */
  error: 1,
  /** ICMP that is neither question, answer nor error: each packet for itself. */
  single: 2,
  /** A fragment without the transport header. */
  laterFragment: 3,
  /** More extension headers than are read: the protocol is unknown. */
  opaque: 4,
} as const;
export type Shape = (typeof Shape)[keyof typeof Shape];

export const Asker = { none: 0, source: 1, destination: 2 } as const;
export type Asker = (typeof Asker)[keyof typeof Asker];

export const PROTOCOL_ICMP = 1;
export const PROTOCOL_ICMPV6 = 58;
/** `protocol` of an opaque packet; the number is reserved. */
export const PROTOCOL_UNKNOWN = 255;

const ICMP = { type: 0, id: 4, quote: 8, minBytes: 8 } as const;
/** Bytes of the transport header that an ICMP error must quote (RFC 792). */
const QUOTED_BYTES = 8;

/** IPv6 extension headers (RFC 8200, 4302, 6275, 7401, 5533): all but these end the chain. */
const HOP_BY_HOP = 0;
const ROUTING = 43;
const FRAGMENT = 44;
const AUTHENTICATION = 51;
const DESTINATION_OPTIONS = 60;
const MOBILITY = 135;
const HOST_IDENTITY = 139;
const SHIM6 = 140;
/** Read in one packet; real ones have one or two. */
const MAX_EXTENSION_HEADERS = 8;

/**
 * Reads the headers of an inner packet into its fields; nothing is allocated. The fields hold until the next `read`.
 * Addresses are four 32-bit words in network order, an IPv4 address the first of them and the others 0.
 */
export class InnerFlow {
  shape: Shape = Shape.flow;
  isV6 = false;
  /** IP protocol number of what follows IP and its extension headers. */
  protocol = 0;
  source0 = 0;
  source1 = 0;
  source2 = 0;
  source3 = 0;
  destination0 = 0;
  destination1 = 0;
  destination2 = 0;
  destination3 = 0;
  /** Of an ICMP question the source has the identifier as its port, of an answer the destination; the other is 0. */
  sourcePort = 0;
  destinationPort = 0;
  tcpFlags = 0;
  /** Which end of an ICMP question or answer (echo, timestamp) asks. */
  asker: Asker = Asker.none;
  /** The first of several fragments. */
  isFirstFragment = false;
  /** Of fragments: what makes them belong together, with the addresses and `protocol`. */
  fragmentId = 0;
  /** Of errors. */
  quoteAt = 0;
  quoteBytes = 0;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;

  constructor(view: DataView) {
    this.#bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
    this.#view = view;
  }

  /** Reads the packet at `at`, whose version and length were checked (`ipLength`). False when its headers are cut short. */
  read(at: number, length: number): boolean {
    return this.#read(at, at + length, false);
  }

  /** Reads what an ICMP error quotes: the beginning of a packet. */
  readQuote(at: number, available: number): boolean {
    if (available < IPV4.minBytes) return false;
    const version = this.#bytes[at]! >> 4;
    if (version !== 4 && (version !== 6 || available < IPV6.bytes)) return false;
    return this.#read(at, at + available, true);
  }

  #read(at: number, end: number, isQuote: boolean): boolean {
    this.shape = Shape.flow;
    this.asker = Asker.none;
    this.isFirstFragment = false;
    this.sourcePort = 0;
    this.destinationPort = 0;
    this.isV6 = this.#bytes[at]! >> 4 === 6;
    const transport = this.isV6 ? this.#readV6(at, end) : this.#readV4(at, end);
    if (transport < 0) return false;
    return this.shape !== Shape.flow || this.#readTransport(transport, end, isQuote);
  }

  /** Offset of the transport header, -1 when the packet is bad. */
  #readV4(at: number, end: number): number {
    const view = this.#view;
    const headerBytes = (this.#bytes[at]! & 15) * 4;
    if (headerBytes < IPV4.minBytes || at + headerBytes > end) return -1;
    this.protocol = this.#bytes[at + IPV4.protocol]!;
    this.source0 = view.getInt32(at + IPV4.source);
    this.destination0 = view.getInt32(at + IPV4.destination);
    this.source1 = this.source2 = this.source3 = 0;
    this.destination1 = this.destination2 = this.destination3 = 0;
    // 3 bits of flags, the last of them "more fragments"; 13 bits of offset in units of 8 bytes.
    const fragment = view.getUint16(at + IPV4.fragment) & 0x3fff;
    if (fragment !== 0) {
      this.fragmentId = view.getUint16(at + IPV4.id);
      if (!this.#noteFragment(fragment & 0x1fff)) return -1;
    }
    return at + headerBytes;
  }

  #readV6(at: number, end: number): number {
    const view = this.#view;
    const bytes = this.#bytes;
    this.source0 = view.getInt32(at + IPV6.source);
    this.source1 = view.getInt32(at + IPV6.source + 4);
    this.source2 = view.getInt32(at + IPV6.source + 8);
    this.source3 = view.getInt32(at + IPV6.source + 12);
    this.destination0 = view.getInt32(at + IPV6.destination);
    this.destination1 = view.getInt32(at + IPV6.destination + 4);
    this.destination2 = view.getInt32(at + IPV6.destination + 8);
    this.destination3 = view.getInt32(at + IPV6.destination + 12);
    let next = bytes[at + IPV6.nextHeader]!;
    let place = at + IPV6.bytes;
    let isFragment = false;
    for (let count = 0; isExtensionHeader(next); count++) {
      if (count === MAX_EXTENSION_HEADERS || (next === FRAGMENT && isFragment)) {
        this.shape = Shape.opaque;
        this.protocol = PROTOCOL_UNKNOWN;
        return place;
      }
      if (place + 8 > end) return -1;
      const header = next;
      next = bytes[place]!;
      if (header === FRAGMENT) {
        const fragment = view.getUint16(place + 2);
        this.fragmentId = view.getInt32(place + 4);
        this.protocol = next;
        place += 8;
        isFragment = true;
        // Neither offset nor "more fragments": a whole packet in disguise (RFC 6946).
        if ((fragment & 0xfff9) !== 0 && !this.#noteFragment(fragment >>> 3)) return -1;
        if (this.shape === Shape.laterFragment) return place;
      } else {
        const units = bytes[place + 1]!;
        place += header === AUTHENTICATION ? (units + 2) * 4 : (units + 1) * 8;
      }
      if (place > end) return -1;
    }
    this.protocol = next;
    return place;
  }

  /** `offset` in units of 8 bytes. */
  #noteFragment(offset: number): boolean {
    if (offset === 0) {
      this.isFirstFragment = true;
      return true;
    }
    this.shape = Shape.laterFragment;
    // It would replace TCP's flags, which the first fragment was judged by (RFC 1858 section 3).
    return !(offset === 1 && this.protocol === PROTOCOL_TCP);
  }

  #readTransport(at: number, end: number, isQuote: boolean): boolean {
    const view = this.#view;
    const available = end - at;
    switch (this.protocol) {
      case PROTOCOL_TCP:
        if (available < (isQuote ? QUOTED_BYTES : TCP.minBytes)) return false;
        this.tcpFlags = isQuote ? 0 : this.#bytes[at + TCP.flags]!;
        break;
      case PROTOCOL_UDP:
        if (available < UDP.bytes) return false;
        break;
      case PROTOCOL_ICMP:
        return this.isV6 || this.#readIcmp(at, available);
      case PROTOCOL_ICMPV6:
        return !this.isV6 || this.#readIcmp(at, available);
      default:
        return true;
    }
    this.sourcePort = view.getUint16(at);
    this.destinationPort = view.getUint16(at + 2);
    return true;
  }

  #readIcmp(at: number, available: number): boolean {
    if (available < ICMP.minBytes) return false;
    const type = this.#bytes[at + ICMP.type]!;
    const id = this.#view.getUint16(at + ICMP.id);
    switch (this.isV6 ? ICMPV6_KIND[type] : ICMPV4_KIND[type]) {
      case IcmpKind.question:
        this.asker = Asker.source;
        this.sourcePort = id;
        return true;
      case IcmpKind.answer:
        this.asker = Asker.destination;
        this.destinationPort = id;
        return true;
      case IcmpKind.error:
        this.shape = this.isFirstFragment ? Shape.single : Shape.error;
        this.quoteAt = at + ICMP.quote;
        this.quoteBytes = available - ICMP.quote;
        return true;
      default:
        this.shape = Shape.single;
        return true;
    }
  }
}

const IcmpKind = { single: 0, question: 1, answer: 2, error: 3 } as const;

/** Echo and timestamp; unreachable, time exceeded, bad parameter (RFC 792). A redirect is no error: it changes routes. */
const ICMPV4_KIND = new Uint8Array(256);
ICMPV4_KIND[8] = ICMPV4_KIND[13] = IcmpKind.question;
ICMPV4_KIND[0] = ICMPV4_KIND[14] = IcmpKind.answer;
ICMPV4_KIND[3] = ICMPV4_KIND[11] = ICMPV4_KIND[12] = IcmpKind.error;

/** Echo; unreachable, too big, time exceeded, bad parameter (RFC 4443). */
const ICMPV6_KIND = new Uint8Array(256);
ICMPV6_KIND[128] = IcmpKind.question;
ICMPV6_KIND[129] = IcmpKind.answer;
ICMPV6_KIND.fill(IcmpKind.error, 1, 5);

function isExtensionHeader(next: number): boolean {
  switch (next) {
    case HOP_BY_HOP:
    case ROUTING:
    case FRAGMENT:
    case AUTHENTICATION:
    case DESTINATION_OPTIONS:
    case MOBILITY:
    case HOST_IDENTITY:
    case SHIM6:
      return true;
    default:
      return false;
  }
}
