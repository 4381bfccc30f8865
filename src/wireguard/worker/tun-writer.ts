import { Errno } from "#net/errno.ts";
import { type Libc, libc } from "#net/libc.ts";
import type { Arena } from "./arena.ts";
import type { PacketSink } from "./coalesce.ts";
import { VIRTIO } from "./inner-packet.ts";
import { Counter, type Stats } from "./stats.ts";

/** Writes inner packets to the TUN, and knows when the interface is gone. Non-blocking: what the kernel refuses is lost. */
export class TunWriter implements PacketSink {
  readonly virtioHeader: boolean;
  /** The interface was deleted: nothing will be read or written any more. */
  gone = false;
  readonly #libc: Libc;
  readonly #fd: number;
  readonly #arena: Arena;
  readonly #stats: Stats;

  constructor(arena: Arena, stats: Stats, fd: number, virtioHeader: boolean) {
    this.virtioHeader = virtioHeader;
    this.#libc = libc();
    this.#fd = fd;
    this.#arena = arena;
    this.#stats = stats;
  }

  /** Writes the packet at `at`; the 10 bytes in front of it are overwritten. The kernel verifies its checksum. */
  writePacket(at: number, length: number): void {
    const header = this.virtioHeader ? VIRTIO.bytes : 0;
    const from = at - header;
    for (let i = from; i < at; i++) this.#arena.bytes[i] = 0;
    const address = this.#arena.base + from;
    for (;;) {
      if (this.#libc.write(this.#fd, address, length + header) >= 0) return this.#written();
      if (this.#givesUp(this.#libc.errno())) return;
    }
  }

  /** Writes one packet from `count` pieces whose iovecs lie at `iovecs`; the first begins with a virtio header. */
  writePieces(iovecs: number, count: number): void {
    const address = this.#arena.base + iovecs;
    for (;;) {
      if (this.#libc.writev(this.#fd, address, count) >= 0) return this.#written();
      if (this.#givesUp(this.#libc.errno())) return;
    }
  }

  #written(): void {
    this.#stats.words[Counter["tun-write"]]!++;
  }

  /** False when the call was only interrupted; else counts the packet as lost. */
  #givesUp(errno: number): boolean {
    if (errno === Errno.EINTR) return false;
    // EIO: the interface is down. EINVAL: the kernel does not like the packet. EAGAIN, ENOBUFS, ENOMEM: it has no room.
    this.#stats.words[Counter["drop-tun-write"]]!++;
    if (errno === Errno.EBADFD || errno === Errno.EBADF) this.gone = true;
    return true;
  }
}
