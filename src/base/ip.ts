import { isIPv4, isIPv6 } from "node:net";
import { PerchError } from "./errors.ts";

export class AddressError extends PerchError<"address-malformed" | "prefix-malformed" | "endpoint-malformed"> {}

/** An IPv4 or IPv6 address in canonical text (RFC 5952 for IPv6, no zone, no brackets); compare with `===`. */
export type IpAddress = string & { readonly __brand: "IpAddress" };

/** An address range: host bits are zero where it is a network, kept where it is an interface address. */
export interface Prefix {
  readonly address: IpAddress;
  readonly bits: number;
}

/** A UDP or TCP endpoint. */
export interface Endpoint {
  readonly address: IpAddress;
  readonly port: number;
}

/** Parses IPv4 or IPv6 text; an IPv4-mapped IPv6 address becomes IPv4, a zone is refused. Throws AddressError. */
export function parseIp(text: string): IpAddress {
  if (isIPv4(text)) return text as IpAddress;
  if (isIPv6(text) && !text.includes("%")) return ipFromBytes(parseV6(text));
  throw new AddressError("address-malformed", `not an IP address: ${JSON.stringify(text.slice(0, 64))}`);
}

export function isV6(address: IpAddress): boolean {
  return address.includes(":");
}

/** 4 or 16 bytes, network order. */
export function ipToBytes(address: IpAddress): Uint8Array {
  if (isV6(address)) return parseV6(address);
  const bytes = new Uint8Array(4);
  address.split(".").forEach((part, index) => {
    bytes[index] = Number(part);
  });
  return bytes;
}

/** From 4 or 16 bytes, network order; an IPv4-mapped address becomes IPv4. */
export function ipFromBytes(bytes: Uint8Array): IpAddress {
  if (bytes.length === 4) return bytes.join(".") as IpAddress;
  if (bytes.length !== 16)
    throw new AddressError("address-malformed", `an address has 4 or 16 bytes, got ${bytes.length}`);
  const groups: number[] = [];
  for (let i = 0; i < 16; i += 2) groups.push((bytes[i]! << 8) | bytes[i + 1]!);
  if (groups.slice(0, 5).every((group) => group === 0) && groups[5] === 0xffff)
    return bytes.subarray(12).join(".") as IpAddress;
  return formatV6(groups) as IpAddress;
}

/** `address/bits`; without `/bits` a host prefix. Host bits are kept. Throws AddressError. */
export function parsePrefix(text: string): Prefix {
  const slash = text.indexOf("/");
  const address = parseIp(slash < 0 ? text : text.slice(0, slash));
  const most = isV6(address) ? 128 : 32;
  const length = slash < 0 ? String(most) : text.slice(slash + 1);
  const bits = /^\d{1,3}$/.test(length) ? Number(length) : Number.NaN;
  if (!(bits >= 0 && bits <= most)) {
    throw new AddressError(
      "prefix-malformed",
      `prefix length of ${JSON.stringify(text.slice(0, 64))} must be 0 to ${most}`,
    );
  }
  return { address, bits };
}

export function formatPrefix(prefix: Prefix): string {
  return `${prefix.address}/${prefix.bits}`;
}

/** The same prefix with all host bits zero. */
export function maskPrefix(prefix: Prefix): Prefix {
  if (isHostPrefix(prefix)) return prefix;
  const bytes = ipToBytes(prefix.address);
  for (let i = 0; i < bytes.length; i++) {
    const keep = Math.min(8, Math.max(0, prefix.bits - i * 8));
    bytes[i]! &= (0xff00 >> keep) & 0xff;
  }
  return { address: ipFromBytes(bytes), bits: prefix.bits };
}

export function prefixContains(prefix: Prefix, address: IpAddress): boolean {
  if (isV6(prefix.address) !== isV6(address)) return false;
  const most = isV6(address) ? 128 : 32;
  return maskPrefix({ address, bits: Math.min(prefix.bits, most) }).address === maskPrefix(prefix).address;
}

export function isHostPrefix(prefix: Prefix): boolean {
  return prefix.bits === (isV6(prefix.address) ? 128 : 32);
}

/** `1.2.3.4:5` or `[2001:db8::1]:5`. Throws AddressError. */
export function parseEndpoint(text: string): Endpoint {
  const match = /^(?:\[([^\]]+)\]|([^:]+)):(\d{1,5})$/.exec(text);
  const port = match ? Number(match[3]) : Number.NaN;
  if (!match || !(port >= 0 && port <= 65535)) {
    throw new AddressError("endpoint-malformed", `not ADDRESS:PORT: ${JSON.stringify(text.slice(0, 64))}`);
  }
  return { address: parseIp((match[1] ?? match[2])!), port };
}

export function formatEndpoint(endpoint: Endpoint): string {
  return isV6(endpoint.address) ? `[${endpoint.address}]:${endpoint.port}` : `${endpoint.address}:${endpoint.port}`;
}

export function sameEndpoint(a: Endpoint | undefined, b: Endpoint | undefined): boolean {
  return a?.address === b?.address && a?.port === b?.port;
}

function parseV6(text: string): Uint8Array {
  let rest = text;
  const dotted = /(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(text);
  if (dotted) {
    const [a, b, c, d] = dotted.slice(1).map(Number) as [number, number, number, number];
    rest = `${text.slice(0, dotted.index)}${((a << 8) | b).toString(16)}:${((c << 8) | d).toString(16)}`;
  }
  const [head = "", tail] = rest.split("::");
  const left = head ? head.split(":") : [];
  const right = tail ? tail.split(":") : [];
  const groups = [...left, ...Array(8 - left.length - right.length).fill("0"), ...right];
  const bytes = new Uint8Array(16);
  groups.forEach((group, index) => {
    const value = Number.parseInt(group, 16);
    bytes[index * 2] = value >> 8;
    bytes[index * 2 + 1] = value & 0xff;
  });
  return bytes;
}

function formatV6(groups: readonly number[]): string {
  let best = -1;
  let bestLength = 1;
  for (let start = 0; start < 8; start++) {
    let length = 0;
    while (start + length < 8 && groups[start + length] === 0) length++;
    if (length > bestLength) [best, bestLength] = [start, length];
  }
  const hex = groups.map((group) => group.toString(16));
  if (best < 0) return hex.join(":");
  return `${hex.slice(0, best).join(":")}::${hex.slice(best + bestLength).join(":")}`;
}
