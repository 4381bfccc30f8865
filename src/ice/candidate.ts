import { randomBytes } from "node:crypto";
import { crc32 } from "node:zlib";
import { type Endpoint, type IpAddress, isV6, parseIp } from "#base/ip.ts";

/*
 * The payload of a CANDIDATE message (signal-and-peer-connection.md, 3.3; RFC 8839, 5.1):
 *
 *   foundation component "udp" priority address port "typ" type [ "raddr" address "rport" port ] *( name value )
 *
 * Fields are separated by one space. Extensions stock agents add: `ufrag` (of the sender) and `cid` (opaque, unique per
 * candidate).
 */

export const CANDIDATE_TYPES = ["host", "srflx", "prflx", "relay"] as const;
export type CandidateType = (typeof CANDIDATE_TYPES)[number];

/** One way to reach an agent. */
export interface Candidate {
  /** Up to 32 characters of `[A-Za-z0-9+/]`, may be empty. */
  readonly foundation: string;
  /** Always 1 from stock agents. */
  readonly component: number;
  readonly transport: "udp";
  /** Unsigned 32 bits. */
  readonly priority: number;
  /** Port is never 0. */
  readonly endpoint: Endpoint;
  readonly type: CandidateType;
  /** The base of a reflexive or relayed candidate; absent when unknown or its port is 0. */
  readonly related?: Endpoint;
  readonly ufrag?: string;
  readonly cid?: string;
}

/** Longest candidate text that is parsed, characters. */
export const CANDIDATE_MAX_LENGTH = 1024;

const TYPE_PREFERENCE: Readonly<Record<CandidateType, number>> = { host: 126, prflx: 110, srflx: 100, relay: 0 };
const LOCAL_PREFERENCE = 65535;
const CID_LENGTH = 32;

/** RFC 8445, 5.1.2.1, for component 1 with the local preference that stock agents use. */
export function candidatePriority(type: CandidateType, localPreference = LOCAL_PREFERENCE): number {
  return TYPE_PREFERENCE[type] * 2 ** 24 + localPreference * 2 ** 8 + 255;
}

/** Decimal CRC-32 of type, address and network written one after the other; equal for candidates of one kind and base. */
export function candidateFoundation(type: CandidateType, address: IpAddress): string {
  return String(crc32(`${type}${address}${isV6(address) ? "udp6" : "udp4"}`));
}

/** A new opaque id for the `cid` extension: 32 characters of `[A-Za-z0-9+/]`. */
export function createCandidateId(): string {
  return randomBytes((CID_LENGTH * 3) / 4).toString("base64");
}

/**
 * Parses a payload; undefined when it is none or one this agent cannot use (TCP, a host name instead of an address, port
 * 0). Tolerated: an `a=` or `candidate:` prefix, repeated spaces, capital letters in keywords, an empty foundation, a zone,
 * unknown extensions, a last extension without value.
 */
export function parseCandidate(payload: string): Candidate | undefined {
  if (payload.length > CANDIDATE_MAX_LENGTH) return undefined;
  const tokens = payload
    .trim()
    .replace(/^(a=)?(candidate:)?/, "")
    .split(/\s+/)
    .filter((token) => token !== "");
  // Without a foundation the transport comes second.
  if (tokens[1]?.toLowerCase() === "udp") tokens.unshift("");
  const [foundation, component, transport, priority, address, port, typ, kind] = tokens;
  if (transport?.toLowerCase() !== "udp" || typ?.toLowerCase() !== "typ") return undefined;
  const type = CANDIDATE_TYPES.find((name) => name === kind?.toLowerCase());
  const endpoint = endpointOf(address, port);
  const componentNumber = integer(component, 65535);
  const priorityNumber = integer(priority, 2 ** 32 - 1);
  if (!type || !endpoint || componentNumber === undefined || priorityNumber === undefined) return undefined;
  if (foundation === undefined || !/^[A-Za-z0-9+/]{0,32}$/.test(foundation)) return undefined;

  const extensions = new Map<string, string>();
  for (let i = 8; i < tokens.length; i += 2) {
    const name = tokens[i]!;
    if (!extensions.has(name)) extensions.set(name, tokens[i + 1] ?? "");
  }
  const related = endpointOf(extensions.get("raddr"), extensions.get("rport"));
  const ufrag = extensions.get("ufrag");
  const cid = extensions.get("cid");
  return {
    foundation,
    component: componentNumber,
    transport: "udp",
    priority: priorityNumber,
    endpoint,
    type,
    ...(related && { related }),
    ...(ufrag && { ufrag }),
    ...(cid && { cid }),
  };
}

/** The payload stock agents write for the same candidate, byte for byte. */
export function formatCandidate(candidate: Candidate): string {
  const { foundation, component, transport, priority, endpoint, type, related, ufrag, cid } = candidate;
  let line = `${foundation} ${component} ${transport} ${priority} ${endpoint.address} ${endpoint.port} typ ${type}`;
  if (related && related.port !== 0) line += ` raddr ${related.address} rport ${related.port}`;
  if (ufrag) line += ` ufrag ${ufrag}`;
  if (cid) line += ` cid ${cid}`;
  return line;
}

function endpointOf(address: string | undefined, port: string | undefined): Endpoint | undefined {
  const number = integer(port, 65535);
  if (!address || !number) return undefined;
  try {
    return { address: parseIp(address.replace(/%.*$/, "")), port: number };
  } catch {
    return undefined;
  }
}

function integer(text: string | undefined, most: number): number | undefined {
  if (text === undefined || !/^\d{1,10}$/.test(text)) return undefined;
  const value = Number(text);
  return value <= most ? value : undefined;
}
