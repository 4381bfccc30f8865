import { type IpAddress, ipFromBytes, ipToBytes } from "#base/ip.ts";
import { isHandshake, MessageType, MIN_TRANSPORT_BYTES, readU32 } from "../../messages.ts";
import { addBytes, finish } from "../../worker/checksum.ts";
import { HANDSHAKE_BYTES, STUN_COOKIE, STUN_HEADER_BYTES, UDP_HEADER_BYTES } from "./raw-filter.ts";

const IPV4_HEADER_BYTES = 20;
const UDP_PROTOCOL = 17;

/** A UDP datagram as a raw socket shows it. */
export interface RawDatagram {
  readonly sourcePort: number;
  readonly destinationPort: number;
  /** A view of the message. */
  readonly payload: Uint8Array;
}

/** With the addresses that stand in the IPv4 header. */
export interface RawDatagramV4 extends RawDatagram {
  readonly source: IpAddress;
  readonly destination: IpAddress;
}

/** One message for the device's port. */
export interface RawPiece {
  readonly kind: "stun" | "handshake";
  /** A view of the payload. */
  readonly bytes: Uint8Array;
}

/** What a raw IPv4 socket receives, from the IP header (RFC 791) on; undefined when lengths do not fit. */
export function parseRawV4(message: Uint8Array): RawDatagramV4 | undefined {
  if (message.length < IPV4_HEADER_BYTES || message[0]! >> 4 !== 4 || message[9] !== UDP_PROTOCOL) return undefined;
  const headerBytes = (message[0]! & 15) * 4;
  const totalBytes = readU16(message, 2);
  if (headerBytes < IPV4_HEADER_BYTES || totalBytes < headerBytes || totalBytes > message.length) return undefined;
  const datagram = parseRawUdp(message.subarray(headerBytes, totalBytes));
  if (!datagram) return undefined;
  return { ...datagram, source: ipFromBytes(message.slice(12, 16)), destination: ipFromBytes(message.slice(16, 20)) };
}

/** What a raw IPv6 socket receives, from the UDP header (RFC 768) on. Its checksum is the kernel's business. */
export function parseRawUdp(message: Uint8Array): RawDatagram | undefined {
  if (message.length < UDP_HEADER_BYTES) return undefined;
  const [sourcePort, destinationPort, bytes] = [readU16(message, 0), readU16(message, 2), readU16(message, 4)];
  // Nobody can be answered at port 0.
  if (sourcePort === 0 || bytes < UDP_HEADER_BYTES || bytes > message.length) return undefined;
  return { sourcePort, destinationPort, payload: message.subarray(UDP_HEADER_BYTES, bytes) };
}

/**
 * The messages in a payload, usually one. A device whose socket asks for merged datagrams (UDP_GRO) makes the kernel merge what
 * came from one source before a raw socket sees it: pieces of one size, the last may be smaller. The first names its own size.
 */
export function* rawPieces(payload: Uint8Array): Generator<RawPiece> {
  const pieceBytes = ownBytes(payload);
  for (let at = 0; at < payload.length; at += pieceBytes) {
    const bytes = payload.subarray(at, at + pieceBytes);
    const kind = kindOf(bytes);
    if (kind) yield { kind, bytes };
  }
}

/** The size that the message at the start says it has, all when it says none. */
function ownBytes(payload: Uint8Array): number {
  const { length } = payload;
  if (isWireGuard(payload)) return Math.min(length, HANDSHAKE_BYTES.get(payload[0]!) ?? length);
  return isStun(payload) ? Math.min(length, STUN_HEADER_BYTES + readU16(payload, 2)) : Math.max(1, length);
}

function kindOf(bytes: Uint8Array): RawPiece["kind"] | undefined {
  if (isWireGuard(bytes)) return isHandshake(bytes) ? "handshake" : undefined;
  return isStun(bytes) ? "stun" : undefined;
}

/** Goes before the test for STUN: where that has its cookie a WireGuard message has an index (signal-and-peer-connection 3.6). */
function isWireGuard(bytes: Uint8Array): boolean {
  if (bytes.length < MIN_TRANSPORT_BYTES) return false;
  const word = readU32(bytes, 0);
  return word >= MessageType.initiation && word <= MessageType.transport;
}

function isStun(bytes: Uint8Array): boolean {
  return bytes.length >= STUN_HEADER_BYTES && ((readU16(bytes, 4) << 16) | readU16(bytes, 6)) === STUN_COOKIE;
}

/**
 * A UDP header and the payload behind it. With `source` and `destination`, which are IPv4, its checksum is in it; without
 * them it is 0, and the kernel's to fill in.
 */
export function encodeRawUdp(
  ports: { readonly source: number; readonly destination: number },
  payload: Uint8Array,
  addresses?: { readonly source: IpAddress; readonly destination: IpAddress },
): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(UDP_HEADER_BYTES + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, ports.source);
  view.setUint16(2, ports.destination);
  view.setUint16(4, bytes.length);
  bytes.set(payload, UDP_HEADER_BYTES);
  // 0 on the wire would say that there is none (RFC 768).
  if (addresses) view.setUint16(6, checksumV4(view, addresses) || 0xffff, true);
  return bytes;
}

/** Over the pseudo header (source, destination, protocol, UDP length) and the datagram, as checksum.ts stores it. */
function checksumV4(
  datagram: DataView,
  { source, destination }: { source: IpAddress; destination: IpAddress },
): number {
  const pseudo = new Uint8Array(12);
  pseudo.set(ipToBytes(source), 0);
  pseudo.set(ipToBytes(destination), 4);
  const view = new DataView(pseudo.buffer);
  view.setUint16(8, UDP_PROTOCOL);
  view.setUint16(10, datagram.byteLength);
  return finish(addBytes(datagram, 0, datagram.byteLength, addBytes(view, 0, pseudo.length, 0)));
}

function readU16(bytes: Uint8Array, at: number): number {
  return (bytes[at]! << 8) | bytes[at + 1]!;
}
