import type { MemoryGuard } from "./memory-guard.ts";
import type { Argument } from "./memory-rules.ts";

const AF_INET = 2;
const AF_INET6 = 10;
const EAGAIN = 11;
const MSG_TRUNC = 0x20;
const MMSGHDR_BYTES = 64;
const VIRTIO_BYTES = 10;
const SOL_UDP = 17;
const UDP_SEGMENT = 103;

/** Descriptors of the worker in `Rig`; far above real ones. */
export const Fd = { tun: 1_000_001, v4: 1_000_004, v6: 1_000_006 } as const;

/** One message that a socket has: with `segmentBytes` several datagrams that the kernel merged. */
export interface Incoming {
  readonly bytes: Uint8Array;
  readonly segmentBytes?: number;
  readonly port?: number;
  /** Last byte of the source address. */
  readonly host?: number;
}

/** One datagram that was sent, as it was cut by UDP_SEGMENT. */
export interface Sent {
  readonly fd: number;
  readonly bytes: Uint8Array;
}

/**
 * TUN and sockets of a worker that runs in the test: packets wait in arrays, and system calls read and write the worker's
 * memory as the kernel does. All addresses come from the structures that the worker filled in.
 */
export class FakeKernel {
  readonly tunIn: Uint8Array[] = [];
  readonly udpIn: Incoming[] = [];
  /** Each write to the TUN: virtio header (when there is one) and packet. */
  readonly tunOut: Uint8Array[] = [];
  readonly sent: Sent[] = [];
  /** The errno of the next calls with this name, first come first served; 0 lets one pass. */
  readonly errors = new Map<string, number[]>();
  readonly #guard: MemoryGuard;

  constructor(guard: MemoryGuard) {
    this.#guard = guard;
    guard.kernel = (name, args) => this.#call(name, args);
  }

  #call(name: string, args: readonly Argument[]): number | undefined {
    const fd = Number(args[0]);
    if (fd !== Fd.tun && fd !== Fd.v4 && fd !== Fd.v6) return undefined;
    const error = this.errors.get(name)?.shift() ?? 0;
    if (error !== 0) return this.#fail(error);
    switch (name) {
      case "read":
        return this.#read(args[1]!, Number(args[2]));
      case "write":
        this.tunOut.push(this.#guard.at(args[1]!, Number(args[2])).slice());
        return Number(args[2]);
      case "writev":
        return this.#writev(Number(args[1]), Number(args[2]));
      case "recvmmsg":
        return this.#receive(fd, Number(args[1]), Number(args[2]));
      case "sendmmsg":
        for (let i = 0; i < Number(args[2]); i++) this.#send(fd, Number(args[1]) + i * MMSGHDR_BYTES);
        return Number(args[2]);
      case "sendto":
        this.sent.push({ fd, bytes: this.#guard.at(args[1]!, Number(args[2])).slice() });
        return Number(args[2]);
      default:
        throw new Error(`the fake kernel has no ${name}`);
    }
  }

  #fail(errno: number): -1 {
    this.#guard.errno = errno;
    return -1;
  }

  #read(at: Argument, bytes: number): number {
    const packet = this.tunIn.shift();
    if (!packet) return this.#fail(EAGAIN);
    const length = Math.min(bytes, packet.length);
    this.#guard.at(at, length).set(packet.subarray(0, length));
    return length;
  }

  #writev(at: number, count: number): number {
    const whole = Buffer.concat(this.#vector(at, count));
    this.tunOut.push(new Uint8Array(whole));
    return whole.length;
  }

  #vector(at: number, count: number): Uint8Array[] {
    return Array.from({ length: count }, (_, i) => {
      const iovec = at + 16 * i;
      return this.#guard.at(this.#guard.word(iovec, "iovec"), this.#guard.word(iovec + 8, "iovec"));
    });
  }

  #receive(fd: number, headers: number, slots: number): number {
    let count = 0;
    for (; count < slots && this.udpIn.length > 0; count++)
      this.#deliver(fd, headers + count * MMSGHDR_BYTES, this.udpIn.shift()!);
    return count === 0 ? this.#fail(EAGAIN) : count;
  }

  #deliver(fd: number, header: number, message: Incoming): void {
    const guard = this.#guard;
    const fields = view(guard.at(header, MMSGHDR_BYTES));
    const [iovec] = this.#vector(guard.word(header + 16, "iovec"), guard.word(header + 24, "count"));
    const length = Math.min(iovec!.length, message.bytes.length);
    iovec!.set(message.bytes.subarray(0, length));

    const name = guard.at(guard.word(header, "name"), fields.getUint32(8, true));
    const source = sourceAddress(fd, message);
    // As the kernel does: what fits is written, the whole length is told.
    name.set(source.subarray(0, Math.min(source.length, name.length)));
    fields.setUint32(8, source.length, true);

    const control = guard.at(guard.word(header + 32, "control"), guard.word(header + 40, "control"));
    const written = message.segmentBytes === undefined ? 0 : 24;
    if (written > 0) {
      const cmsg = view(control);
      cmsg.setBigUint64(0, 20n, true);
      cmsg.setUint32(8, SOL_UDP, true);
      cmsg.setUint32(12, 104, true);
      cmsg.setUint32(16, message.segmentBytes!, true);
    }
    fields.setBigUint64(40, BigInt(written), true);
    fields.setUint32(48, length < message.bytes.length ? MSG_TRUNC : 0, true);
    fields.setUint32(56, length, true);
  }

  #send(fd: number, header: number): void {
    const guard = this.#guard;
    const whole = Buffer.concat(this.#vector(guard.word(header + 16, "iovec"), guard.word(header + 24, "count")));
    const controlBytes = guard.word(header + 40, "control");
    let segmentBytes = whole.length;
    if (controlBytes > 0) {
      const cmsg = view(guard.at(guard.word(header + 32, "control"), controlBytes));
      if (cmsg.getUint32(8, true) !== SOL_UDP || cmsg.getUint32(12, true) !== UDP_SEGMENT)
        throw new Error("control data that is not UDP_SEGMENT");
      segmentBytes = cmsg.getUint16(16, true);
    }
    const count = Math.ceil(whole.length / segmentBytes);
    if (count > 64) throw new Error(`${count} datagrams in one message`);
    for (let at = 0; at < whole.length; at += segmentBytes)
      this.sent.push({ fd, bytes: new Uint8Array(whole.subarray(at, at + segmentBytes)) });
  }
}

/** A packet with its virtio header in front, as a TUN gives it. */
export function withHeader(header: Partial<VirtioHeader>, packet: Uint8Array): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(VIRTIO_BYTES + packet.length);
  const fields = view(whole);
  whole[0] = header.flags ?? 0;
  whole[1] = header.gsoType ?? 0;
  fields.setUint16(2, header.headerBytes ?? 0, true);
  fields.setUint16(4, header.gsoSize ?? 0, true);
  fields.setUint16(6, header.checksumStart ?? 0, true);
  fields.setUint16(8, header.checksumOffset ?? 0, true);
  whole.set(packet, VIRTIO_BYTES);
  return whole;
}

export interface VirtioHeader {
  readonly flags: number;
  readonly gsoType: number;
  readonly headerBytes: number;
  readonly gsoSize: number;
  readonly checksumStart: number;
  readonly checksumOffset: number;
}

function sourceAddress(fd: number, message: Incoming): Uint8Array {
  const isV4 = fd === Fd.v4;
  const name = new Uint8Array(isV4 ? 16 : 28);
  const fields = view(name);
  fields.setUint16(0, isV4 ? AF_INET : AF_INET6, true);
  fields.setUint16(2, message.port ?? 51_820);
  if (isV4) name.set([192, 0, 2, message.host ?? 1], 4);
  else name.set([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, message.host ?? 1], 8);
  return name;
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}
