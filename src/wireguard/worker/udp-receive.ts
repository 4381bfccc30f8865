import { Errno } from "#net/errno.ts";
import { type Libc, libc } from "#net/libc.ts";
import { AF_INET } from "#net/sockaddr.ts";
import type { Arena } from "./arena.ts";
import { PathKind } from "./peers.ts";
import type { AddressPlace } from "./reporter.ts";
import { Counter, type Stats } from "./stats.ts";

/** A message may hold 64 KiB of merged datagrams; without merging only the touched part of each buffer takes memory. */
const BUFFER_BYTES = 65_536;
/** Messages per call: with merging few bring much, without it many are needed. */
const SLOTS_WITH_GRO = 16;
const SLOTS_WITHOUT_GRO = 64;

const MMSGHDR_BYTES = 64;
const IOVEC_BYTES = 16;
const NAME_BYTES = 32;
const CONTROL_BYTES = 128;
const MSG_DONTWAIT = 0x40;
const MSG_TRUNC = 0x20;

const CMSG_HEADER_BYTES = 16;
const SOL_SOCKET = 1;
const SO_RXQ_OVFL = 40;
const SOL_IP = 0;
const IP_PKTINFO = 8;
const SOL_IPV6 = 41;
const IPV6_PKTINFO = 50;
const SOL_UDP = 17;
const UDP_GRO = 104;

/** Buffers and headers for recvmmsg, shared by the sockets of both families: a batch is worked off before the next. */
export class UdpBuffers {
  readonly slots: number;
  readonly headers: number;
  readonly iovecs: number;
  readonly names: number;
  readonly controls: number;
  readonly buffers: number;

  constructor(arena: Arena, gro: boolean) {
    this.slots = gro ? SLOTS_WITH_GRO : SLOTS_WITHOUT_GRO;
    this.headers = arena.take(this.slots * MMSGHDR_BYTES);
    this.iovecs = arena.take(this.slots * IOVEC_BYTES);
    this.names = arena.take(this.slots * NAME_BYTES);
    this.controls = arena.take(this.slots * CONTROL_BYTES);
    this.buffers = arena.take(this.slots * BUFFER_BYTES, 4096);
    for (let i = 0; i < this.slots; i++) {
      const header = this.headers + i * MMSGHDR_BYTES;
      arena.setPointer(header, this.names + i * NAME_BYTES);
      arena.setPointer(header + 16, this.iovecs + i * IOVEC_BYTES);
      arena.setSize(header + 24, 1);
      arena.setPointer(header + 32, this.controls + i * CONTROL_BYTES);
      arena.setPointer(this.iovecs + i * IOVEC_BYTES, this.buffers + i * BUFFER_BYTES);
      arena.setSize(this.iovecs + i * IOVEC_BYTES + 8, BUFFER_BYTES);
    }
  }

  static arenaBytes(gro: boolean): number {
    const slots = gro ? SLOTS_WITH_GRO : SLOTS_WITHOUT_GRO;
    return slots * (MMSGHDR_BYTES + IOVEC_BYTES + NAME_BYTES + CONTROL_BYTES + BUFFER_BYTES) + 8192;
  }
}

/** One socket's receiving side: a batch with one call, then each message's place, source and datagram size. */
export class UdpReceiver {
  readonly fd: number;
  readonly #libc: Libc;
  readonly #arena: Arena;
  readonly #view: DataView;
  readonly #stats: Stats;
  readonly #buffers: UdpBuffers;
  readonly #port: number;
  #kernelDrops = 0;

  // The message read last.
  at = 0;
  length = 0;
  /** Size of each datagram in it; the last may be smaller. */
  segmentBytes = 0;
  truncated = false;
  readonly source: AddressPlace = { family: PathKind.none, at: 0, port: 0 };
  /** The address it was sent to, where the kernel told. */
  readonly local: AddressPlace = { family: PathKind.none, at: 0, port: 0 };

  /** `port`: what the socket is bound to. */
  constructor(arena: Arena, stats: Stats, buffers: UdpBuffers, fd: number, port: number) {
    this.#libc = libc();
    this.#arena = arena;
    this.#view = arena.view;
    this.#stats = stats;
    this.#buffers = buffers;
    this.fd = fd;
    this.#port = port;
  }

  /** Receives without waiting; returns the number of messages, 0 when there are none. */
  receive(): number {
    const { headers, slots } = this.#buffers;
    const view = this.#view;
    // The kernel overwrites these with what it used.
    for (let i = 0; i < slots; i++) {
      const header = headers + i * MMSGHDR_BYTES;
      view.setUint32(header + 8, NAME_BYTES, true);
      view.setUint32(header + 40, CONTROL_BYTES, true);
      view.setUint32(header + 48, 0, true);
    }
    for (;;) {
      const messages = this.#libc.recvmmsg(this.fd, this.#arena.base + headers, slots, MSG_DONTWAIT, null);
      if (messages >= 0) {
        this.#stats.words[Counter["udp-receive-calls"]]!++;
        return messages;
      }
      // Anything but an interruption ends the batch: EAGAIN because it is over, others because there is nothing to read.
      if (this.#libc.errno() !== Errno.EINTR) return 0;
    }
  }

  /** Makes message `index` of the batch the one at hand. */
  read(index: number): void {
    const { headers, names, buffers } = this.#buffers;
    const view = this.#view;
    const header = headers + index * MMSGHDR_BYTES;
    this.at = buffers + index * BUFFER_BYTES;
    this.length = view.getUint32(header + 56, true);
    this.segmentBytes = Math.max(1, this.length);
    this.truncated = (view.getUint32(header + 48, true) & MSG_TRUNC) !== 0;
    const name = names + index * NAME_BYTES;
    const isV4 = view.getUint16(name, true) === AF_INET;
    this.source.family = isV4 ? PathKind.v4 : PathKind.v6;
    this.source.at = name + (isV4 ? 4 : 8);
    this.source.port = view.getUint16(name + 2);
    this.local.family = PathKind.none;
    this.#readControl(index, view.getUint32(header + 40, true));
  }

  #readControl(index: number, controlBytes: number): void {
    const view = this.#view;
    const start = this.#buffers.controls + index * CONTROL_BYTES;
    const end = start + Math.min(controlBytes, CONTROL_BYTES);
    for (let at = start; at + CMSG_HEADER_BYTES <= end; ) {
      const length = view.getUint32(at, true);
      if (length < CMSG_HEADER_BYTES || at + length > end) return;
      const data = at + CMSG_HEADER_BYTES;
      const level = view.getUint32(at + 8, true);
      const type = view.getUint32(at + 12, true);
      if (level === SOL_UDP && type === UDP_GRO) {
        const segment = view.getUint32(data, true);
        if (segment > 0) this.segmentBytes = segment;
      } else if (level === SOL_IP && type === IP_PKTINFO) {
        this.#setLocal(PathKind.v4, data + 8);
      } else if (level === SOL_IPV6 && type === IPV6_PKTINFO) {
        this.#setLocal(PathKind.v6, data);
      } else if (level === SOL_SOCKET && type === SO_RXQ_OVFL) {
        const drops = view.getUint32(data, true);
        this.#stats.words[Counter["drop-socket-queue"]]! += (drops - this.#kernelDrops) >>> 0;
        this.#kernelDrops = drops;
      }
      at += (length + 7) & ~7;
    }
  }

  #setLocal(family: PathKind, at: number): void {
    this.local.family = family;
    this.local.at = at;
    this.local.port = this.#port;
  }
}
