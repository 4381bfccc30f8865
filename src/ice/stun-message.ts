import { createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { crc32 } from "node:zlib";
import { type Endpoint, ipFromBytes, ipToBytes, isV6 } from "#base/ip.ts";

/*
 * STUN (RFC 8489), as far as ICE (RFC 8445), the responder beside the relay and stock agents need it.
 *
 *   0        2        4               8                            20
 *   +--------+--------+---------------+----------------------------+----------------------------
 *   | type   | length | cookie        | transaction id (12)        | attributes: type u16, length u16, value, pad to 4
 *   +--------+--------+---------------+----------------------------+----------------------------
 *
 * All integers are big-endian; length counts the bytes after the header. Two attributes speak about the bytes before
 * them: MESSAGE-INTEGRITY is computed with the header length set to its own end, FINGERPRINT likewise. Stock agents append
 * CANDIDATE-IDS (0x8100) behind both and raise only the header length (signal-and-peer-connection.md, 3.4).
 */

export const STUN_HEADER_BYTES = 20;
export const STUN_COOKIE = 0x2112a442;
/** Longest datagram that is parsed as STUN, bytes. */
export const STUN_MAX_BYTES = 1500;

const ATTRIBUTE_HEADER_BYTES = 4;
const INTEGRITY_BYTES = 20;
const FINGERPRINT_BYTES = 4;
const FINGERPRINT_XOR = 0x5354554e;
/** Types below this one must be understood by the receiver (RFC 8489, 14). */
const OPTIONAL_FROM = 0x8000;

export const StunAttribute = {
  mappedAddress: 0x0001,
  username: 0x0006,
  messageIntegrity: 0x0008,
  errorCode: 0x0009,
  unknownAttributes: 0x000a,
  xorMappedAddress: 0x0020,
  priority: 0x0024,
  useCandidate: 0x0025,
  software: 0x8022,
  fingerprint: 0x8028,
  iceControlled: 0x8029,
  iceControlling: 0x802a,
  /** Stock agents since 0.57: text `<sender cid>:<receiver cid>`. */
  candidateIds: 0x8100,
} as const;

export const STUN_METHOD_BINDING = 1;

export type StunClass = "request" | "indication" | "success" | "error";

const CLASSES = ["request", "indication", "success", "error"] as const satisfies readonly StunClass[];

/** 24 hexadecimal digits, so that it can be a map key. */
export type TransactionId = string & { readonly __brand: "TransactionId" };

export const TransactionId = {
  create(): TransactionId {
    return randomBytes(12).toString("hex") as TransactionId;
  },
};

/** Which side's ICE role an attribute claims, with its tie-breaker (RFC 8445, 7.3.1.1). */
export interface IceRoleClaim {
  readonly role: "controlling" | "controlled";
  readonly tieBreaker: bigint;
}

export interface StunError {
  /** 300 to 699. */
  readonly code: number;
  readonly reason: string;
}

/** What a message says, without its integrity and fingerprint. */
export interface StunFields {
  readonly class: StunClass;
  /** Default Binding. */
  readonly method?: number;
  readonly transactionId: TransactionId;
  readonly software?: string;
  readonly username?: string;
  readonly mappedAddress?: Endpoint;
  readonly xorMappedAddress?: Endpoint;
  readonly error?: StunError;
  readonly unknownAttributes?: readonly number[];
  readonly useCandidate?: boolean;
  readonly ice?: IceRoleClaim;
  /** Unsigned 32 bits. */
  readonly priority?: number;
  /** The text of 0x8100, opaque; written and accepted behind the integrity, so it is never authenticated. */
  readonly candidateIds?: string;
}

/** A parsed message. It refers to the datagram it was parsed from; verify before that buffer is used again. */
export interface StunMessage extends StunFields {
  readonly method: number;
  readonly useCandidate: boolean;
  /** Types below 0x8000 that this codec does not know; a request with some is answered with 420. */
  readonly unknownRequired: readonly number[];
  readonly hasIntegrity: boolean;
  readonly hasFingerprint: boolean;
  readonly bytes: Uint8Array;
  /** Offsets of the attribute headers, -1 when absent. */
  readonly integrityAt: number;
  readonly fingerprintAt: number;
}

export interface StunEncodeOptions {
  /** Short-term password: adds MESSAGE-INTEGRITY. */
  readonly password?: string;
  /** Adds FINGERPRINT; default true. */
  readonly fingerprint?: boolean;
}

/** Whether a datagram claims to be STUN: long enough, two zero bits, the cookie. Costs nothing; says nothing about validity. */
export function isStun(datagram: Uint8Array): boolean {
  return (
    datagram.length >= STUN_HEADER_BYTES &&
    (datagram[0]! & 0xc0) === 0 &&
    datagram[4] === 0x21 &&
    datagram[5] === 0x12 &&
    datagram[6] === 0xa4 &&
    datagram[7] === 0x42
  );
}

/**
 * Parses one datagram; undefined when it is not a well-formed STUN message. Bytes behind the length field are ignored. The
 * first attribute of a type counts; one of a known type with a wrong size counts as absent. Behind MESSAGE-INTEGRITY only
 * FINGERPRINT and CANDIDATE-IDS are read (RFC 8489, 14.5), so an unsigned tail cannot add a nomination.
 */
export function parseStun(datagram: Uint8Array): StunMessage | undefined {
  if (!isStun(datagram) || datagram.length > STUN_MAX_BYTES) return undefined;
  const view = new DataView(datagram.buffer, datagram.byteOffset, datagram.byteLength);
  const end = STUN_HEADER_BYTES + view.getUint16(2);
  if (end > datagram.length || end % 4 !== 0) return undefined;
  const type = view.getUint16(0);
  const transactionId = hex(datagram.subarray(8, STUN_HEADER_BYTES)) as TransactionId;
  const seen = new Set<number>();
  const unknownRequired: number[] = [];
  const fields: { -readonly [K in keyof StunFields]: StunFields[K] } = {
    class: CLASSES[((type >> 4) & 1) | ((type >> 7) & 2)]!,
    transactionId,
  };
  let integrityAt = -1;
  let fingerprintAt = -1;

  for (let at = STUN_HEADER_BYTES; at < end; ) {
    if (end - at < ATTRIBUTE_HEADER_BYTES) return undefined;
    const attribute = view.getUint16(at);
    const length = view.getUint16(at + 2);
    const valueAt = at + ATTRIBUTE_HEADER_BYTES;
    const next = valueAt + pad4(length);
    if (next > end) return undefined;
    const value = datagram.subarray(valueAt, valueAt + length);
    const first = !seen.has(attribute);
    seen.add(attribute);
    if (attribute === StunAttribute.fingerprint) {
      if (first && length === FINGERPRINT_BYTES) fingerprintAt = at;
    } else if (attribute === StunAttribute.candidateIds) {
      if (first) fields.candidateIds = text(value);
    } else if (attribute === StunAttribute.messageIntegrity) {
      if (first && length === INTEGRITY_BYTES) integrityAt = at;
    } else if (first && integrityAt < 0) {
      if (!readAttribute(fields, attribute, value, view, valueAt) && attribute < OPTIONAL_FROM)
        unknownRequired.push(attribute);
    }
    at = next;
  }
  return {
    ...fields,
    method: (type & 0x0f) | ((type >> 1) & 0x70) | ((type >> 2) & 0xf80),
    useCandidate: fields.useCandidate === true,
    unknownRequired,
    hasIntegrity: integrityAt >= 0,
    hasFingerprint: fingerprintAt >= 0,
    bytes: datagram.subarray(0, end),
    integrityAt,
    fingerprintAt,
  };
}

/**
 * True when the message carries a MESSAGE-INTEGRITY that `password` (short-term credential) explains, whatever follows that
 * attribute. Constant time in the digest. False when the attribute is absent.
 */
export function verifyStunIntegrity(message: StunMessage, password: string): boolean {
  if (message.integrityAt < 0) return false;
  const at = message.integrityAt;
  const claimed = message.bytes.subarray(at + ATTRIBUTE_HEADER_BYTES, at + ATTRIBUTE_HEADER_BYTES + INTEGRITY_BYTES);
  return timingSafeEqual(integrity(message.bytes, at, password), claimed);
}

/**
 * True when the message carries a FINGERPRINT whose CRC is right for a header length that ends with it. Advice only: stock
 * agents do not put it last, so nothing is rejected because of it.
 */
export function verifyStunFingerprint(message: StunMessage): boolean {
  if (message.fingerprintAt < 0) return false;
  const at = message.fingerprintAt;
  const { bytes } = message;
  const claimed = new DataView(bytes.buffer, bytes.byteOffset).getUint32(at + ATTRIBUTE_HEADER_BYTES);
  return fingerprint(bytes, at) === claimed;
}

/**
 * Encodes a message: attributes in a fixed order, then MESSAGE-INTEGRITY, FINGERPRINT and CANDIDATE-IDS in the place stock
 * agents put them. The result is a fresh buffer of the caller's.
 */
export function encodeStun(fields: StunFields, options: StunEncodeOptions = {}): Uint8Array {
  const parts: Attribute[] = [];
  const add = (type: number, value: Uint8Array): void => void parts.push({ type, value });
  if (fields.software !== undefined) add(StunAttribute.software, Buffer.from(fields.software));
  if (fields.username !== undefined) add(StunAttribute.username, Buffer.from(fields.username));
  if (fields.mappedAddress) add(StunAttribute.mappedAddress, addressValue(fields.mappedAddress));
  if (fields.xorMappedAddress)
    add(StunAttribute.xorMappedAddress, xorAddress(addressValue(fields.xorMappedAddress), fields.transactionId));
  if (fields.error) add(StunAttribute.errorCode, errorValue(fields.error));
  if (fields.unknownAttributes) add(StunAttribute.unknownAttributes, typeList(fields.unknownAttributes));
  if (fields.useCandidate) add(StunAttribute.useCandidate, new Uint8Array(0));
  if (fields.ice) {
    const { role, tieBreaker } = fields.ice;
    const value = new Uint8Array(8);
    new DataView(value.buffer).setBigUint64(0, tieBreaker);
    add(role === "controlling" ? StunAttribute.iceControlling : StunAttribute.iceControlled, value);
  }
  if (fields.priority !== undefined) add(StunAttribute.priority, u32(fields.priority));

  const withIntegrity = options.password !== undefined;
  const withFingerprint = options.fingerprint !== false;
  const ids = fields.candidateIds === undefined ? undefined : Buffer.from(fields.candidateIds);
  let size = STUN_HEADER_BYTES;
  for (const part of parts) size += attributeBytes(part.value.length);
  if (withIntegrity) size += attributeBytes(INTEGRITY_BYTES);
  if (withFingerprint) size += attributeBytes(FINGERPRINT_BYTES);
  if (ids) size += attributeBytes(ids.length);

  const bytes = new Uint8Array(size);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, stunType(fields.class, fields.method ?? STUN_METHOD_BINDING));
  view.setUint16(2, size - STUN_HEADER_BYTES);
  view.setUint32(4, STUN_COOKIE);
  bytes.set(Buffer.from(fields.transactionId, "hex"), 8);
  let at = STUN_HEADER_BYTES;
  const write = (type: number, value: Uint8Array): void => {
    view.setUint16(at, type);
    view.setUint16(at + 2, value.length);
    bytes.set(value, at + ATTRIBUTE_HEADER_BYTES);
    at += attributeBytes(value.length);
  };
  for (const part of parts) write(part.type, part.value);
  if (options.password !== undefined) write(StunAttribute.messageIntegrity, integrity(bytes, at, options.password));
  if (withFingerprint) write(StunAttribute.fingerprint, u32(fingerprint(bytes, at)));
  if (ids) write(StunAttribute.candidateIds, ids);
  return bytes;
}

interface Attribute {
  readonly type: number;
  readonly value: Uint8Array;
}

/** False for a type this codec does not know. */
function readAttribute(
  fields: { -readonly [K in keyof StunFields]: StunFields[K] },
  attribute: number,
  value: Uint8Array,
  view: DataView,
  at: number,
): boolean {
  switch (attribute) {
    case StunAttribute.mappedAddress: {
      const endpoint = parseAddress(value);
      if (endpoint) fields.mappedAddress = endpoint;
      return true;
    }
    case StunAttribute.xorMappedAddress: {
      const endpoint = parseAddress(xorAddress(value, fields.transactionId));
      if (endpoint) fields.xorMappedAddress = endpoint;
      return true;
    }
    case StunAttribute.username:
      fields.username = text(value);
      return true;
    case StunAttribute.software:
      fields.software = text(value);
      return true;
    case StunAttribute.errorCode:
      if (value.length >= 4)
        fields.error = { code: (value[2]! & 7) * 100 + (value[3]! % 100), reason: text(value.subarray(4)) };
      return true;
    case StunAttribute.unknownAttributes: {
      const types: number[] = [];
      for (let i = 0; i + 2 <= value.length; i += 2) types.push(view.getUint16(at + i));
      fields.unknownAttributes = types;
      return true;
    }
    case StunAttribute.priority:
      if (value.length === 4) fields.priority = view.getUint32(at);
      return true;
    case StunAttribute.useCandidate:
      fields.useCandidate = true;
      return true;
    case StunAttribute.iceControlling:
    case StunAttribute.iceControlled:
      if (value.length === 8 && !fields.ice) {
        const role = attribute === StunAttribute.iceControlling ? "controlling" : "controlled";
        fields.ice = { role, tieBreaker: view.getBigUint64(at) };
      }
      return true;
    default:
      return false;
  }
}

/** The HMAC-SHA1 over the first `at` bytes with the header length of a message that ends with MESSAGE-INTEGRITY at `at`. */
function integrity(bytes: Uint8Array, at: number, password: string): Uint8Array {
  const end = at + attributeBytes(INTEGRITY_BYTES);
  return createHmac("sha1", password).update(headerEnding(bytes, end)).update(bytes.subarray(4, at)).digest();
}

/** The FINGERPRINT value over the first `at` bytes with the header length of a message that ends with it. */
function fingerprint(bytes: Uint8Array, at: number): number {
  const end = at + attributeBytes(FINGERPRINT_BYTES);
  return (crc32(bytes.subarray(4, at), crc32(headerEnding(bytes, end))) ^ FINGERPRINT_XOR) >>> 0;
}

/** Type and length, bytes 0 to 3, of a message that ends at `end`; a copy, because the datagram is not ours to change. */
function headerEnding(bytes: Uint8Array, end: number): Uint8Array {
  const length = end - STUN_HEADER_BYTES;
  return Uint8Array.of(bytes[0]!, bytes[1]!, length >> 8, length & 0xff);
}

function stunType(kind: StunClass, method: number): number {
  const bits = CLASSES.indexOf(kind);
  return (method & 0x0f) | ((method & 0x70) << 1) | ((method & 0xf80) << 2) | ((bits & 1) << 4) | ((bits & 2) << 7);
}

/** Reserved byte, family, port, address. */
function addressValue(endpoint: Endpoint): Uint8Array {
  const address = ipToBytes(endpoint.address);
  const value = new Uint8Array(4 + address.length);
  value[1] = isV6(endpoint.address) ? 2 : 1;
  new DataView(value.buffer).setUint16(2, endpoint.port);
  value.set(address, 4);
  return value;
}

function parseAddress(value: Uint8Array): Endpoint | undefined {
  const family = value[1];
  if (!((family === 1 && value.length === 8) || (family === 2 && value.length === 20))) return undefined;
  return { address: ipFromBytes(value.subarray(4)), port: (value[2]! << 8) | value[3]! };
}

/** XORs port and address with the cookie and the transaction id; its own inverse. A copy. */
function xorAddress(value: Uint8Array, transactionId: TransactionId): Uint8Array {
  const mask = Buffer.from(`2112a442${transactionId}`, "hex");
  const result = new Uint8Array(value);
  for (let i = 2; i < result.length; i++) result[i]! ^= mask[i < 4 ? i - 2 : i - 4] ?? 0;
  return result;
}

function errorValue(error: StunError): Uint8Array {
  const reason = Buffer.from(error.reason);
  const value = new Uint8Array(4 + reason.length);
  value[2] = Math.trunc(error.code / 100);
  value[3] = error.code % 100;
  value.set(reason, 4);
  return value;
}

function typeList(types: readonly number[]): Uint8Array {
  const value = new Uint8Array(types.length * 2);
  const view = new DataView(value.buffer);
  types.forEach((type, index) => {
    view.setUint16(index * 2, type);
  });
  return value;
}

function u32(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value);
  return bytes;
}

function attributeBytes(length: number): number {
  return ATTRIBUTE_HEADER_BYTES + pad4(length);
}

function pad4(length: number): number {
  return (length + 3) & ~3;
}

function text(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("utf8");
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("hex");
}
