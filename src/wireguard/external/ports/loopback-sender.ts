import { Errno } from "#net/errno.ts";
import { libc } from "#net/libc.ts";
import { AF_INET } from "#net/sockaddr.ts";
import { Arena } from "../../worker/arena.ts";

/** Messages and bytes that wait for the end of the turn. */
const SLOTS = 64;
const BUFFER_BYTES = 512 << 10;
/** UDP_MAX_SEGMENTS of older kernels, and the most that one IPv4 packet carries. */
const SEGMENTS_MAX = 64;
const MESSAGE_BYTES_MAX = 65_507;

/*
 * mmsghdr 64 B: name 0/8, name bytes 8/4, iov 16/8, iov count 24/8, control 32/8, control bytes 40/8, flags 48/4, sent bytes 56/4
 * cmsghdr length 0/8, level 8/4, type 12/4, data at 16
 * IP_PKTINFO (0, 8): interface 0/4, local address 4/4, destination 8/4; 28 of 32 B      UDP_SEGMENT (17, 103): size 0/2; 18 of 24 B
 */
const MMSGHDR_BYTES = 64;
const IOVEC_BYTES = 16;
const PKTINFO_SPACE = 32;
const CONTROL_BYTES = PKTINFO_SPACE + 24;
const NAME_BYTES = 16;
const MSG_DONTWAIT = 0x40;
const LOOPBACK_V4 = 0x7f000001;

/**
 * Sends datagrams to a port of 127.0.0.1 from addresses of 127.0.0.0/8, all on one socket. What is queued in one turn of the
 * event loop leaves together at its end: one call, and equal datagrams in a row from one address as one message.
 */
export class LoopbackSender {
  readonly #fd: number;
  readonly #libc = libc();
  readonly #arena = new Arena(BUFFER_BYTES + SLOTS * (MMSGHDR_BYTES + IOVEC_BYTES + CONTROL_BYTES) + 8192, false);
  readonly #headers: number;
  readonly #iovecs: number;
  readonly #controls: number;
  readonly #name: number;
  readonly #buffer: number;
  #canMerge = true;
  #messages = 0;
  #bytes = 0;
  #isScheduled = false;
  #isClosed = false;
  /** Of the message begun last. */
  #source = 0;
  #segmentBytes = 0;
  #segments = 0;
  #messageBytes = 0;
  #dropped = 0;

  constructor(fd: number) {
    this.#fd = fd;
    const arena = this.#arena;
    this.#headers = arena.take(SLOTS * MMSGHDR_BYTES);
    this.#iovecs = arena.take(SLOTS * IOVEC_BYTES);
    this.#controls = arena.take(SLOTS * CONTROL_BYTES);
    this.#name = arena.take(NAME_BYTES);
    this.#buffer = arena.take(BUFFER_BYTES);
    arena.view.setUint16(this.#name, AF_INET, true);
    arena.view.setUint32(this.#name + 4, LOOPBACK_V4);
    for (let slot = 0; slot < SLOTS; slot++) {
      const header = this.#headers + slot * MMSGHDR_BYTES;
      const control = this.#controls + slot * CONTROL_BYTES;
      arena.setPointer(header, this.#name);
      arena.view.setUint32(header + 8, NAME_BYTES, true);
      arena.setPointer(header + 16, this.#iovecs + slot * IOVEC_BYTES);
      arena.setSize(header + 24, 1);
      arena.setPointer(header + 32, control);
      arena.setSize(control, 28);
      arena.view.setUint32(control + 12, 8, true);
      arena.setSize(control + PKTINFO_SPACE, 18);
      arena.view.setUint32(control + PKTINFO_SPACE + 8, 17, true);
      arena.view.setUint32(control + PKTINFO_SPACE + 12, 103, true);
    }
  }

  /** Datagrams that the kernel did not take. */
  get dropped(): number {
    return this.#dropped;
  }

  /** Where everything goes from now on; what is queued goes to the earlier port. */
  setPort(port: number): void {
    this.flush();
    this.#arena.view.setUint16(this.#name + 2, port);
  }

  /** Copies the datagram. `source`: an IPv4 address as a number. False when it is larger than a datagram can be. */
  queue(source: number, datagram: Uint8Array): boolean {
    const { length } = datagram;
    if (this.#isClosed || length > MESSAGE_BYTES_MAX) return false;
    if (this.#bytes + length > BUFFER_BYTES) this.flush();
    const isMore =
      this.#canMerge &&
      this.#messages > 0 &&
      source === this.#source &&
      length > 0 &&
      length <= this.#segmentBytes &&
      this.#segments < SEGMENTS_MAX &&
      // A smaller one was the last.
      this.#messageBytes === this.#segments * this.#segmentBytes &&
      this.#messageBytes + length <= MESSAGE_BYTES_MAX;
    if (!isMore && this.#messages === SLOTS) this.flush();
    this.#arena.bytes.set(datagram, this.#buffer + this.#bytes);
    if (isMore) {
      this.#segments++;
      this.#messageBytes += length;
    } else this.#begin(source, length);
    this.#bytes += length;
    this.#describe();
    if (!this.#isScheduled) {
      this.#isScheduled = true;
      queueMicrotask(() => {
        this.#isScheduled = false;
        this.flush();
      });
    }
    return true;
  }

  /** Sends what is queued, without waiting; what the kernel does not take is dropped and counted. */
  flush(): void {
    const messages = this.#messages;
    this.#messages = 0;
    this.#bytes = 0;
    for (let sent = 0; sent < messages && !this.#isClosed; ) {
      const count = this.#send(sent, messages - sent);
      if (count > 0) {
        sent += count;
        continue;
      }
      const errno = this.#libc.errno();
      if (errno === Errno.EINTR) continue;
      if (this.#segmentsOf(sent) > 1 && (errno === Errno.EIO || errno === Errno.EINVAL)) {
        this.#canMerge = false;
        this.#sendSingly(sent);
      } else this.#dropped += this.#segmentsOf(sent);
      sent++;
    }
  }

  /** The descriptor is the owner's, who may close it now. */
  close(): void {
    this.flush();
    this.#isClosed = true;
  }

  #begin(source: number, length: number): void {
    const slot = this.#messages++;
    this.#source = source;
    this.#segmentBytes = length;
    this.#segments = 1;
    this.#messageBytes = length;
    const { view } = this.#arena;
    this.#arena.setPointer(this.#iovecs + slot * IOVEC_BYTES, this.#buffer + this.#bytes);
    view.setUint32(this.#controls + slot * CONTROL_BYTES + 16 + 4, source);
  }

  /** Brings the lengths of the message begun last up to date. */
  #describe(): void {
    const slot = this.#messages - 1;
    const { view } = this.#arena;
    this.#arena.setSize(this.#iovecs + slot * IOVEC_BYTES + 8, this.#messageBytes);
    const control = this.#controls + slot * CONTROL_BYTES;
    view.setUint16(control + PKTINFO_SPACE + 16, this.#segmentBytes, true);
    this.#arena.setSize(this.#headers + slot * MMSGHDR_BYTES + 40, this.#segments > 1 ? CONTROL_BYTES : PKTINFO_SPACE);
  }

  #send(from: number, count: number): number {
    const address = this.#arena.base + this.#headers + from * MMSGHDR_BYTES;
    return this.#libc.sendmmsg(this.#fd, address, count, MSG_DONTWAIT);
  }

  #segmentsOf(slot: number): number {
    const { view } = this.#arena;
    if (view.getUint32(this.#headers + slot * MMSGHDR_BYTES + 40, true) === PKTINFO_SPACE) return 1;
    const bytes = view.getUint32(this.#iovecs + slot * IOVEC_BYTES + 8, true);
    return Math.ceil(bytes / view.getUint16(this.#controls + slot * CONTROL_BYTES + PKTINFO_SPACE + 16, true));
  }

  /** Each datagram of a message that the kernel does not cut. */
  #sendSingly(slot: number): void {
    const { view } = this.#arena;
    const iovec = this.#iovecs + slot * IOVEC_BYTES;
    const segment = view.getUint16(this.#controls + slot * CONTROL_BYTES + PKTINFO_SPACE + 16, true);
    const total = view.getUint32(iovec + 8, true);
    const start = this.#startOf(iovec);
    this.#arena.setSize(this.#headers + slot * MMSGHDR_BYTES + 40, PKTINFO_SPACE);
    for (let at = 0; at < total; at += segment) {
      this.#arena.setPointer(iovec, start + at);
      this.#arena.setSize(iovec + 8, Math.min(segment, total - at));
      if (this.#send(slot, 1) < 1) this.#dropped++;
    }
  }

  /** Offset in the arena that an iovec points to. */
  #startOf(iovec: number): number {
    const { view, base } = this.#arena;
    return view.getUint32(iovec, true) + view.getUint32(iovec + 4, true) * 0x100000000 - base;
  }
}
