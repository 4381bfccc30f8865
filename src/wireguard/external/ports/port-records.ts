import { type Endpoint, type IpAddress, ipFromBytes } from "#base/ip.ts";
import type { Ring } from "../../worker/ring.ts";

/*
 * What the port thread writes into its ring for each message of a socket, integers little-endian:
 *
 *    0  u32  total bytes, the ring's
 *    4  u16  channel
 *    6  u16  source port, 0 of a raw socket
 *    8  u8   family of the source, 4 or 6        9  u8  family of the local address, 0 when the kernel did not tell
 *   10  u16  unused                             12  u32 bytes of the message
 *   16  u32  size of each datagram in it, the last may be smaller (UDP_GRO)
 *   24  source address, 4 or 16 bytes           40  local address, 4 or 16 bytes
 *   56  the message
 */
export const PortRecordField = {
  channel: 4,
  sourcePort: 6,
  sourceFamily: 8,
  localFamily: 9,
  payloadBytes: 12,
  segmentBytes: 16,
  source: 24,
  local: 40,
  payload: 56,
} as const;

/** Words of the control buffer that both threads see. */
export const PortControl = { stop: 0 } as const;

/** A socket that the thread reads. The descriptor is main's. */
export interface PortChannel {
  readonly id: number;
  readonly fd: number;
}

/** What the port thread is started with. */
export interface PortStart {
  readonly eventFd: number;
  readonly control: SharedArrayBuffer;
  readonly stats: SharedArrayBuffer;
  readonly ring: SharedArrayBuffer;
  readonly channels: readonly PortChannel[];
}

/** Main posts it, then writes the event descriptor. */
export type PortCommand =
  | { readonly kind: "watch"; readonly channel: PortChannel }
  | { readonly kind: "unwatch"; readonly id: number };

/**
 * What the thread posts besides the bare number that says "look into the ring". After `unwatched` it does not touch the
 * descriptor any more; `fault` is its last word.
 */
export type PortMessage =
  | { readonly kind: "ready" }
  | { readonly kind: "unwatched"; readonly id: number }
  | { readonly kind: "fault"; readonly reason: string; readonly stack: string | undefined };

/** One message of a socket, in the ring: it ends when the listener returns. */
export class PortRecord {
  readonly #ring: Ring;
  #at = 0;

  constructor(ring: Ring) {
    this.#ring = ring;
  }

  /** Makes the record at ring offset `at` the one that is read. */
  moveTo(at: number): this {
    this.#at = at;
    return this;
  }

  get channel(): number {
    return this.#ring.view.getUint16(this.#at + PortRecordField.channel, true);
  }

  get sourcePort(): number {
    return this.#ring.view.getUint16(this.#at + PortRecordField.sourcePort, true);
  }

  get isSourceV4(): boolean {
    return this.#ring.bytes[this.#at + PortRecordField.sourceFamily] === 4;
  }

  /** An IPv4 source as a number; 0 otherwise. */
  get sourceV4(): number {
    return this.isSourceV4 ? this.#ring.view.getUint32(this.#at + PortRecordField.source) : 0;
  }

  /** The IPv4 address that it was sent to as a number; 0 when it was none or is not known. */
  get localV4(): number {
    const isV4 = this.#ring.bytes[this.#at + PortRecordField.localFamily] === 4;
    return isV4 ? this.#ring.view.getUint32(this.#at + PortRecordField.local) : 0;
  }

  get source(): Endpoint {
    return {
      address: this.#address(PortRecordField.source, this.#ring.bytes[this.#at + PortRecordField.sourceFamily]!),
      port: this.sourcePort,
    };
  }

  get local(): IpAddress | undefined {
    const family = this.#ring.bytes[this.#at + PortRecordField.localFamily]!;
    return family === 0 ? undefined : this.#address(PortRecordField.local, family);
  }

  /** The message where it lies: whoever keeps it copies it. */
  get payload(): Uint8Array {
    const from = this.#at + PortRecordField.payload;
    const bytes = this.#ring.view.getUint32(this.#at + PortRecordField.payloadBytes, true);
    return this.#ring.bytes.subarray(from, from + bytes);
  }

  get segmentBytes(): number {
    return this.#ring.view.getUint32(this.#at + PortRecordField.segmentBytes, true);
  }

  #address(offset: number, family: number): IpAddress {
    const from = this.#at + offset;
    return ipFromBytes(this.#ring.bytes.slice(from, from + (family === 6 ? 16 : 4)));
  }
}
