import { type FilterStep, FROM_NETWORK_HEADER } from "#net/socket-filter.ts";
import {
  COOKIE_REPLY_BYTES,
  INITIATION_BYTES,
  MessageType,
  MIN_TRANSPORT_BYTES,
  RESPONSE_BYTES,
} from "../../messages.ts";

/** RFC 8489, section 5. */
export const STUN_COOKIE = 0x2112a442;
export const STUN_HEADER_BYTES = 20;
export const UDP_HEADER_BYTES = 8;

/** Type word to bytes of the handshake messages. A payload that begins like one and has more may be several, merged by the kernel. */
export const HANDSHAKE_BYTES: ReadonlyMap<number, number> = new Map([
  [MessageType.initiation, INITIATION_BYTES],
  [MessageType.response, RESPONSE_BYTES],
  [MessageType.cookieReply, COOKIE_REPLY_BYTES],
]);

const LENGTH_WORD = 0;

/**
 * What a raw IPv4 socket lets through: it sees packets from the IPv4 header on, whose length varies.
 *
 *   UDP header, from X: source port 0/2, destination port 2/2, length 4/2, checksum 6/2, payload at 8
 */
export function rawFilterV4(port: number): FilterStep[] {
  return [
    { op: "load-byte", at: 12 },
    { op: "jump-equal", value: 127, to: "drop" },
    { op: "x-from-ipv4-header", at: 0 },
    { op: "load-half-x", at: 2 },
    { op: "jump-equal", value: port, to: "port" },
    { op: "jump", to: "drop" },
    { op: "label", name: "port" },
    { op: "load-half-x", at: 4 },
    { op: "store", word: LENGTH_WORD },
    { op: "load-word-x", at: UDP_HEADER_BYTES },
    ...judgePayload({ op: "load-word-x", at: UDP_HEADER_BYTES + 4 }),
  ];
}

/** The same for IPv6, whose raw sockets see packets from the UDP header on; the source is in the header before it. */
export function rawFilterV6(port: number): FilterStep[] {
  const sourceWord = (index: number): FilterStep => ({ op: "load-word", at: FROM_NETWORK_HEADER + 8 + 4 * index });
  return [
    sourceWord(0),
    { op: "jump-at-least", value: 1, to: "elsewhere" },
    sourceWord(1),
    { op: "jump-at-least", value: 1, to: "elsewhere" },
    sourceWord(2),
    { op: "jump-at-least", value: 1, to: "elsewhere" },
    sourceWord(3),
    { op: "jump-equal", value: 1, to: "drop" },
    { op: "label", name: "elsewhere" },
    { op: "load-half", at: 2 },
    { op: "jump-equal", value: port, to: "port" },
    { op: "jump", to: "drop" },
    { op: "label", name: "port" },
    { op: "load-half", at: 4 },
    { op: "store", word: LENGTH_WORD },
    { op: "load-word", at: UDP_HEADER_BYTES },
    ...judgePayload({ op: "load-word", at: UDP_HEADER_BYTES + 4 }),
  ];
}

/** The payload's first word is loaded, the UDP length stored. Little-endian types as big-endian words: 1 is 0x01000000. */
function judgePayload(loadCookie: FilterStep): FilterStep[] {
  return [
    ...[...HANDSHAKE_BYTES.keys()].map(
      (type): FilterStep => ({ op: "jump-equal", value: type << 24, to: `type-${type}` }),
    ),
    { op: "jump-equal", value: MessageType.transport << 24, to: "short" },
    { op: "jump", to: "stun" },
    ...[...HANDSHAKE_BYTES].flatMap(([type, bytes]): FilterStep[] => [
      { op: "label", name: `type-${type}` },
      { op: "load-stored", word: LENGTH_WORD },
      { op: "jump-at-least", value: UDP_HEADER_BYTES + bytes, to: "accept" },
      { op: "jump", to: "short" },
    ]),
    // The first word of a WireGuard message, which it is from 32 bytes on: the cookie's place holds an index then.
    { op: "label", name: "short" },
    { op: "load-stored", word: LENGTH_WORD },
    { op: "jump-at-least", value: UDP_HEADER_BYTES + MIN_TRANSPORT_BYTES, to: "drop" },
    { op: "label", name: "stun" },
    { op: "load-stored", word: LENGTH_WORD },
    { op: "jump-at-least", value: UDP_HEADER_BYTES + STUN_HEADER_BYTES, to: "long-enough" },
    { op: "jump", to: "drop" },
    { op: "label", name: "long-enough" },
    loadCookie,
    { op: "jump-equal", value: STUN_COOKIE, to: "accept" },
    { op: "label", name: "drop" },
    { op: "drop" },
    { op: "label", name: "accept" },
    { op: "accept" },
  ];
}
