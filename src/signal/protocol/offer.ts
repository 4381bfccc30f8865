import { randomBytes, randomInt } from "node:crypto";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { type IpAddress, ipFromBytes, ipToBytes } from "#base/ip.ts";
import { type Body, Body_Type, BodySchema, type PerchNat, PerchNat_Mapping, PerchNat_Udp } from "#gen/signal_pb.ts";

/*
 * What OFFER and ANSWER say, both in the same form (signal-and-peer-connection.md, 1.7, 2.2, 2.4).
 */

const UFRAG_LENGTH = 16;
const PASSWORD_LENGTH = 32;
const SESSION_ID_BYTES = 5;
/** Longest ufrag and longest password, characters (RFC 8839, section 5.4). */
const CREDENTIAL_MAX_LENGTH = 256;

/** ICE short-term credentials of one side. */
export interface IceCredentials {
  readonly ufrag: string;
  readonly password: string;
}

/** Names one life of the sender's ICE agent: 10 hexadecimal digits (5 bytes). */
export type SessionId = string & { readonly __brand: "SessionId" };

export const SessionId = {
  create(): SessionId {
    return randomBytes(SESSION_ID_BYTES).toString("hex") as SessionId;
  },
  /** Undefined for any other length than 5 bytes. */
  fromBytes(bytes: Uint8Array | undefined): SessionId | undefined {
    return bytes?.length === SESSION_ID_BYTES ? (Buffer.from(bytes).toString("hex") as SessionId) : undefined;
  },
  toBytes(id: SessionId): Uint8Array {
    return new Uint8Array(Buffer.from(id, "hex"));
  },
};

/** The home relay of an agent. */
export interface RelayAddress {
  /** The exact instance URL; compared byte for byte, never normalised. */
  readonly instanceUrl: string;
  /** Where the agent itself reached it. */
  readonly address?: IpAddress;
}

/** The contents of an OFFER or ANSWER. */
export interface Offer {
  /** Absent: the sender does without ICE, only relays count. */
  readonly credentials?: IceCredentials;
  /** Absent from agents older than 0.55 and from those without ICE. */
  readonly sessionId?: SessionId;
  /** UDP port of the sender's WireGuard; 0 when unknown. */
  readonly listenPort: number;
  /** Any text. */
  readonly version: string;
  /** Absent while the sender is connected to no relay. */
  readonly relay?: RelayAddress;
  /** Present exactly when the sender is a Perch agent. */
  readonly perch?: PerchExtension;
}

/** What only Perch agents tell each other. */
export interface PerchExtension {
  /** CANDIDATE payloads known when the message was written. */
  readonly candidates: readonly string[];
  /** Absent: the sender tells nothing of it. */
  readonly nat?: NatReport;
  /** The sender agrees with its peer before it sleeps (sleep-message.ts). */
  readonly agreesOnSleep?: boolean;
}

/** UDP and the IPv4 NAT as one side finds them; for diagnosis, nothing is decided by it. */
export interface NatReport {
  readonly mapping: keyof typeof MAPPINGS;
  readonly udp: keyof typeof UDP;
}

const MAPPINGS = {
  unknown: PerchNat_Mapping.MAPPING_UNKNOWN,
  none: PerchNat_Mapping.NO_NAT,
  "endpoint-independent": PerchNat_Mapping.ENDPOINT_INDEPENDENT,
  "endpoint-dependent": PerchNat_Mapping.ENDPOINT_DEPENDENT,
} as const;

/** `silent`: STUN servers were asked and none answered. */
const UDP = { unknown: PerchNat_Udp.UDP_UNKNOWN, works: PerchNat_Udp.WORKS, silent: PerchNat_Udp.SILENT } as const;

/** New credentials: 16 and 32 random letters. */
export function createCredentials(): IceCredentials {
  return { ufrag: randomLetters(UFRAG_LENGTH), password: randomLetters(PASSWORD_LENGTH) };
}

/** `<ufrag>:<password>`, or a lone colon. */
export function formatCredentials(credentials: IceCredentials | undefined): string {
  return `${credentials?.ufrag ?? ""}:${credentials?.password ?? ""}`;
}

/** `malformed` unless there is exactly one colon and no half is longer than ICE allows; `none` when either half is empty. */
export function parseCredentials(payload: string): IceCredentials | "none" | "malformed" {
  const [ufrag, password, ...more] = payload.split(":");
  if (ufrag === undefined || password === undefined || more.length > 0) return "malformed";
  if (ufrag.length > CREDENTIAL_MAX_LENGTH || password.length > CREDENTIAL_MAX_LENGTH) return "malformed";
  return ufrag && password ? { ufrag, password } : "none";
}

export function createOfferBody(type: "offer" | "answer", offer: Offer): Body {
  const { credentials, sessionId, listenPort, version, relay, perch } = offer;
  return create(BodySchema, {
    type: type === "offer" ? Body_Type.OFFER : Body_Type.ANSWER,
    payload: formatCredentials(credentials),
    wgListenPort: listenPort,
    netBirdVersion: version,
    rosenpassConfig: {},
    ...(relay && { relayServerAddress: relay.instanceUrl }),
    ...(relay?.address && { relayServerIP: ipToBytes(relay.address) }),
    ...(credentials && sessionId && { sessionId: SessionId.toBytes(sessionId) }),
    ...(perch && {
      perch: {
        candidates: [...perch.candidates],
        agreesOnSleep: perch.agreesOnSleep ?? false,
        ...(perch.nat && { nat: { mapping: MAPPINGS[perch.nat.mapping], udp: UDP[perch.nat.udp] } }),
      },
    }),
  });
}

/** Reads an OFFER or ANSWER; undefined when its payload holds no credentials. Unusable optional fields are left out. */
export function parseOfferBody(body: Body): Offer | undefined {
  const credentials = parseCredentials(body.payload);
  if (credentials === "malformed") return undefined;
  const sessionId = SessionId.fromBytes(body.sessionId);
  const ip = body.relayServerIP;
  const address = ip?.length === 4 || ip?.length === 16 ? ipFromBytes(ip) : undefined;
  return {
    listenPort: body.wgListenPort <= 65535 ? body.wgListenPort : 0,
    version: body.netBirdVersion,
    ...(credentials !== "none" && { credentials }),
    ...(sessionId && { sessionId }),
    ...(body.relayServerAddress && {
      relay: { instanceUrl: body.relayServerAddress, ...(address && { address }) },
    }),
    ...(body.perch && {
      perch: {
        candidates: body.perch.candidates,
        ...(body.perch.agreesOnSleep && { agreesOnSleep: true }),
        ...(body.perch.nat && { nat: parseNat(body.perch.nat) }),
      },
    }),
  };
}

export function createCandidateBody(line: string): Body {
  return createBody({ type: Body_Type.CANDIDATE, payload: line });
}

export function createGoIdleBody(): Body {
  return createBody({ type: Body_Type.GO_IDLE });
}

export function createHeartbeatBody(): Body {
  return createBody({ type: Body_Type.HEARTBEAT });
}

/** Numbers of a later version count as unknown. */
function parseNat(nat: PerchNat): NatReport {
  return { mapping: nameOf(MAPPINGS, nat.mapping) ?? "unknown", udp: nameOf(UDP, nat.udp) ?? "unknown" };
}

function nameOf<Name extends string>(numbers: Readonly<Record<Name, number>>, number: number): Name | undefined {
  return (Object.keys(numbers) as Name[]).find((name) => numbers[name] === number);
}

function createBody(init: MessageInitShape<typeof BodySchema>): Body {
  return create(BodySchema, init);
}

function randomLetters(length: number): string {
  const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  return Array.from({ length }, () => letters[randomInt(letters.length)]).join("");
}
