import {
  type Answer,
  AUTHORITATIVE_ANSWER,
  CHECKING_DISABLED,
  encode,
  RECURSION_AVAILABLE,
  RECURSION_DESIRED,
  TRUNCATED_RESPONSE,
} from "dns-packet";
import { type IpAddress, ipFromBytes } from "#base/ip.ts";
import { type DomainName, toDomainName } from "./domain-name.ts";
import type { AnswerRecord, Resolution } from "./resolve.ts";

/**
 * DNS messages (RFC 1035, section 4; EDNS: RFC 6891). Records are written by dns-packet; the question of an answer is a copy
 * of the question's bytes, so that its letters come back in the case they had.
 *
 *   byte 0..1 ID | 2..3 flags: QR, opcode (4 bits), AA, TC, RD, RA, Z, AD, CD, rcode (4 bits) | 4..11 four counts | question | records
 */
export interface DnsQuery {
  readonly id: number;
  readonly recursionDesired: boolean;
  readonly checkingDisabled: boolean;
  /** The question section as it came. */
  readonly questionBytes: Uint8Array;
  readonly name: DomainName;
  readonly type: string;
  readonly isInternet: boolean;
  readonly edns: { readonly payloadBytes: number; readonly version: number } | undefined;
}

/** What was received and is no query: `malformed` is counted and dropped, `reply` is a refusal to be sent. */
export type NotAQuery = { readonly kind: "malformed" } | { readonly kind: "reply"; readonly message: Uint8Array };

const MALFORMED: NotAQuery = { kind: "malformed" };

export const Rcode = { NOERROR: 0, SERVFAIL: 2, NXDOMAIN: 3, NOTIMP: 4, REFUSED: 5, BADVERS: 16 } as const;
export type Rcode = (typeof Rcode)[keyof typeof Rcode];

const HEADER_BYTES = 12;
/** Header, the shortest question, and nothing else. */
const QUERY_MIN_BYTES = 17;
/** What fits in UDP without EDNS (RFC 1035, section 4.2.1). */
const PLAIN_PAYLOAD = 512;
/** What passes every network whole (DNS flag day 2020). */
const EDNS_PAYLOAD = 1232;
const CLASS_IN = 1;
const OPT = 41;
const OPT_BYTES = 11;
/** Type, class, TTL and length of data, after the name. */
const RECORD_HEAD_BYTES = 10;
const TYPES: Readonly<Record<number, string>> = {
  1: "A",
  2: "NS",
  5: "CNAME",
  6: "SOA",
  12: "PTR",
  28: "AAAA",
  251: "IXFR",
  252: "AXFR",
  255: "ANY",
};
const RESPONSE = 0x8000;
const OPCODE_MASK = 0x7800;
/** Seconds for which a "no" may be kept: short, a peer may join at any moment. */
const NEGATIVE_TTL = 10;
const SOA_TIMES = { refresh: 3600, retry: 600, expire: 86_400, minimum: NEGATIVE_TTL } as const;

/** Never throws. */
export function parseQuery(message: Uint8Array): { readonly kind: "query"; readonly query: DnsQuery } | NotAQuery {
  if (message.length < HEADER_BYTES) return MALFORMED;
  const view = new DataView(message.buffer, message.byteOffset, message.byteLength);
  const flags = view.getUint16(2);
  // Two answering machines would talk to each other for ever.
  if ((flags & RESPONSE) !== 0) return MALFORMED;
  const opcode = (flags >> 11) & 0xf;
  if (opcode !== 0) return { kind: "reply", message: bareReply(view.getUint16(0), flags, Rcode.NOTIMP) };
  const end = message.length < QUERY_MIN_BYTES || view.getUint16(4) !== 1 ? undefined : endOfQuestion(message);
  if (end === undefined) return MALFORMED;
  // A question holds no records but those of EDNS; they are read here, where no length and no count can lead astray.
  if (view.getUint16(6) !== 0 || view.getUint16(8) !== 0) return MALFORMED;
  const edns = view.getUint16(10) === 0 ? undefined : readEdns(view, end);
  const query: DnsQuery = {
    id: view.getUint16(0),
    recursionDesired: (flags & RECURSION_DESIRED) !== 0,
    checkingDisabled: (flags & CHECKING_DISABLED) !== 0,
    questionBytes: message.slice(HEADER_BYTES, end),
    name: readName(message),
    type: typeName(view.getUint16(end - 4)),
    isInternet: view.getUint16(end - 2) === CLASS_IN,
    edns,
  };
  return { kind: "query", query };
}

/** Where the question section ends; undefined when it is cut off or its name is not written out. */
function endOfQuestion(message: Uint8Array): number | undefined {
  let at = HEADER_BYTES;
  for (;;) {
    const length = message[at];
    if (length === undefined || length > 63) return undefined;
    at += length + 1;
    if (at - HEADER_BYTES > 255) return undefined;
    if (length === 0) break;
  }
  return at + 4 <= message.length ? at + 4 : undefined;
}

/** The name of a question that `endOfQuestion` has looked at. */
function readName(message: Uint8Array): DomainName {
  const labels: string[] = [];
  for (let at = HEADER_BYTES; message[at]! > 0; at += message[at]! + 1)
    labels.push(Buffer.from(message.subarray(at + 1, at + 1 + message[at]!)).toString("utf8"));
  return toDomainName(labels.join("."));
}

/** As dns-packet writes types. */
function typeName(type: number): string {
  return TYPES[type] ?? `UNKNOWN_${type}`;
}

/** An OPT record directly after the question: name 0, type, payload size, extended rcode, version, flags. Others do not concern us. */
function readEdns(view: DataView, at: number): DnsQuery["edns"] {
  if (at + OPT_BYTES > view.byteLength || view.getUint8(at) !== 0 || view.getUint16(at + 1) !== OPT) return undefined;
  return { payloadBytes: view.getUint16(at + 3), version: view.getUint8(at + 6) };
}

/**
 * Addresses among the answers of another server's reply, at most `most`. Names are passed over: whatever chain of aliases the reply
 * tells, these are at its end. Never throws.
 */
export function readAddresses(
  reply: Uint8Array,
  most: number,
): { readonly address: IpAddress; readonly ttl: number }[] {
  const question = endOfQuestion(reply);
  if (question === undefined) return [];
  const view = new DataView(reply.buffer, reply.byteOffset, reply.byteLength);
  const found: { address: IpAddress; ttl: number }[] = [];
  let at = question;
  for (let left = view.getUint16(6); left > 0 && found.length < most; left--) {
    while (at < reply.length && reply[at]! > 0 && reply[at]! < 64) at += reply[at]! + 1;
    // A pointer ends a name in two bytes, the root in one.
    at += (reply[at] ?? 0) >= 64 ? 2 : 1;
    if (at + RECORD_HEAD_BYTES > reply.length) break;
    const type = typeName(view.getUint16(at));
    const ttl = view.getUint32(at + 4);
    const data = reply.subarray(at + RECORD_HEAD_BYTES, at + RECORD_HEAD_BYTES + view.getUint16(at + 8));
    at += RECORD_HEAD_BYTES + view.getUint16(at + 8);
    if ((type === "A" && data.length === 4) || (type === "AAAA" && data.length === 16))
      found.push({ address: ipFromBytes(data), ttl });
  }
  return found;
}

export interface ReplyOptions {
  readonly rcode: Rcode;
  readonly answers?: readonly Answer[];
  readonly authorities?: readonly Answer[];
  readonly authoritative?: boolean;
  /** Over TCP a message may have 65,535 bytes. */
  readonly overTcp: boolean;
}

/** A reply that fits the way it goes; what does not fit is left out and the asker told to come over TCP. */
export function encodeReply(
  query: DnsQuery,
  options: ReplyOptions,
): { readonly message: Uint8Array; readonly truncated: boolean } {
  const limit = options.overTcp ? 65_535 : payloadLimit(query);
  const whole = encodeWhole(query, options, false);
  if (whole.length <= limit) return { message: whole, truncated: false };
  return { message: encodeWhole(query, { ...options, answers: [], authorities: [] }, true), truncated: true };
}

/** Bytes that the asker takes in one datagram. */
function payloadLimit({ edns }: Pick<DnsQuery, "edns">): number {
  return edns ? Math.min(EDNS_PAYLOAD, Math.max(PLAIN_PAYLOAD, edns.payloadBytes)) : PLAIN_PAYLOAD;
}

function encodeWhole(query: DnsQuery, options: ReplyOptions, truncated: boolean): Uint8Array {
  const flags =
    (options.authoritative ? AUTHORITATIVE_ANSWER : 0) |
    (truncated ? TRUNCATED_RESPONSE : 0) |
    (query.recursionDesired ? RECURSION_DESIRED : 0) |
    (query.checkingDisabled ? CHECKING_DISABLED : 0) |
    RECURSION_AVAILABLE |
    (options.rcode & 0xf);
  const opt = {
    type: "OPT" as const,
    name: ".",
    udpPayloadSize: EDNS_PAYLOAD,
    extendedRcode: options.rcode >> 4,
    ednsVersion: 0,
    flags: 0,
    flag_do: false,
    options: [],
  };
  const rest = encode({
    type: "response",
    id: query.id,
    flags,
    questions: [],
    answers: [...(options.answers ?? [])],
    authorities: [...(options.authorities ?? [])],
    additionals: query.edns ? [opt] : [],
  });
  const message = Buffer.concat([rest.subarray(0, HEADER_BYTES), query.questionBytes, rest.subarray(HEADER_BYTES)]);
  message.writeUInt16BE(1, 4);
  return message;
}

/** A header without anything: all that can be said to a request of a kind that is not known. */
function bareReply(id: number, flags: number, rcode: Rcode): Uint8Array {
  const message = Buffer.alloc(HEADER_BYTES);
  message.writeUInt16BE(id, 0);
  message.writeUInt16BE(RESPONSE | (flags & OPCODE_MASK) | (flags & RECURSION_DESIRED) | rcode, 2);
  return message;
}

export interface SoaFacts {
  /** Name of the server that answers: this machine. */
  readonly self: DomainName;
  /** Serial of the network map. */
  readonly serial: number;
}

/** Records of a resolution as dns-packet takes them. */
export function packRecords(
  resolution: Extract<Resolution, { readonly kind: "answer" }>,
  facts: SoaFacts,
): { readonly answers: Answer[]; readonly authorities: Answer[] } {
  const answers = resolution.answers.map(packRecord);
  const { soa } = resolution;
  if (!soa) return { answers, authorities: [] };
  const { self, serial } = facts;
  const record: Answer = {
    type: "SOA",
    name: soa.apex,
    ttl: NEGATIVE_TTL,
    data: { mname: self || soa.apex, rname: `hostmaster.${soa.apex}`, serial: serial >>> 0, ...SOA_TIMES },
  };
  return soa.asked ? { answers: [...answers, record], authorities: [] } : { answers, authorities: [record] };
}

function packRecord({ name, type, data, ttl }: AnswerRecord): Answer {
  return { type, name, data, ttl, class: "IN" };
}
