/**
 * Compact prefixes: address bytes followed by one byte of prefix length, 5 bytes for IPv4 and 17 for IPv6.
 * Source: protocol/management.md, section 3.8.
 */
import { AddressError, ipFromBytes, ipToBytes, type Prefix } from "#base/ip.ts";

export function encodeCompactPrefix(prefix: Prefix): Uint8Array {
  const address = ipToBytes(prefix.address);
  const bytes = new Uint8Array(address.length + 1);
  bytes.set(address);
  bytes[address.length] = prefix.bits;
  return bytes;
}

/** Host bits are kept; an IPv4-mapped IPv6 address becomes IPv4. Throws AddressError. */
export function decodeCompactPrefix(bytes: Uint8Array): Prefix {
  if (bytes.length !== 5 && bytes.length !== 17)
    throw new AddressError("prefix-malformed", `a compact prefix has 5 or 17 bytes, got ${bytes.length}`);
  const address = ipFromBytes(bytes.subarray(0, -1));
  const length = bytes[bytes.length - 1]!;
  const mapped = bytes.length === 17 && !address.includes(":");
  const bits = mapped ? length - 96 : length;
  const most = address.includes(":") ? 128 : 32;
  if (bits < 0 || bits > most)
    throw new AddressError("prefix-malformed", `prefix length ${length} of ${address} is out of range`);
  return { address, bits };
}
