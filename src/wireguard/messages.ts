/**
 * Message layouts (paper, section 5.4). Integers are little-endian, byte 0 is the type and bytes 1 to 3 are zero.
 *
 *   initiation, 148 B            response, 92 B               cookie reply, 64 B           transport, 32 B and more
 *     0  type 1                    0  type 2                    0  type 3                    0  type 4
 *     4  sender index              4  sender index              4  receiver index            4  receiver index
 *     8  ephemeral (32)            8  receiver index            8  nonce (24)                8  counter (8)
 *    40  static + tag (48)        12  ephemeral (32)           32  cookie + tag (32)        16  packet + tag
 *    88  timestamp + tag (28)     44  nothing + tag (16)
 *   116  mac1 (16)                60  mac1 (16)
 *   132  mac2 (16)                76  mac2 (16)
 *
 * mac1 covers everything before it, mac2 everything before it including mac1; without a cookie mac2 is zero.
 */

/** First byte of a message. */
export const MessageType = { initiation: 1, response: 2, cookieReply: 3, transport: 4 } as const;
export type MessageType = (typeof MessageType)[keyof typeof MessageType];

export const INITIATION_BYTES = 148;
export const RESPONSE_BYTES = 92;
export const COOKIE_REPLY_BYTES = 64;
export const MIN_TRANSPORT_BYTES = 32;

export const TAG_BYTES = 16;
export const MAC_BYTES = 16;
export const COOKIE_BYTES = 16;
/** Of the responder's secret; never on the wire. */
export const COOKIE_SECRET_BYTES = 32;
export const COOKIE_NONCE_BYTES = 24;
export const TIMESTAMP_BYTES = 12;

export const INITIATION = {
  sender: 4,
  ephemeral: 8,
  static: 40,
  timestamp: 88,
  mac1: 116,
  mac2: 132,
} as const;

export const RESPONSE = { sender: 4, receiver: 8, ephemeral: 12, empty: 44, mac1: 60, mac2: 76 } as const;

export const COOKIE_REPLY = { receiver: 4, nonce: 8, cookie: 32 } as const;

/**
 * The type of a datagram that has the outer form of a WireGuard message, undefined for everything else. Sizes of the
 * handshake messages must match exactly; contents are not looked at.
 */
export function messageType(datagram: Uint8Array): MessageType | undefined {
  if (datagram.length < MIN_TRANSPORT_BYTES || datagram[1] !== 0 || datagram[2] !== 0 || datagram[3] !== 0)
    return undefined;
  switch (datagram[0]) {
    case MessageType.initiation:
      return datagram.length === INITIATION_BYTES ? MessageType.initiation : undefined;
    case MessageType.response:
      return datagram.length === RESPONSE_BYTES ? MessageType.response : undefined;
    case MessageType.cookieReply:
      return datagram.length === COOKIE_REPLY_BYTES ? MessageType.cookieReply : undefined;
    case MessageType.transport:
      return MessageType.transport;
    default:
      return undefined;
  }
}

/** Any message but data: short, and not for the data worker. */
export function isHandshake(datagram: Uint8Array): boolean {
  if (datagram[0] === MessageType.transport) return false;
  return messageType(datagram) !== undefined;
}

/** Where mac1 starts; mac2 follows it and ends the message. */
export function mac1Offset(type: typeof MessageType.initiation | typeof MessageType.response): number {
  return type === MessageType.initiation ? INITIATION.mac1 : RESPONSE.mac1;
}

export function readU32(bytes: Uint8Array, offset: number): number {
  return (bytes[offset]! | (bytes[offset + 1]! << 8) | (bytes[offset + 2]! << 16) | (bytes[offset + 3]! << 24)) >>> 0;
}

export function writeU32(bytes: Uint8Array, offset: number, value: number): void {
  bytes[offset] = value;
  bytes[offset + 1] = value >>> 8;
  bytes[offset + 2] = value >>> 16;
  bytes[offset + 3] = value >>> 24;
}
