import { foldChecksum, ipv4ToNumber, onesSum, PROTOCOL, write16, write32 } from "./packet.ts";

/** An IPv4 packet in words. */
export interface SamplePacket {
  readonly protocol: "udp" | "tcp" | "icmp";
  readonly source: string;
  readonly destination: string;
  /** For ICMP the echo id. Default 1000. */
  readonly sourcePort?: number;
  /** Default 2000. */
  readonly destinationPort?: number;
  readonly payload?: Uint8Array;
  /** Default 64. */
  readonly ttl?: number;
  /** TCP: default SYN. */
  readonly flags?: number;
  /** ICMP: default 8, echo request. */
  readonly type?: number;
  readonly dontFragment?: boolean;
}

const TRANSPORT_BYTES = { udp: 8, tcp: 20, icmp: 8 } as const;
const CHECKSUM_AT = { udp: 6, tcp: 16, icmp: 2 } as const;

/** A correct packet with all checksums: for tests, and to run the router's code before it counts. */
export function encodeSamplePacket(sample: SamplePacket): Uint8Array {
  const { protocol, payload = new Uint8Array(0), sourcePort = 1000, destinationPort = 2000 } = sample;
  const header = TRANSPORT_BYTES[protocol];
  const bytes = new Uint8Array(20 + header + payload.length);
  bytes[0] = 0x45;
  write16(bytes, 2, bytes.length);
  if (sample.dontFragment) bytes[6] = 0x40;
  bytes[8] = sample.ttl ?? 64;
  bytes[9] = PROTOCOL[protocol];
  write32(bytes, 12, ipv4ToNumber(sample.source));
  write32(bytes, 16, ipv4ToNumber(sample.destination));
  write16(bytes, 10, foldChecksum(onesSum(bytes, 0, 20)));
  bytes.set(payload, 20 + header);
  if (protocol === "icmp") {
    bytes[20] = sample.type ?? 8;
    write16(bytes, 24, sourcePort);
  } else {
    write16(bytes, 20, sourcePort);
    write16(bytes, 22, destinationPort);
    if (protocol === "udp") write16(bytes, 24, header + payload.length);
    else {
      bytes[32] = 0x50;
      bytes[33] = sample.flags ?? 0x02;
    }
  }
  write16(bytes, 20 + CHECKSUM_AT[protocol], transportChecksum(bytes));
  return bytes;
}

/** What the transport checksum of an unfragmented IPv4 packet must be, computed from scratch; its field counts as zero. */
export function transportChecksum(bytes: Uint8Array, length = bytes.length): number {
  const copy = bytes.slice(0, length);
  const protocol = copy[9]!;
  const name = protocol === PROTOCOL.udp ? "udp" : protocol === PROTOCOL.tcp ? "tcp" : "icmp";
  write16(copy, 20 + CHECKSUM_AT[name], 0);
  const pseudo = name === "icmp" ? 0 : onesSum(copy, 12, 20, protocol + length - 20);
  const checksum = foldChecksum(onesSum(copy, 20, length, pseudo));
  return name === "udp" && checksum === 0 ? 0xffff : checksum;
}
