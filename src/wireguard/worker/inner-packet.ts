/** Offsets and numbers of the IP packets inside the tunnel (RFC 791, 8200, 9293, 768). Multi-byte fields are big-endian. */
export const IPV4 = {
  minBytes: 20,
  tos: 1,
  totalLength: 2,
  id: 4,
  fragment: 6,
  ttl: 8,
  protocol: 9,
  checksum: 10,
  source: 12,
  destination: 16,
} as const;

export const IPV6 = {
  bytes: 40,
  payloadLength: 4,
  nextHeader: 6,
  hopLimit: 7,
  source: 8,
  destination: 24,
} as const;

export const TCP = {
  minBytes: 20,
  sourcePort: 0,
  sequence: 4,
  acknowledgement: 8,
  dataOffset: 12,
  flags: 13,
  checksum: 16,
} as const;
export const TcpFlag = { fin: 1, syn: 2, rst: 4, psh: 8, ack: 16, urg: 32, ece: 64, cwr: 128 } as const;

export const UDP = { bytes: 8, length: 4, checksum: 6 } as const;

export const PROTOCOL_TCP = 6;
export const PROTOCOL_UDP = 17;

/** linux/virtio_net.h: `struct virtio_net_hdr`, native byte order. */
export const VIRTIO = {
  bytes: 10,
  flags: 0,
  gsoType: 1,
  headerLength: 2,
  gsoSize: 4,
  checksumStart: 6,
  checksumOffset: 8,
} as const;
export const VIRTIO_NEEDS_CHECKSUM = 1;
export const VIRTIO_GSO_NONE = 0;
export const VIRTIO_GSO_TCPV4 = 1;
export const VIRTIO_GSO_TCPV6 = 4;
export const VIRTIO_GSO_UDP = 5;
export const VIRTIO_GSO_ECN = 0x80;

/** Length that the IP header claims, or 0 when this is no IP packet that fits into `available` bytes. */
export function ipLength(bytes: Uint8Array, at: number, available: number): number {
  if (available < IPV4.minBytes) return 0;
  const version = bytes[at]! >> 4;
  let length = 0;
  if (version === 4) {
    const headerBytes = (bytes[at]! & 15) * 4;
    length = (bytes[at + IPV4.totalLength]! << 8) | bytes[at + IPV4.totalLength + 1]!;
    if (headerBytes < IPV4.minBytes || length < headerBytes) return 0;
  } else if (version === 6) {
    if (available < IPV6.bytes) return 0;
    length = IPV6.bytes + ((bytes[at + IPV6.payloadLength]! << 8) | bytes[at + IPV6.payloadLength + 1]!);
  }
  return length <= available ? length : 0;
}
