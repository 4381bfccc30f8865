import { type IpAddress, ipFromBytes, ipToBytes, isV6, maskPrefix, type Prefix } from "#base/ip.ts";

/** A domain name in lower case without the dot at the end; the root is the empty text. Compare with `===`. */
export type DomainName = string & { readonly __brand: "DomainName" };

const V4_SUFFIX = "in-addr.arpa";
const V6_SUFFIX = "ip6.arpa";

/** DNS compares ASCII letters only (RFC 4343): other letters stay as they are. */
export function toDomainName(text: string): DomainName {
  const name = text.endsWith(".") ? text.slice(0, -1) : text;
  return (/[A-Z]/.test(name) ? name.replace(/[A-Z]+/g, (part) => part.toLowerCase()) : name) as DomainName;
}

/** Whether a text can be a name on the wire: labels of 1 to 63 bytes, 253 bytes in all (RFC 1035, section 2.3.4). */
export function isDomainName(text: string): boolean {
  const name = text.endsWith(".") ? text.slice(0, -1) : text;
  if (Buffer.byteLength(name) > 253) return false;
  return name.split(".").every((label) => label !== "" && Buffer.byteLength(label) <= 63);
}

/** The name above, undefined above a top-level name. */
export function parentOf(name: DomainName): DomainName | undefined {
  const dot = name.indexOf(".");
  return dot < 0 ? undefined : (name.slice(dot + 1) as DomainName);
}

/** The name in the reverse tree (RFC 1035, section 3.5; RFC 3596, section 2.5). */
export function reverseName(address: IpAddress): DomainName {
  const bytes = ipToBytes(address);
  const digits = isV6(address) ? nibblesOf(bytes) : [...bytes].map(String);
  return [...digits.reverse(), isV6(address) ? V6_SUFFIX : V4_SUFFIX].join(".") as DomainName;
}

/** The address that a name in the reverse tree stands for; undefined when it is not a whole address. */
export function parseReverseName(name: DomainName): IpAddress | undefined {
  const labels = name.split(".");
  const suffix = labels.slice(-2).join(".");
  const digits = labels.slice(0, -2).reverse();
  if (suffix === V4_SUFFIX) {
    const isWhole = digits.length === 4 && digits.every((digit) => /^(0|[1-9]\d{0,2})$/.test(digit) && +digit < 256);
    return isWhole ? ipFromBytes(Uint8Array.from(digits, Number)) : undefined;
  }
  if (suffix !== V6_SUFFIX || digits.length !== 32 || !digits.every((digit) => /^[0-9a-f]$/.test(digit)))
    return undefined;
  return ipFromBytes(Uint8Array.from(Buffer.from(digits.join(""), "hex")));
}

/**
 * The zones of the reverse tree that hold exactly the addresses of a prefix. One that does not end at a label's boundary needs
 * several: 100.64.0.0/10 is 64.100.in-addr.arpa to 127.100.in-addr.arpa.
 */
export function reverseZones(prefix: Prefix): DomainName[] {
  const { address, bits } = maskPrefix(prefix);
  const unit = isV6(address) ? 4 : 8;
  const suffix = isV6(address) ? V6_SUFFIX : V4_SUFFIX;
  const bytes = ipToBytes(address);
  const digits = isV6(address) ? nibblesOf(bytes).map((digit) => Number.parseInt(digit, 16)) : [...bytes];
  const whole = Math.floor(bits / unit);
  const rest = bits % unit;
  const above = digits.slice(0, whole);
  const spread = rest === 0 ? [] : Array.from({ length: 2 ** (unit - rest) }, (_, i) => digits[whole]! + i);
  const radix = isV6(address) ? 16 : 10;
  const zone = (parts: readonly number[]): DomainName =>
    [...parts.map((part) => part.toString(radix)).reverse(), suffix].join(".") as DomainName;
  return rest === 0 ? [zone(above)] : spread.map((last) => zone([...above, last]));
}

function nibblesOf(bytes: Uint8Array): string[] {
  return [...Buffer.from(bytes).toString("hex")];
}
