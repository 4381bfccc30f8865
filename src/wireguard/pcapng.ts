/**
 * Blocks of a pcapng file (IETF draft-ietf-opsawg-pcapng), little-endian, one section and one interface of raw IP packets.
 *
 *   block     u32 type, u32 total bytes, body, options, u32 total bytes
 *   option    u16 code, u16 bytes, value padded to 4; a code of 0 ends the list
 *
 *   section   0x0a0d0d0a   byte-order magic, version 1.0, section length unknown
 *   interface 1            link type, snap length; options: name
 *   packet    6            interface, time in µs (high word first), captured bytes, packet bytes, packet; options: direction, comment
 *   counters  5            interface, time; options: packets seen, packets dropped
 */
const Block = { section: 0x0a0d0d0a, interface: 1, counters: 5, packet: 6 } as const;
const BYTE_ORDER_MAGIC = 0x1a2b3c4d;
/** LINKTYPE_RAW: the packet begins with its IPv4 or IPv6 header. */
const LINK_TYPE_RAW = 101;
const OptionCode = { comment: 1, program: 4, interfaceName: 2, packetFlags: 2, seen: 4, dropped: 5 } as const;
const DIRECTION = { in: 1, out: 2 } as const;
const MICROS = 1000;

export interface PcapngPacket {
  /** Wall clock, ms. */
  readonly at: number;
  readonly direction: "in" | "out";
  readonly bytes: Uint8Array;
  /** Of the whole packet, of which `bytes` may be the beginning. */
  readonly length: number;
  readonly comment?: string | undefined;
}

/** What a file begins with. `snapLength`: no packet in it is longer. */
export function encodePcapngHeader(interfaceName: string, snapLength: number): Uint8Array {
  const section = new Uint8Array(16);
  const view = new DataView(section.buffer);
  view.setUint32(0, BYTE_ORDER_MAGIC, true);
  view.setUint16(4, 1, true);
  view.setBigInt64(8, -1n, true);
  const description = new Uint8Array(8);
  new DataView(description.buffer).setUint16(0, LINK_TYPE_RAW, true);
  new DataView(description.buffer).setUint32(4, snapLength, true);
  return Buffer.concat([
    block(Block.section, section, [option(OptionCode.program, Buffer.from("perch"))]),
    block(Block.interface, description, [option(OptionCode.interfaceName, Buffer.from(interfaceName))]),
  ]);
}

export function encodePcapngPacket({ at, direction, bytes, length, comment }: PcapngPacket): Uint8Array {
  const body = new Uint8Array(20 + padded(bytes.length));
  const view = new DataView(body.buffer);
  setTime(view, 4, at);
  view.setUint32(12, bytes.length, true);
  view.setUint32(16, length, true);
  body.set(bytes, 20);
  const flags = new Uint8Array(4);
  flags[0] = DIRECTION[direction];
  const options = [option(OptionCode.packetFlags, flags)];
  if (comment !== undefined) options.push(option(OptionCode.comment, Buffer.from(comment)));
  return block(Block.packet, body, options);
}

/** The end: how many packets there were, and how many of them are missing. */
export function encodePcapngCounters(at: number, seen: number, dropped: number): Uint8Array {
  const body = new Uint8Array(12);
  setTime(new DataView(body.buffer), 4, at);
  return block(Block.counters, body, [option(OptionCode.seen, u64(seen)), option(OptionCode.dropped, u64(dropped))]);
}

function block(type: number, body: Uint8Array, options: readonly Uint8Array[]): Uint8Array {
  const end = new Uint8Array(4);
  const total = 12 + body.length + options.reduce((sum, { length }) => sum + length, end.length);
  const whole = new Uint8Array(total);
  const view = new DataView(whole.buffer);
  view.setUint32(0, type, true);
  view.setUint32(4, total, true);
  let at = 8;
  for (const part of [body, ...options, end]) {
    whole.set(part, at);
    at += part.length;
  }
  view.setUint32(at, total, true);
  return whole;
}

function option(code: number, value: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(4 + padded(value.length));
  const view = new DataView(bytes.buffer);
  view.setUint16(0, code, true);
  view.setUint16(2, value.length, true);
  bytes.set(value, 4);
  return bytes;
}

function padded(bytes: number): number {
  return (bytes + 3) & ~3;
}

function u64(value: number): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
  return bytes;
}

function setTime(view: DataView, at: number, wall: number): void {
  const micros = Math.round(wall * MICROS);
  view.setUint32(at, Math.floor(micros / 2 ** 32), true);
  view.setUint32(at + 4, micros >>> 0, true);
}
