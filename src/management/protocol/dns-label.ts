/** Names of peers. Source: protocol/management.md, section 4.7. */
import { domainToASCII } from "node:url";
import { type IpAddress, ipToBytes } from "#base/ip.ts";

/** Longest label made from a host name; the suffix of a taken one comes on top. */
export const DNS_LABEL_MAX = 59;
/** Longest label DNS can carry (RFC 1035, section 2.3.4). */
const DNS_WIRE_LABEL_MAX = 63;
/** Most extra labels a peer may ask for. */
export const EXTRA_DNS_LABELS_MAX = 32;

/** What a host name that leaves nothing usable becomes. */
const FALLBACK_LABEL = "peer";

/**
 * The label of a host name: its first dot-separated part in punycode, every run of other characters than letters, digits
 * and hyphens replaced by one hyphen, lower-case, at most 59 characters. Never empty.
 */
export function dnsLabelOf(hostname: string): string {
  const first = hostname.normalize("NFC").split(".")[0]!;
  // The IDNA step refuses a label that holds a space or an underscore, so what ASCII cannot stay is replaced before it.
  const cleaned = first.replace(/[^A-Za-z0-9\u0080-\u{10ffff}-]+/gu, "-");
  const ascii = isAscii(cleaned) ? cleaned : domainToASCII(cleaned);
  const label = ascii
    .replace(/[^A-Za-z0-9-]+/g, "-")
    .toLowerCase()
    .slice(0, DNS_LABEL_MAX);
  return /[a-z0-9]/.test(label) ? label : FALLBACK_LABEL;
}

/** The label of an ephemeral peer, or of one whose name is taken: `label-<third octet>-<fourth octet>` of its IPv4. */
export function suffixedDnsLabel(label: string, address: IpAddress): string {
  const [, , third, fourth] = ipToBytes(address);
  const suffix = `-${third}-${fourth}`;
  // 59 characters and "-255-255" would be four more than DNS carries.
  return label.slice(0, DNS_WIRE_LABEL_MAX - suffix.length) + suffix;
}

/** Whether `label` can be an extra label as it stands: lower-case letters, digits, inner hyphens, at most 63. */
export function isDnsLabel(label: string): boolean {
  return label.length <= DNS_WIRE_LABEL_MAX && /^[a-z0-9]([a-z0-9-]*[a-z0-9])?$/.test(label);
}

export function fqdnOf(label: string, domain: string): string {
  return `${label}.${domain}`;
}

function isAscii(text: string): boolean {
  return [...text].every((character) => character.codePointAt(0)! < 0x80);
}
