import { randomInt } from "node:crypto";
import { type NetworkInterfaceInfo, networkInterfaces } from "node:os";
import { type Endpoint, type IpAddress, ipToBytes, isV6, type Prefix, parseIp, prefixContains } from "#base/ip.ts";
import {
  type Candidate,
  type CandidateType,
  candidateFoundation,
  candidatePriority,
  createCandidateId,
} from "./candidate.ts";

/**
 * Interfaces whose name starts with one of these are not offered: ours, lest one tunnel runs through another of the same
 * machine, and those that stock agents leave out (signal-and-peer-connection.md, 3.1).
 */
export const DEFAULT_INTERFACE_BLACKLIST: readonly string[] = [
  "perch",
  "wt0",
  "wt",
  "utun",
  "tun0",
  "zt",
  "ZeroTier",
  "wg",
  "ts",
  "Tailscale",
  "tailscale",
  "docker",
  "veth",
  "br-",
  "lo",
];

export interface HostCandidateOptions {
  /** Port of the shared socket, both families. */
  readonly port: number;
  readonly ufrag: string;
  /** Name prefixes that are skipped; default DEFAULT_INTERFACE_BLACKLIST. `[]` offers everything but loopback. */
  readonly blacklist?: readonly string[];
  /** The overlay's own interfaces, by full name. */
  readonly ownInterfaces?: readonly string[];
  /** The overlay's ranges; no address in them is offered, whatever interface has it. */
  readonly overlay?: readonly Prefix[];
  /** Default both. */
  readonly families?: readonly (4 | 6)[];
  /** Default os.networkInterfaces(). */
  readonly interfaces?: NodeJS.Dict<NetworkInterfaceInfo[]>;
}

/**
 * One host candidate per usable local address, interfaces in the order the system names them. Priorities are those of stock
 * agents, equal for all host candidates.
 */
export function gatherHostCandidates(options: HostCandidateOptions): Candidate[] {
  const { port, ufrag, families = [4, 6] } = options;
  const addresses = new Set<IpAddress>();
  for (const [name, entries] of Object.entries(options.interfaces ?? networkInterfaces())) {
    if (!isUsableInterface(name, options)) continue;
    for (const entry of entries ?? []) {
      if (entry.internal) continue;
      const address = parseIp(entry.address.replace(/%.*$/, ""));
      if (!families.includes(isV6(address) ? 6 : 4) || !isUsableAddress(address)) continue;
      if (options.overlay?.some((prefix) => prefixContains(prefix, address))) continue;
      addresses.add(address);
    }
  }
  return [...addresses].map((address) => createCandidate("host", { address, port }, ufrag));
}

/**
 * The candidate for what a STUN server saw; undefined when that is a host candidate's own address (no NAT).
 * `related` is the host candidate of the family that is offered first, as stock agents do.
 */
export function serverReflexiveCandidate(
  mapped: Endpoint,
  hosts: readonly Candidate[],
  ufrag: string,
): Candidate | undefined {
  const family = hosts.filter(({ endpoint }) => isV6(endpoint.address) === isV6(mapped.address));
  if (family.some(({ endpoint }) => endpoint.address === mapped.address && endpoint.port === mapped.port))
    return undefined;
  return createCandidate("srflx", mapped, ufrag, family[0]?.endpoint);
}

/** Letters of a new ICE ufrag and password, as long as stock agents make them. */
export function createIceCredentials(): { readonly ufrag: string; readonly pwd: string } {
  return { ufrag: randomLetters(16), pwd: randomLetters(32) };
}

function createCandidate(type: CandidateType, endpoint: Endpoint, ufrag: string, related?: Endpoint): Candidate {
  return {
    foundation: candidateFoundation(type, endpoint.address),
    component: 1,
    transport: "udp",
    priority: candidatePriority(type),
    endpoint,
    type,
    ...(related && { related }),
    ufrag,
    cid: createCandidateId(),
  };
}

function isUsableInterface(name: string, options: HostCandidateOptions): boolean {
  if (options.ownInterfaces?.includes(name)) return false;
  return !(options.blacklist ?? DEFAULT_INTERFACE_BLACKLIST).some((prefix) => name.startsWith(prefix));
}

/** Not loopback, link-local, unspecified, IPv4-compatible, nor site-local. */
function isUsableAddress(address: IpAddress): boolean {
  const bytes = ipToBytes(address);
  if (!isV6(address)) return bytes[0] !== 0 && bytes[0] !== 127 && !(bytes[0] === 169 && bytes[1] === 254);
  if (bytes.subarray(0, 12).every((byte) => byte === 0)) return false;
  return !(bytes[0] === 0xfe && (bytes[1]! & 0x80) === 0x80);
}

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

function randomLetters(count: number): string {
  return Array.from({ length: count }, () => LETTERS[randomInt(LETTERS.length)]).join("");
}
