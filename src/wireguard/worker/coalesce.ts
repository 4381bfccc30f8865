import type { Arena } from "./arena.ts";
import { addBytes, finish, fold, pseudoHeader } from "./checksum.ts";
import {
  IPV4,
  IPV6,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  TCP,
  TcpFlag,
  UDP,
  VIRTIO,
  VIRTIO_GSO_TCPV4,
  VIRTIO_GSO_TCPV6,
  VIRTIO_GSO_UDP,
  VIRTIO_NEEDS_CHECKSUM,
} from "./inner-packet.ts";

const MAX_FLOWS = 16;
/** Packets in one; UDP takes at most 64 segments, TCP ends at 64 KiB. */
const MAX_PIECES = 64;
const IOVEC_BYTES = 16;
const MAX_IP_BYTES = 65_535;

/** Where finished packets go: a TunWriter, see there. */
export interface PacketSink {
  readonly virtioHeader: boolean;
  writePacket(at: number, length: number): void;
  writePieces(iovecs: number, count: number): void;
}

/** What may be sent as one: consecutive packets of one direction of one connection. */
interface Flow {
  open: boolean;
  /** First packet, its IP header and all headers. */
  at: number;
  isV6: boolean;
  protocol: number;
  ipBytes: number;
  headerBytes: number;
  /** Payload of the first packet: the size of all but the last. */
  segmentBytes: number;
  /** IP packet with everything merged so far. */
  totalBytes: number;
  nextSequence: number;
  pieces: number;
  /** The first packet's checksum was found right. */
  verified: boolean;
  readonly iovecs: number;
}

/**
 * Merges inner packets of a batch before they are written to the TUN, as a network card with receive offload does: the
 * kernel takes up to 64 KiB in one write. Order within a connection is kept; whatever cannot be merged first lets the
 * packets of its connection go and is written alone.
 *
 * The kernel does not verify what is declared as checked, so every merged packet's checksum is verified here. Packets
 * stay where they are until `flush`, with at least 16 bytes in front of each that may be overwritten.
 */
export class Coalescer {
  readonly #arena: Arena;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #writer: PacketSink;
  readonly #mergeUdp: boolean;
  readonly #flows: Flow[] = [];
  #high = 0;

  // The packet at hand.
  #isV6 = false;
  #protocol = 0;
  #ipBytes = 0;
  #headerBytes = 0;

  /** `mergeUdp`: the kernel takes UDP super-packets (TUN_F_USO). */
  constructor(arena: Arena, writer: PacketSink, mergeUdp: boolean) {
    this.#arena = arena;
    this.#bytes = arena.bytes;
    this.#view = arena.view;
    this.#writer = writer;
    this.#mergeUdp = mergeUdp;
    for (let i = 0; i < MAX_FLOWS; i++) {
      this.#flows.push({
        open: false,
        at: 0,
        isV6: false,
        protocol: 0,
        ipBytes: 0,
        headerBytes: 0,
        segmentBytes: 0,
        totalBytes: 0,
        nextSequence: 0,
        pieces: 0,
        verified: false,
        iovecs: arena.take(MAX_PIECES * IOVEC_BYTES, 16),
      });
    }
  }

  /** Takes the IP packet at `at`, whose length field says `length`. */
  add(at: number, length: number): void {
    if (!this.#writer.virtioHeader || !this.#parse(at, length)) {
      this.#writer.writePacket(at, length);
      return;
    }
    const mergeable = this.#mergeable(at, length);
    const flow = this.#find(at);
    if (flow) {
      if (mergeable && this.#append(flow, at, length)) return;
      this.#flushFlow(flow);
    }
    // A pushed packet ends what it belongs to: nothing may be merged behind it.
    const pushed = this.#protocol === PROTOCOL_TCP && (this.#tcpFlags(at) & TcpFlag.psh) !== 0;
    if (mergeable && !pushed) this.#start(at, length);
    else this.#writer.writePacket(at, length);
  }

  /** Writes all that was kept. The packets' memory is free afterwards. */
  flush(): void {
    for (let i = 0; i < this.#high; i++) if (this.#flows[i]!.open) this.#flushFlow(this.#flows[i]!);
    this.#high = 0;
  }

  /** Reads the headers; false for anything but plain TCP and UDP: fragments, IP options, extension headers, others. */
  #parse(at: number, length: number): boolean {
    const bytes = this.#bytes;
    this.#isV6 = bytes[at]! >> 4 === 6;
    if (this.#isV6) {
      this.#ipBytes = IPV6.bytes;
      this.#protocol = bytes[at + IPV6.nextHeader]!;
    } else {
      if (bytes[at] !== 0x45) return false;
      // More fragments follow, or this is a later one.
      if ((this.#view.getUint16(at + IPV4.fragment) & 0x3fff) !== 0) return false;
      this.#ipBytes = IPV4.minBytes;
      this.#protocol = bytes[at + IPV4.protocol]!;
    }
    const transport = at + this.#ipBytes;
    if (this.#protocol === PROTOCOL_TCP) {
      if (length < this.#ipBytes + TCP.minBytes) return false;
      const tcpBytes = (bytes[transport + TCP.dataOffset]! >> 4) * 4;
      this.#headerBytes = this.#ipBytes + tcpBytes;
      return tcpBytes >= TCP.minBytes && length >= this.#headerBytes;
    }
    if (this.#protocol === PROTOCOL_UDP && this.#mergeUdp) {
      this.#headerBytes = this.#ipBytes + UDP.bytes;
      return length >= this.#headerBytes;
    }
    return false;
  }

  /** Whether the packet by itself may be part of something merged: it has payload, and flags or lengths are plain. */
  #mergeable(at: number, length: number): boolean {
    if (length === this.#headerBytes) return false;
    if (this.#protocol === PROTOCOL_TCP) return (this.#tcpFlags(at) & ~TcpFlag.psh) === TcpFlag.ack;
    const udp = at + this.#ipBytes;
    // IPv4 may leave the checksum out (0); that cannot be said of a merged packet.
    return (
      this.#view.getUint16(udp + UDP.length) === length - this.#ipBytes &&
      this.#view.getUint16(udp + UDP.checksum) !== 0
    );
  }

  #tcpFlags(at: number): number {
    return this.#bytes[at + this.#ipBytes + TCP.flags]!;
  }

  /** The open flow with the packet's addresses and ports. */
  #find(at: number): Flow | undefined {
    for (let i = 0; i < this.#high; i++) {
      const flow = this.#flows[i]!;
      if (flow.open && flow.isV6 === this.#isV6 && flow.protocol === this.#protocol && this.#sameEnds(flow.at, at))
        return flow;
    }
    return undefined;
  }

  #sameEnds(a: number, b: number): boolean {
    const view = this.#view;
    // Both addresses and both ports are adjacent in IPv6; in IPv4 too, there being no options.
    const from = this.#isV6 ? IPV6.source : IPV4.source;
    const to = this.#ipBytes + 4;
    for (let i = from; i < to; i += 4) if (view.getUint32(a + i) !== view.getUint32(b + i)) return false;
    return true;
  }

  #start(at: number, length: number): void {
    let index = 0;
    while (index < this.#high && this.#flows[index]!.open) index++;
    if (index === MAX_FLOWS) {
      this.flush();
      index = 0;
    }
    if (index === this.#high) this.#high++;
    const flow = this.#flows[index]!;
    flow.open = true;
    flow.at = at;
    flow.isV6 = this.#isV6;
    flow.protocol = this.#protocol;
    flow.ipBytes = this.#ipBytes;
    flow.headerBytes = this.#headerBytes;
    flow.segmentBytes = length - this.#headerBytes;
    flow.totalBytes = length;
    if (this.#protocol === PROTOCOL_TCP)
      flow.nextSequence = (this.#view.getUint32(at + this.#ipBytes + TCP.sequence) + flow.segmentBytes) >>> 0;
    flow.pieces = 1;
    flow.verified = false;
  }

  /** Merges the packet into the flow; false when it does not fit behind what is there. */
  #append(flow: Flow, at: number, length: number): boolean {
    const payloadBytes = length - this.#headerBytes;
    if (
      this.#headerBytes !== flow.headerBytes ||
      payloadBytes > flow.segmentBytes ||
      flow.totalBytes + payloadBytes > MAX_IP_BYTES ||
      flow.pieces === MAX_PIECES ||
      !this.#sameIpHeader(flow.at, at)
    ) {
      return false;
    }
    const isTcp = this.#protocol === PROTOCOL_TCP;
    if (isTcp && !this.#followsTcp(flow, at)) return false;
    if (!flow.verified) {
      if (!this.#checksumRight(flow.at, flow.headerBytes + flow.segmentBytes)) return false;
      flow.verified = true;
    }
    if (!this.#checksumRight(at, length)) return false;

    const iovec = flow.iovecs + flow.pieces * IOVEC_BYTES;
    this.#arena.setPointer(iovec, at + this.#headerBytes);
    this.#arena.setSize(iovec + 8, payloadBytes);
    flow.pieces++;
    flow.totalBytes += payloadBytes;
    flow.nextSequence = (flow.nextSequence + payloadBytes) >>> 0;
    const pushed = isTcp && (this.#tcpFlags(at) & TcpFlag.psh) !== 0;
    if (pushed) this.#bytes[flow.at + flow.ipBytes + TCP.flags]! |= TcpFlag.psh;
    // Only the last one may be smaller.
    if (pushed || payloadBytes < flow.segmentBytes) this.#flushFlow(flow);
    return true;
  }

  /** Traffic class, hop limit and whatever else a merged packet can have only once. */
  #sameIpHeader(a: number, b: number): boolean {
    const view = this.#view;
    if (this.#isV6) {
      return (
        view.getUint32(a) === view.getUint32(b) && this.#bytes[a + IPV6.hopLimit] === this.#bytes[b + IPV6.hopLimit]
      );
    }
    return (
      this.#bytes[a + IPV4.tos] === this.#bytes[b + IPV4.tos] &&
      view.getUint16(a + IPV4.fragment) === view.getUint16(b + IPV4.fragment) &&
      this.#bytes[a + IPV4.ttl] === this.#bytes[b + IPV4.ttl]
    );
  }

  #followsTcp(flow: Flow, at: number): boolean {
    const view = this.#view;
    const first = flow.at + flow.ipBytes;
    const tcp = at + this.#ipBytes;
    if (view.getUint32(tcp + TCP.sequence) !== flow.nextSequence) return false;
    if (view.getUint32(tcp + TCP.acknowledgement) !== view.getUint32(first + TCP.acknowledgement)) return false;
    const optionsEnd = this.#headerBytes - this.#ipBytes;
    for (let i = TCP.minBytes; i < optionsEnd; i += 4) {
      if (view.getUint32(tcp + i) !== view.getUint32(first + i)) return false;
    }
    return true;
  }

  #checksumRight(at: number, length: number): boolean {
    const transportBytes = length - this.#ipBytes;
    const pseudo = pseudoHeader(this.#view, at, this.#isV6, this.#protocol, transportBytes);
    return fold(this.#arena.addBytes(at + this.#ipBytes, transportBytes, pseudo)) === 0xffff;
  }

  #flushFlow(flow: Flow): void {
    flow.open = false;
    if (flow.pieces === 1) {
      this.#writer.writePacket(flow.at, flow.totalBytes);
      return;
    }
    const view = this.#view;
    const { at, ipBytes, headerBytes, totalBytes } = flow;
    if (flow.isV6) {
      view.setUint16(at + IPV6.payloadLength, totalBytes - IPV6.bytes);
    } else {
      view.setUint16(at + IPV4.totalLength, totalBytes);
      view.setUint16(at + IPV4.checksum, 0);
      view.setUint16(at + IPV4.checksum, finish(addBytes(view, at, ipBytes, 0)), true);
    }
    const isTcp = flow.protocol === PROTOCOL_TCP;
    const transportBytes = totalBytes - ipBytes;
    const checksumOffset = isTcp ? TCP.checksum : UDP.checksum;
    if (!isTcp) view.setUint16(at + ipBytes + UDP.length, transportBytes);
    // The kernel goes on from the pseudo-header's sum, not complemented.
    const partial = fold(pseudoHeader(view, at, flow.isV6, flow.protocol, transportBytes));
    view.setUint16(at + ipBytes + checksumOffset, partial, true);

    const virtio = at - VIRTIO.bytes;
    this.#bytes[virtio + VIRTIO.flags] = VIRTIO_NEEDS_CHECKSUM;
    this.#bytes[virtio + VIRTIO.gsoType] = isTcp ? (flow.isV6 ? VIRTIO_GSO_TCPV6 : VIRTIO_GSO_TCPV4) : VIRTIO_GSO_UDP;
    view.setUint16(virtio + VIRTIO.headerLength, headerBytes, true);
    view.setUint16(virtio + VIRTIO.gsoSize, flow.segmentBytes, true);
    view.setUint16(virtio + VIRTIO.checksumStart, ipBytes, true);
    view.setUint16(virtio + VIRTIO.checksumOffset, checksumOffset, true);
    this.#arena.setPointer(flow.iovecs, virtio);
    this.#arena.setSize(flow.iovecs + 8, VIRTIO.bytes + headerBytes + flow.segmentBytes);
    this.#writer.writePieces(flow.iovecs, flow.pieces);
  }
}
