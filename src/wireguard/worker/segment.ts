import type { Arena } from "./arena.ts";
import { addBytes, finish, pseudoHeader } from "./checksum.ts";
import {
  IPV4,
  IPV6,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  TCP,
  TcpFlag,
  UDP,
  VIRTIO,
  VIRTIO_GSO_ECN,
  VIRTIO_GSO_NONE,
  VIRTIO_GSO_TCPV4,
  VIRTIO_GSO_TCPV6,
  VIRTIO_GSO_UDP,
  VIRTIO_NEEDS_CHECKSUM,
} from "./inner-packet.ts";

/** IP header (IPv6 has no extension headers before a segmented packet) plus TCP with options, at most. */
const MAX_HEADER_BYTES = 128;

/**
 * Cuts a packet that the kernel handed over unfinished (virtio header: checksum missing, or many segments in one) into
 * packets that can travel. Nothing is copied but headers:
 *
 *   |  header  |  payload 0  |  payload 1  |  payload 2 |
 *   |<--- segment 0 -------->|
 *                  |<header->|<--- ... segment 1: its header overwrites the end of payload 0
 *
 * So segment i must have been used (encrypted) before segment i+1 is asked for. The buffer belongs to the caller.
 */
export class Segmenter {
  readonly #arena: Arena;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  /** The header as it came; each segment's header starts from it. */
  readonly #header = new Uint8Array(MAX_HEADER_BYTES);
  #at = 0;
  #end = 0;
  #headerBytes = 0;
  #ipBytes = 0;
  #protocol = 0;
  #isV6 = false;
  #segmentBytes = 0;
  #sequence = 0;
  #id = 0;
  #flags = 0;

  /** The segment prepared last. */
  offset = 0;
  length = 0;

  constructor(arena: Arena) {
    this.#arena = arena;
    this.#bytes = arena.bytes;
    this.#view = arena.view;
  }

  /**
   * Starts with the packet of `length` bytes at `at`, its virtio header 10 bytes before it. Returns the number of
   * segments, 0 when header and packet contradict each other.
   */
  begin(at: number, length: number): number {
    const view = this.#view;
    const virtio = at - VIRTIO.bytes;
    const flags = this.#bytes[virtio + VIRTIO.flags]!;
    const gsoType = this.#bytes[virtio + VIRTIO.gsoType]! & ~VIRTIO_GSO_ECN;
    this.#at = at;
    this.#end = at + length;
    if (gsoType === VIRTIO_GSO_NONE) {
      if ((flags & VIRTIO_NEEDS_CHECKSUM) !== 0 && !this.#finishChecksum(virtio, length)) return 0;
      this.#segmentBytes = 0;
      return 1;
    }
    this.#segmentBytes = view.getUint16(virtio + VIRTIO.gsoSize, true);
    if (this.#segmentBytes === 0 || !this.#parseHeaders(gsoType, length)) return 0;
    for (let i = 0; i < this.#headerBytes; i++) this.#header[i] = this.#bytes[at + i]!;
    return Math.max(1, Math.ceil((length - this.#headerBytes) / this.#segmentBytes));
  }

  /** Prepares segment `index` of `count`, in order from 0; it then lies at `offset` with `length` bytes. */
  segment(index: number, count: number): void {
    if (this.#segmentBytes === 0) {
      this.offset = this.#at;
      this.length = this.#end - this.#at;
      return;
    }
    const payloadAt = this.#at + this.#headerBytes + index * this.#segmentBytes;
    const payloadBytes = Math.min(this.#segmentBytes, this.#end - payloadAt);
    const at = payloadAt - this.#headerBytes;
    if (index > 0) for (let i = 0; i < this.#headerBytes; i++) this.#bytes[at + i] = this.#header[i]!;
    this.offset = at;
    this.length = this.#headerBytes + payloadBytes;
    this.#fixIp(at, index);
    const transportBytes = this.length - this.#ipBytes;
    if (this.#protocol === PROTOCOL_TCP) this.#fixTcp(at + this.#ipBytes, index, count);
    else this.#view.setUint16(at + this.#ipBytes + UDP.length, transportBytes);
    this.#writeChecksum(at, transportBytes);
  }

  /** Completes a checksum field that holds the pseudo-header's sum. */
  #finishChecksum(virtio: number, length: number): boolean {
    const start = this.#view.getUint16(virtio + VIRTIO.checksumStart, true);
    const offset = this.#view.getUint16(virtio + VIRTIO.checksumOffset, true);
    if (start < IPV4.minBytes || start + offset + 2 > length) return false;
    const from = this.#at + start;
    const checksum = finish(this.#arena.addBytes(from, length - start, 0));
    // Zero means "no checksum" in UDP; its other form is all ones. TCP's offset is another, and there zero is a sum.
    this.#view.setUint16(from + offset, checksum === 0 && offset === UDP.checksum ? 0xffff : checksum, true);
    return true;
  }

  /** Header lengths come from the packet: the virtio header's are a hint. */
  #parseHeaders(gsoType: number, length: number): boolean {
    const bytes = this.#bytes;
    const at = this.#at;
    if (length < IPV4.minBytes + UDP.bytes) return false;
    const version = bytes[at]! >> 4;
    this.#isV6 = version === 6;
    if (version === 4) {
      this.#ipBytes = (bytes[at]! & 15) * 4;
      this.#protocol = bytes[at + IPV4.protocol]!;
      if (this.#ipBytes < IPV4.minBytes) return false;
    } else if (version === 6) {
      this.#ipBytes = IPV6.bytes;
      this.#protocol = bytes[at + IPV6.nextHeader]!;
    } else {
      return false;
    }
    const expected = gsoType === VIRTIO_GSO_UDP ? PROTOCOL_UDP : PROTOCOL_TCP;
    const rightVersion =
      gsoType === VIRTIO_GSO_UDP ||
      (gsoType === VIRTIO_GSO_TCPV6 ? 6 : gsoType === VIRTIO_GSO_TCPV4 ? 4 : 0) === version;
    if (this.#protocol !== expected || !rightVersion) return false;
    if (expected === PROTOCOL_TCP) {
      if (length < this.#ipBytes + TCP.minBytes) return false;
      const tcpBytes = (bytes[at + this.#ipBytes + TCP.dataOffset]! >> 4) * 4;
      if (tcpBytes < TCP.minBytes) return false;
      this.#headerBytes = this.#ipBytes + tcpBytes;
      this.#sequence = this.#view.getUint32(at + this.#ipBytes + TCP.sequence);
      this.#flags = bytes[at + this.#ipBytes + TCP.flags]!;
    } else {
      this.#headerBytes = this.#ipBytes + UDP.bytes;
    }
    this.#id = this.#isV6 ? 0 : this.#view.getUint16(at + IPV4.id);
    return length >= this.#headerBytes;
  }

  #fixIp(at: number, index: number): void {
    const view = this.#view;
    if (this.#isV6) {
      view.setUint16(at + IPV6.payloadLength, this.length - IPV6.bytes);
      return;
    }
    view.setUint16(at + IPV4.totalLength, this.length);
    view.setUint16(at + IPV4.id, (this.#id + index) & 0xffff);
    view.setUint16(at + IPV4.checksum, 0);
    view.setUint16(at + IPV4.checksum, finish(addBytes(view, at, this.#ipBytes, 0)), true);
  }

  /** FIN and PSH belong to the last segment, CWR to the first (RFC 3168 section 6.1.2). */
  #fixTcp(tcp: number, index: number, count: number): void {
    let flags = this.#flags;
    if (index < count - 1) flags &= ~(TcpFlag.fin | TcpFlag.psh);
    if (index > 0) flags &= ~TcpFlag.cwr;
    this.#bytes[tcp + TCP.flags] = flags;
    this.#view.setUint32(tcp + TCP.sequence, (this.#sequence + index * this.#segmentBytes) >>> 0);
  }

  #writeChecksum(at: number, transportBytes: number): void {
    const view = this.#view;
    const transport = at + this.#ipBytes;
    const isTcp = this.#protocol === PROTOCOL_TCP;
    const field = transport + (isTcp ? TCP.checksum : UDP.checksum);
    view.setUint16(field, 0);
    const sum = this.#arena.addBytes(
      transport,
      transportBytes,
      pseudoHeader(view, at, this.#isV6, this.#protocol, transportBytes),
    );
    const checksum = finish(sum);
    view.setUint16(field, checksum === 0 && !isTcp ? 0xffff : checksum, true);
  }
}
