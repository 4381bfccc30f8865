/**
 * IP, TCP and UDP the slow and obvious way, for tests: the checksums are written from RFC 1071 byte by byte and share
 * nothing with checksum.ts.
 */
export interface PacketSpec {
  readonly v6: boolean;
  readonly protocol: "tcp" | "udp";
  readonly payload: Uint8Array;
  readonly sourcePort?: number;
  readonly sequence?: number;
  readonly acknowledgement?: number;
  readonly flags?: number;
  /** TCP options, a multiple of 4 bytes. */
  readonly options?: Uint8Array;
  readonly id?: number;
  readonly tos?: number;
  readonly ttl?: number;
}

const SOURCE_V4 = [10, 77, 0, 1];
const DESTINATION_V4 = [10, 77, 0, 2];
const SOURCE_V6 = [0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const DESTINATION_V6 = [0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

/** A whole packet with right lengths and checksums. */
export function buildPacket(spec: PacketSpec): Uint8Array {
  const options = spec.options ?? new Uint8Array(0);
  const transportHeader = spec.protocol === "tcp" ? 20 + options.length : 8;
  const ipHeader = spec.v6 ? 40 : 20;
  const packet = new Uint8Array(ipHeader + transportHeader + spec.payload.length);
  const view = new DataView(packet.buffer);
  const ttl = spec.ttl ?? 64;
  const protocol = spec.protocol === "tcp" ? 6 : 17;
  if (spec.v6) {
    view.setUint32(0, 0x60000000 | ((spec.tos ?? 0) << 20) | 0x12345);
    view.setUint16(4, packet.length - 40);
    packet[6] = protocol;
    packet[7] = ttl;
    packet.set(SOURCE_V6, 8);
    packet.set(DESTINATION_V6, 24);
  } else {
    packet[0] = 0x45;
    packet[1] = spec.tos ?? 0;
    view.setUint16(2, packet.length);
    view.setUint16(4, spec.id ?? 0);
    view.setUint16(6, 0x4000);
    packet[8] = ttl;
    packet[9] = protocol;
    packet.set(SOURCE_V4, 12);
    packet.set(DESTINATION_V4, 16);
    view.setUint16(10, onesComplement(packet.subarray(0, 20)));
  }
  const transport = ipHeader;
  view.setUint16(transport, spec.sourcePort ?? 1234);
  view.setUint16(transport + 2, 80);
  if (spec.protocol === "tcp") {
    view.setUint32(transport + 4, spec.sequence ?? 0);
    view.setUint32(transport + 8, spec.acknowledgement ?? 0);
    packet[transport + 12] = ((20 + options.length) / 4) << 4;
    packet[transport + 13] = spec.flags ?? 0x10;
    view.setUint16(transport + 14, 500);
    packet.set(options, transport + 20);
  } else {
    view.setUint16(transport + 4, packet.length - transport);
  }
  packet.set(spec.payload, transport + transportHeader);
  const checksumAt = transport + (spec.protocol === "tcp" ? 16 : 6);
  const checksum = transportChecksum(packet);
  view.setUint16(checksumAt, checksum === 0 && spec.protocol === "udp" ? 0xffff : checksum);
  return packet;
}

/** Whether lengths and checksums of a TCP or UDP packet are right. */
export function isIntact(packet: Uint8Array): boolean {
  const view = new DataView(packet.buffer, packet.byteOffset, packet.length);
  const v6 = packet[0]! >> 4 === 6;
  const ipHeader = v6 ? 40 : (packet[0]! & 15) * 4;
  const length = v6 ? 40 + view.getUint16(4) : view.getUint16(2);
  if (length !== packet.length) return false;
  if (!v6 && onesComplement(packet.subarray(0, ipHeader)) !== 0) return false;
  const udp = packet[v6 ? 6 : 9] === 17;
  if (udp && view.getUint16(ipHeader + 4) !== length - ipHeader) return false;
  return transportChecksum(packet) === 0;
}

/** What the kernel makes of a packet with a virtio header: its segments, or undefined when it would refuse it. */
export function kernelSegments(virtio: Uint8Array, packet: Uint8Array): Uint8Array[] | undefined {
  const header = new DataView(virtio.buffer, virtio.byteOffset, 10);
  const type = header.getUint8(1) & 0x7f;
  if (type === 0) return [packet.slice()];
  const view = new DataView(packet.buffer, packet.byteOffset, packet.length);
  const v6 = packet[0]! >> 4 === 6;
  const ipHeader = v6 ? 40 : 20;
  const tcp = packet[v6 ? 6 : 9] === 6;
  const headerBytes = ipHeader + (tcp ? (packet[ipHeader + 12]! >> 4) * 4 : 8);
  const total = v6 ? 40 + view.getUint16(4) : view.getUint16(2);
  const right =
    header.getUint8(0) === 1 &&
    header.getUint16(2, true) === headerBytes &&
    header.getUint16(6, true) === ipHeader &&
    header.getUint16(8, true) === (tcp ? 16 : 6) &&
    type === (tcp ? (v6 ? 4 : 1) : 5) &&
    total === packet.length &&
    (v6 || onesComplement(packet.subarray(0, 20)) === 0);
  if (!right) return undefined;
  // The field must hold the pseudo-header's sum: then the whole sums to the checksum's complement once it is finished.
  const field = ipHeader + (tcp ? 16 : 6);
  if (view.getUint16(field) !== (~onesComplement(pseudoBytes(packet, ipHeader)) & 0xffff)) return undefined;
  const size = header.getUint16(4, true);
  const segments: Uint8Array[] = [];
  for (let at = headerBytes; at < packet.length; at += size) {
    const payload = packet.subarray(at, Math.min(at + size, packet.length));
    const last = at + size >= packet.length;
    const flags = packet[ipHeader + 13]!;
    segments.push(
      buildPacket({
        v6,
        protocol: tcp ? "tcp" : "udp",
        payload,
        sourcePort: view.getUint16(ipHeader),
        tos: v6 ? (view.getUint32(0) >>> 20) & 0xff : packet[1]!,
        ttl: packet[v6 ? 7 : 8]!,
        id: v6 ? 0 : (view.getUint16(4) + segments.length) & 0xffff,
        ...(tcp
          ? {
              sequence: (view.getUint32(ipHeader + 4) + at - headerBytes) >>> 0,
              acknowledgement: view.getUint32(ipHeader + 8),
              flags: last ? flags : flags & ~9,
              options: packet.slice(ipHeader + 20, headerBytes),
            }
          : {}),
      }),
    );
  }
  return segments;
}

function transportChecksum(packet: Uint8Array): number {
  const ipHeader = packet[0]! >> 4 === 6 ? 40 : (packet[0]! & 15) * 4;
  return onesComplement(Buffer.concat([pseudoBytes(packet, ipHeader), packet.subarray(ipHeader)]));
}

/** The pseudo-header as bytes; 40 of them in both families, the length at the end. */
function pseudoBytes(packet: Uint8Array, ipHeader: number): Uint8Array {
  const v6 = ipHeader === 40;
  const length = packet.length - ipHeader;
  return Buffer.concat([
    v6 ? packet.subarray(8, 40) : packet.subarray(12, 20),
    Uint8Array.of(0, packet[v6 ? 6 : 9]!, length >> 8, length & 0xff),
  ]);
}

function onesComplement(bytes: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) sum += bytes[i]! * 256 + (bytes[i + 1] ?? 0);
  while (sum > 0xffff) sum = Math.floor(sum / 0x10000) + (sum % 0x10000);
  return ~sum & 0xffff;
}
