import { Errno } from "#net/errno.ts";
import { type Libc, libc } from "#net/libc.ts";
import type { Arena } from "./arena.ts";
import { PathKind, type Peer, SOCKADDR_WORDS } from "./peers.ts";
import type { Reporter } from "./reporter.ts";
import { Counter, type Stats } from "./stats.ts";

/** A batch is sent when this much is encrypted. Measured: 384 KiB beats 64 and 192 by 5 to 15 %, and adds no latency. */
const BATCH_BYTES = 384 << 10;
/** Room for the packet that crosses the line: 64 KiB and the overhead of its segments. */
const SLACK_BYTES = 140 << 10;
const MAX_MESSAGES = 512;
/** A batch ends here too, so that the segments of one more packet find messages when each needs its own. */
const BATCH_MESSAGES = 400;

/** UDP_SEGMENT takes at most 64 datagrams in kernels before 6.x, and one UDP datagram's worth of bytes. */
const MAX_SEGMENTS = 64;
const MAX_MESSAGE_BYTES_V4 = 65_507;
const MAX_MESSAGE_BYTES_V6 = 65_527;

const MMSGHDR_BYTES = 64;
const IOVEC_BYTES = 16;
const NAME_BYTES = 32;
/** cmsghdr of 16 bytes, 2 bytes of size, padding. */
const CONTROL_BYTES = 24;
const MSG_DONTWAIT = 0x40;
const SOL_UDP = 17;
const UDP_SEGMENT = 103;

export interface SendQueueOptions {
  readonly v4Fd: number;
  readonly v6Fd: number;
  readonly gso: boolean;
}

/**
 * Encrypted datagrams on their way to the sockets. Consecutive datagrams of one size to one peer share a message, which the
 * kernel (or the network card) cuts again; `flush` sends all messages with as few calls as the two sockets allow.
 *
 *   message  #at, #bytes: its place in the buffer; #segment: datagram size; #count: datagrams
 */
export class SendQueue {
  /** Device clock of this turn of the loop. */
  now = 0;
  /** The family whose socket has no room (4 or 6), else 0. Nothing is accepted until `flush` succeeds. */
  blockedFamily = 0;
  readonly #libc: Libc;
  readonly #arena: Arena;
  readonly #stats: Stats;
  readonly #reporter: Reporter;
  readonly #fd: { readonly 4: number; readonly 6: number };
  readonly #gso: { 4: boolean; 6: boolean };
  readonly #out: number;
  readonly #headers: number;
  readonly #iovecs: number;
  readonly #names: number;
  readonly #controls: number;
  readonly #at = new Int32Array(MAX_MESSAGES);
  readonly #bytes = new Int32Array(MAX_MESSAGES);
  readonly #segment = new Int32Array(MAX_MESSAGES);
  readonly #count = new Int32Array(MAX_MESSAGES);
  readonly #family = new Uint8Array(MAX_MESSAGES);
  readonly #peer: (Peer | undefined)[] = new Array<Peer | undefined>(MAX_MESSAGES).fill(undefined);
  /** Messages in the queue, those already sent, those whose headers are filled in. */
  #messages = 0;
  #sent = 0;
  #filled = 0;
  #end = 0;
  /** The last message takes more. */
  #open = false;

  constructor(arena: Arena, stats: Stats, reporter: Reporter, options: SendQueueOptions) {
    this.#libc = libc();
    this.#arena = arena;
    this.#stats = stats;
    this.#reporter = reporter;
    this.#fd = { 4: options.v4Fd, 6: options.v6Fd };
    this.#gso = { 4: options.gso, 6: options.gso };
    this.#out = arena.take(BATCH_BYTES + SLACK_BYTES);
    this.#headers = arena.take(MAX_MESSAGES * MMSGHDR_BYTES);
    this.#iovecs = arena.take(MAX_MESSAGES * IOVEC_BYTES);
    this.#names = arena.take(MAX_MESSAGES * NAME_BYTES);
    this.#controls = arena.take(MAX_MESSAGES * CONTROL_BYTES);
    for (let i = 0; i < MAX_MESSAGES; i++) {
      const header = this.#headers + i * MMSGHDR_BYTES;
      const control = this.#controls + i * CONTROL_BYTES;
      arena.setPointer(header, this.#names + i * NAME_BYTES);
      arena.setPointer(header + 16, this.#iovecs + i * IOVEC_BYTES);
      arena.setSize(header + 24, 1);
      arena.setPointer(header + 32, control);
      arena.setSize(control, 18);
      arena.view.setUint32(control + 8, SOL_UDP, true);
      arena.view.setUint32(control + 12, UDP_SEGMENT, true);
    }
  }

  /** A batch is together: send before more is added. */
  get full(): boolean {
    return this.#end >= BATCH_BYTES || this.#messages >= BATCH_MESSAGES;
  }

  /** Arena offset where a datagram of `size` bytes to the peer's UDP path goes; -1 when it is dropped. */
  reserve(peer: Peer, size: number): number {
    const last = this.#messages - 1;
    if (
      this.#open &&
      this.#peer[last] === peer &&
      size <= this.#segment[last]! &&
      this.#count[last]! < MAX_SEGMENTS &&
      this.#bytes[last]! + size <= (this.#family[last] === 4 ? MAX_MESSAGE_BYTES_V4 : MAX_MESSAGE_BYTES_V6) &&
      this.#end + size <= BATCH_BYTES + SLACK_BYTES
    ) {
      const at = this.#at[last]! + this.#bytes[last]!;
      this.#bytes[last]! += size;
      this.#count[last]!++;
      this.#end = at + size - this.#out;
      // Only the last datagram may be smaller.
      if (size < this.#segment[last]!) this.#open = false;
      return at;
    }
    return this.#startMessage(peer, size);
  }

  /** The path of a peer changed: later datagrams go elsewhere. */
  closeMessage(): void {
    this.#open = false;
  }

  /** Sends everything. False when a socket's buffer is full; the rest stays, and nothing is accepted until it is gone. */
  flush(): boolean {
    this.#open = false;
    this.#fillHeaders();
    while (this.#sent < this.#messages) {
      const first = this.#sent;
      const family = this.#family[first]! as 4 | 6;
      let end = first + 1;
      while (end < this.#messages && this.#family[end] === family) end++;
      const address = this.#arena.base + this.#headers + first * MMSGHDR_BYTES;
      const sent = this.#libc.sendmmsg(this.#fd[family], address, end - first, MSG_DONTWAIT);
      if (sent > 0) {
        this.#stats.words[Counter["udp-send-calls"]]!++;
        this.#sent += sent;
        continue;
      }
      const errno = this.#libc.errno();
      if (errno === Errno.EINTR) continue;
      if (errno === Errno.EAGAIN) {
        this.blockedFamily = family;
        return false;
      }
      // The error is the first message's: deal with it and go on behind it.
      this.#failed(first, family, errno);
      this.#sent++;
    }
    for (let i = 0; i < this.#messages; i++) this.#peer[i] = undefined;
    this.#messages = 0;
    this.#sent = 0;
    this.#filled = 0;
    this.#end = 0;
    this.blockedFamily = 0;
    return true;
  }

  #startMessage(peer: Peer, size: number): number {
    const start = (this.#end + 63) & ~63;
    if (this.blockedFamily === 0 && (this.#messages === MAX_MESSAGES || start + size > BATCH_BYTES + SLACK_BYTES)) {
      this.flush();
      return this.blockedFamily === 0 ? this.#startMessage(peer, size) : this.#dropped();
    }
    const family = peer.path === PathKind.v6 ? 6 : 4;
    if (this.blockedFamily !== 0 || this.#fd[family] < 0) return this.#dropped();
    const index = this.#messages++;
    const at = this.#out + start;
    this.#at[index] = at;
    this.#bytes[index] = size;
    this.#segment[index] = size;
    this.#count[index] = 1;
    this.#family[index] = family;
    this.#peer[index] = peer;
    const name = this.#names + index * NAME_BYTES;
    for (let i = 0; i < SOCKADDR_WORDS; i++) this.#arena.view.setUint32(name + 4 * i, peer.sockaddr[i]!, true);
    this.#end = start + size;
    this.#open = peer.gso && this.#gso[family];
    return at;
  }

  #dropped(): -1 {
    this.#stats.words[Counter["drop-send"]]!++;
    return -1;
  }

  #fillHeaders(): void {
    const { view } = this.#arena;
    for (let i = this.#filled; i < this.#messages; i++) {
      const header = this.#headers + i * MMSGHDR_BYTES;
      const iovec = this.#iovecs + i * IOVEC_BYTES;
      const many = this.#count[i]! > 1;
      view.setUint32(header + 8, this.#family[i] === 4 ? 16 : 28, true);
      view.setUint32(header + 40, many ? CONTROL_BYTES : 0, true);
      if (many) view.setUint16(this.#controls + i * CONTROL_BYTES + 16, this.#segment[i]!, true);
      this.#arena.setPointer(iovec, this.#at[i]!);
      this.#arena.setSize(iovec + 8, this.#bytes[i]!);
      this.#stats.words[Counter["tx-datagrams"]]! += this.#count[i]!;
    }
    this.#filled = this.#messages;
  }

  #failed(index: number, family: 4 | 6, errno: number): void {
    const peer = this.#peer[index]!;
    const many = this.#count[index]! > 1;
    switch (errno) {
      case Errno.EIO:
      case Errno.EINVAL:
      case Errno.EMSGSIZE:
      case Errno.EOPNOTSUPP:
        if (!many) break;
        this.#stats.words[Counter["gso-refused"]]!++;
        if (errno === Errno.EIO || errno === Errno.EOPNOTSUPP) {
          // The way out cannot checksum, so the kernel does not cut: no use to ask again on this socket.
          this.#gso[family] = false;
          this.#stats.words[Counter["gso-disabled"]]!++;
        } else {
          // A datagram does not fit the path's MTU: one at a time the kernel can fragment it.
          peer.gso = false;
        }
        this.#sendSingly(index, family);
        return;
      default:
        break;
    }
    this.#countFailure(peer, this.#count[index]!, errno);
  }

  #sendSingly(index: number, family: 4 | 6): void {
    const peer = this.#peer[index]!;
    const name = this.#arena.base + this.#names + index * NAME_BYTES;
    const nameBytes = family === 4 ? 16 : 28;
    const end = this.#at[index]! + this.#bytes[index]!;
    for (let at = this.#at[index]!; at < end; at += this.#segment[index]!) {
      const bytes = Math.min(this.#segment[index]!, end - at);
      const address = this.#arena.base + at;
      let sent = -1;
      let errno = Errno.EINTR as number;
      while (sent < 0 && errno === Errno.EINTR) {
        sent = this.#libc.sendto(this.#fd[family], address, bytes, MSG_DONTWAIT, name, nameBytes);
        if (sent < 0) errno = this.#libc.errno();
      }
      if (sent < 0) this.#countFailure(peer, 1, errno);
    }
  }

  #countFailure(peer: Peer, datagrams: number, errno: number): void {
    const { words } = this.#stats;
    if (errno === Errno.EMSGSIZE) words[Counter["drop-message-too-big"]]! += datagrams;
    else words[Counter["drop-send"]]! += datagrams;
    // A full queue passes by itself (EAGAIN, ENOBUFS); ECONNREFUSED is about somebody else's datagram.
    const transient = errno === Errno.EAGAIN || errno === Errno.ENOBUFS || errno === Errno.ECONNREFUSED;
    if (!transient && (peer.path === PathKind.v4 || peer.path === PathKind.v6))
      this.#reporter.pathError(peer, errno, this.now);
  }
}
