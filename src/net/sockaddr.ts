import { type Endpoint, type IpAddress, ipFromBytes, ipToBytes, isV6 } from "#base/ip.ts";

/*
 * sockaddr_in   16 B: family 0/2 LE (2), port 2/2 BE, address 4/4, zero 8/8
 * sockaddr_in6  28 B: family 0/2 LE (10), port 2/2 BE, flow info 4/4, address 8/16, scope id 24/4
 */
export const AF_INET = 2;
export const AF_INET6 = 10;
export const SOCKADDR_IN_BYTES = 16;
export const SOCKADDR_IN6_BYTES = 28;

/** The kernel's form of an endpoint: 16 or 28 bytes. `scopeId` is the interface of a link-local IPv6 address. */
export function encodeSockaddr(endpoint: Endpoint, scopeId = 0): Uint8Array<ArrayBuffer> {
  const v6 = isV6(endpoint.address);
  const bytes = new Uint8Array(v6 ? SOCKADDR_IN6_BYTES : SOCKADDR_IN_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, v6 ? AF_INET6 : AF_INET, true);
  view.setUint16(2, endpoint.port);
  bytes.set(ipToBytes(endpoint.address), v6 ? 8 : 4);
  if (v6) view.setUint32(24, scopeId, true);
  return bytes;
}

/** The endpoint at `offset`; undefined for another family. */
export function decodeSockaddr(bytes: Uint8Array, offset = 0): Endpoint | undefined {
  const family = bytes[offset]! | (bytes[offset + 1]! << 8);
  const port = (bytes[offset + 2]! << 8) | bytes[offset + 3]!;
  if (family === AF_INET) return { address: addressAt(bytes, offset + 4, 4), port };
  if (family === AF_INET6) return { address: addressAt(bytes, offset + 8, 16), port };
  return undefined;
}

function addressAt(bytes: Uint8Array, offset: number, length: number): IpAddress {
  return ipFromBytes(bytes.slice(offset, offset + length));
}
