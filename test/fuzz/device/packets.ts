import { buildPacket } from "#wireguard/worker/packet-model.ts";
import type { DeviceCounter } from "#wireguard/worker/stats.ts";
import type { Chance } from "../chance.ts";
import { sealed, type TestSession } from "./rig.ts";

/*
 * What a hostile network, a hostile peer and a broken kernel could hand to the worker. Inner packets come from the addresses
 * of packet-model.ts, which belong to slot 1.
 */

const STUN_COOKIE = 0x2112a442;
const MESSAGE_BYTES = [0, 148, 92, 64] as const;
/** Counters of the places where a datagram that was received may end: exactly one, unless it is reported to main. */
export const DATAGRAM_ENDS = [
  "rx-packets",
  "drop-malformed",
  "drop-unknown-type",
  "drop-unknown-index",
  "drop-expired",
  "drop-authentication",
  "drop-replay",
  "drop-relay-mismatch",
  "drop-mac1",
  "drop-unproved-source",
  "drop-handshake-queue",
] as const satisfies readonly DeviceCounter[];

/** Most that UDP over IPv4 carries. */
export const MAX_DATAGRAM_BYTES = 65_507;

const LENGTHS = [
  0, 1, 3, 4, 15, 16, 19, 20, 31, 32, 33, 47, 48, 63, 64, 65, 91, 92, 93, 147, 148, 149, 1280, 1452, 9000,
];

/** A length around some limit; rarely the largest there is. */
function anyLength(chance: Chance): number {
  return chance.once(100) ? MAX_DATAGRAM_BYTES : chance.once(3) ? chance.below(200) : chance.of(LENGTHS);
}

/** Bytes that are no transport message of a live session: noise, cut or forged messages of every type, STUN and its likes. */
export function strangeDatagram(chance: Chance, session: TestSession): Uint8Array<ArrayBuffer> {
  switch (chance.below(6)) {
    case 0:
      return chance.bytes(anyLength(chance));
    case 1: {
      // Each type, of its own length, one off, or any.
      const type = chance.between(1, 3) as 1 | 2 | 3;
      const own = MESSAGE_BYTES[type];
      const message = chance.bytes(chance.of([own, own, own - 1, own + 1, anyLength(chance)]));
      message.set([type, 0, 0, 0].slice(0, message.length));
      return message;
    }
    case 2: {
      // A transport header with an index that may be live, and noise for a tag.
      const message = chance.bytes(Math.max(16, anyLength(chance)));
      const view = new DataView(message.buffer, message.byteOffset);
      view.setUint32(0, 4, true);
      view.setUint32(4, chance.of([session.localIndex, session.remoteIndex, 0, STUN_COOKIE, 0xffffffff]), true);
      return message;
    }
    case 3: {
      // STUN, right or wrong by one thing.
      const body = chance.of([0, 4, 8, 100, 1452]);
      const message = chance.bytes(20 + body + chance.of([0, 0, 0, 1, 4]));
      const view = new DataView(message.buffer);
      message[0] = chance.of([0, 1, 0x40, 0xff]);
      view.setUint16(2, body);
      view.setUint32(4, chance.once(4) ? chance.word() : STUN_COOKIE);
      return message;
    }
    case 4: {
      // WireGuard whose index is STUN's magic cookie.
      const message = chance.bytes(chance.of([148, 92, 64, 32, 48]));
      message.set([chance.between(1, 4), 0, 0, 0, 0x21, 0x12, 0xa4, 0x42]);
      return message;
    }
    default: {
      // The type with something behind it where zeros belong.
      const message = chance.bytes(Math.max(4, anyLength(chance)));
      message.set([chance.between(0, 5), chance.below(2), chance.below(2), chance.below(2)]);
      return message;
    }
  }
}

/** One byte changed, or cut short: not authentic any more, whatever it was. */
export function damaged(chance: Chance, message: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  if (chance.once(3)) return message.slice(0, chance.below(message.length));
  const copy = message.slice();
  copy[chance.below(copy.length)]! ^= 1 << chance.below(8);
  return copy;
}

/** An inner packet: right, or with lengths and headers that lie, or noise. */
export function innerPacket(chance: Chance, sequence: number): Uint8Array {
  const payload = chance.bytes(chance.of([0, 1, 15, 100, 100, 100, 1300, 1380]));
  const packet = buildPacket({
    v6: chance.once(3),
    protocol: chance.of(["tcp", "udp"] as const),
    payload,
    sourcePort: chance.between(1000, 1003),
    sequence,
    flags: chance.of([0x10, 0x10, 0x10, 0x18, 0x19, 0x02, 0xff]),
    options: chance.once(5) ? Uint8Array.of(1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8) : new Uint8Array(0),
  });
  switch (chance.below(6)) {
    case 0:
    case 1:
    case 2:
      return packet;
    case 3: {
      // A field of a header set to something else.
      const view = new DataView(packet.buffer);
      const at = chance.below(Math.min(packet.length - 1, 60));
      if (chance.once(2)) packet[at] = chance.of([0, 0x45, 0x4f, 0x40, 0x60, 0xff, chance.below(256)]);
      else view.setUint16(at, chance.u16());
      return packet;
    }
    case 4:
      return packet.slice(0, chance.below(packet.length + 1));
    default: {
      const noise = chance.bytes(chance.below(200));
      if (noise.length > 0) noise[0] = chance.of([0x45, 0x4f, 0x60, 0x6f, noise[0]!]);
      return noise;
    }
  }
}

/** A valid transport message around it, padded as the peer would. */
export function transport(session: TestSession, counter: number | bigint, inner: Uint8Array): Uint8Array<ArrayBuffer> {
  const padded = new Uint8Array((inner.length + 15) & ~15);
  padded.set(inner);
  return sealed(session, BigInt(counter), padded);
}

/** What is an IP packet by its first header, cut to its length, as slowly as possible; else undefined. */
export function asPacket(bytes: Uint8Array): Uint8Array | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (bytes.length < 20) return undefined;
  const version = bytes[0]! >> 4;
  let length: number;
  if (version === 4) {
    length = view.getUint16(2);
    const header = (bytes[0]! & 15) * 4;
    if (header < 20 || length < header) return undefined;
  } else if (version === 6 && bytes.length >= 40) {
    length = 40 + view.getUint16(4);
  } else {
    return undefined;
  }
  return length <= bytes.length ? bytes.subarray(0, length) : undefined;
}

/** Whether the source address is slot 1's. */
export function isFromPeer(packet: Uint8Array): boolean {
  const source = packet[0]! >> 4 === 4 ? packet.subarray(12, 16) : packet.subarray(8, 24);
  const hex = Buffer.from(source).toString("hex");
  return hex === "0a4d0001" || hex === "fd770000000000000000000000000001";
}
