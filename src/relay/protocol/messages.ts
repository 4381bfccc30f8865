import { PerchError, unreachable } from "#base/errors.ts";
import { PEER_ID_BYTES, PeerId } from "./peer-id.ts";

/*
 * Messages between agent and relay (relay.md, section 3). One message is one binary WebSocket message in one frame.
 *
 *   0         1      2                            38
 *   +---------+------+----------------------------+----------------
 *   | version | type | peer ID (36)               | payload            Transport (3): destination up, source down
 *   +---------+------+----------------------------+----------------
 *   | version | type | magic (4) | peer ID (36)   | token              Auth (6), up
 *   | version | type | instance URL, UTF-8, at least 1 byte            AuthResponse (7), down
 *   | version | type | N x peer ID (36)                                Subscribe (8), Unsubscribe (9), up;
 *   |         |      |                                                 PeersOnline (10), PeersWentOffline (11), down
 *   | version | type |                                                 Close (4), HealthCheck (5), both ways
 */

export const RELAY_VERSION = 1;

export const RelayType = {
  transport: 3,
  close: 4,
  healthCheck: 5,
  auth: 6,
  authResponse: 7,
  subscribe: 8,
  unsubscribe: 9,
  peersOnline: 10,
  peersWentOffline: 11,
} as const;
export type RelayType = (typeof RelayType)[keyof typeof RelayType];

/** The types that carry a list of peer IDs. */
export type PeerListType =
  | typeof RelayType.subscribe
  | typeof RelayType.unsubscribe
  | typeof RelayType.peersOnline
  | typeof RelayType.peersWentOffline;

export const RELAY_HEADER_BYTES = 2;
export const TRANSPORT_HEADER_BYTES = RELAY_HEADER_BYTES + PEER_ID_BYTES;
/** Longest message, bytes; stock readers have room for no more. */
export const RELAY_MESSAGE_MAX_BYTES = 8820;
/** Longest Auth, bytes. */
export const AUTH_MAX_BYTES = 212;
export const AUTH_RESPONSE_MAX_BYTES = 8192;
export const TRANSPORT_PAYLOAD_MAX_BYTES = RELAY_MESSAGE_MAX_BYTES - TRANSPORT_HEADER_BYTES;
/** Most peer IDs in one message. */
export const PEER_LIST_MAX_IDS = Math.floor((RELAY_MESSAGE_MAX_BYTES - RELAY_HEADER_BYTES) / PEER_ID_BYTES);
/** Path of the WebSocket on every relay. */
export const RELAY_PATH = "/relay";

const MAGIC = Buffer.of(0x21, 0x12, 0xa4, 0x42);
const AUTH_HEADER_BYTES = RELAY_HEADER_BYTES + MAGIC.length + PEER_ID_BYTES;
export const TOKEN_MAX_BYTES = AUTH_MAX_BYTES - AUTH_HEADER_BYTES;

export class RelayMessageError extends PerchError<
  "relay-token-too-long" | "relay-payload-too-long" | "relay-url-length"
> {}

/** Exactly `01 04`. */
export const CLOSE_MESSAGE: Buffer = Buffer.of(RELAY_VERSION, RelayType.close);
/** Exactly `01 05`. */
export const HEALTH_CHECK_MESSAGE: Buffer = Buffer.of(RELAY_VERSION, RelayType.healthCheck);

export type RelayMessage =
  | { readonly kind: "transport"; readonly peer: PeerId; readonly payload: Uint8Array }
  | { readonly kind: "close" }
  | { readonly kind: "health-check" }
  | { readonly kind: "auth"; readonly peer: PeerId; readonly token: Uint8Array }
  | { readonly kind: "auth-response"; readonly instanceUrl: string }
  | { readonly kind: "peer-list"; readonly type: PeerListType; readonly peers: readonly PeerId[] }
  /** Of a later version of the protocol, or removed from it: to be skipped. */
  | { readonly kind: "unknown"; readonly type: number }
  /** A known type with a broken body: to be skipped. */
  | { readonly kind: "malformed"; readonly type: RelayType }
  /** Too short or of another version: the counterpart does not speak this protocol. */
  | { readonly kind: "foreign" };

/** Parses one message; payload and token refer to `bytes`. Never throws. */
export function parseRelayMessage(bytes: Uint8Array): RelayMessage {
  if (bytes.length < RELAY_HEADER_BYTES || bytes[0] !== RELAY_VERSION) return { kind: "foreign" };
  const type = bytes[1]!;
  if (!isRelayType(type)) return { kind: "unknown", type };
  const malformed = { kind: "malformed", type } as const;
  switch (type) {
    case RelayType.transport:
      if (bytes.length < TRANSPORT_HEADER_BYTES) return malformed;
      return {
        kind: "transport",
        peer: PeerId.read(bytes, RELAY_HEADER_BYTES),
        payload: bytes.subarray(TRANSPORT_HEADER_BYTES),
      };
    case RelayType.close:
      return { kind: "close" };
    case RelayType.healthCheck:
      return { kind: "health-check" };
    case RelayType.auth:
      if (bytes.length < AUTH_HEADER_BYTES || bytes.length > AUTH_MAX_BYTES) return malformed;
      if (!MAGIC.equals(bytes.subarray(RELAY_HEADER_BYTES, RELAY_HEADER_BYTES + MAGIC.length))) return malformed;
      return {
        kind: "auth",
        peer: PeerId.read(bytes, RELAY_HEADER_BYTES + MAGIC.length),
        token: bytes.subarray(AUTH_HEADER_BYTES),
      };
    case RelayType.authResponse:
      if (bytes.length <= RELAY_HEADER_BYTES || bytes.length > AUTH_RESPONSE_MAX_BYTES) return malformed;
      return { kind: "auth-response", instanceUrl: Buffer.from(bytes.subarray(RELAY_HEADER_BYTES)).toString("utf8") };
    case RelayType.subscribe:
    case RelayType.unsubscribe:
    case RelayType.peersOnline:
    case RelayType.peersWentOffline: {
      if ((bytes.length - RELAY_HEADER_BYTES) % PEER_ID_BYTES !== 0) return malformed;
      const peers: PeerId[] = [];
      for (let at = RELAY_HEADER_BYTES; at < bytes.length; at += PEER_ID_BYTES) peers.push(PeerId.read(bytes, at));
      return { kind: "peer-list", type, peers };
    }
    default:
      return unreachable(type);
  }
}

/** Throws RelayMessageError `relay-token-too-long` above 170 bytes of token. */
export function encodeAuth(peer: PeerId, token: Uint8Array): Buffer {
  if (token.length > TOKEN_MAX_BYTES)
    throw new RelayMessageError("relay-token-too-long", `token of ${token.length} bytes, limit ${TOKEN_MAX_BYTES}`);
  return Buffer.concat([Buffer.of(RELAY_VERSION, RelayType.auth), MAGIC, PeerId.toBytes(peer), token]);
}

/** Throws RelayMessageError `relay-url-length` for an empty or endless URL. */
export function encodeAuthResponse(instanceUrl: string): Buffer {
  const url = Buffer.from(instanceUrl, "utf8");
  if (url.length === 0 || url.length > AUTH_RESPONSE_MAX_BYTES - RELAY_HEADER_BYTES)
    throw new RelayMessageError("relay-url-length", `instance URL of ${url.length} bytes`);
  return Buffer.concat([Buffer.of(RELAY_VERSION, RelayType.authResponse), url]);
}

/** The first 38 bytes of a Transport to or from a peer. */
export function encodeTransportHeader(peer: PeerId): Buffer {
  return Buffer.concat([Buffer.of(RELAY_VERSION, RelayType.transport), PeerId.toBytes(peer)]);
}

/** Throws RelayMessageError `relay-payload-too-long` above 8782 bytes. */
export function encodeTransport(peer: PeerId, payload: Uint8Array): Buffer {
  if (payload.length > TRANSPORT_PAYLOAD_MAX_BYTES)
    throw new RelayMessageError(
      "relay-payload-too-long",
      `payload of ${payload.length} bytes, limit ${TRANSPORT_PAYLOAD_MAX_BYTES}`,
    );
  return Buffer.concat([encodeTransportHeader(peer), payload]);
}

/** As many messages as the list needs, at most 244 IDs each; none for an empty list. */
export function encodePeerList(type: PeerListType, peers: readonly PeerId[]): Buffer[] {
  const messages: Buffer[] = [];
  for (let from = 0; from < peers.length; from += PEER_LIST_MAX_IDS) {
    const ids = peers.slice(from, from + PEER_LIST_MAX_IDS);
    messages.push(Buffer.concat([Buffer.of(RELAY_VERSION, type), Buffer.from(ids.join(""), "latin1")]));
  }
  return messages;
}

/** Whether a WireGuard datagram is part of a handshake (types 1 to 3) and goes before data. */
export function isHandshake(payload: Uint8Array, offset = 0): boolean {
  const type = payload[offset];
  return type !== undefined && type >= 1 && type <= 3;
}

function isRelayType(type: number): type is RelayType {
  return type >= RelayType.transport && type <= RelayType.peersWentOffline;
}
