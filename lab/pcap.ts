import { closeSync, openSync, writeSync } from "node:fs";
import type { Millis } from "#base/time.ts";

/**
 * The classic capture file (draft-ietf-opsawg-pcap), little-endian, microseconds, link type RAW: bare IPv4 and IPv6.
 *
 * ```
 * file    4 magic | 2+2 version 2.4 | 4 zone | 4 accuracy | 4 snap length | 4 link type
 * record  4 seconds | 4 microseconds | 4 bytes here | 4 bytes on the wire
 * ```
 */
const MAGIC = 0xa1b2c3d4;
const LINKTYPE_RAW = 101;
const SNAP_BYTES = 65_535;
const FILE_HEADER_BYTES = 24;
const RECORD_HEADER_BYTES = 16;
const BUFFER_BYTES = 256 * 1024;

/** Writes packets to a capture file; they are on disk after `flush`, which the owner calls when it has nothing to do. */
export class PcapWriter {
  readonly #fd: number;
  readonly #buffer = Buffer.allocUnsafe(BUFFER_BYTES);
  #used = 0;

  /** Replaces the file. Throws what openSync throws. */
  constructor(path: string) {
    this.#fd = openSync(path, "w", 0o644);
    const header = this.#buffer;
    header.writeUInt32LE(MAGIC, 0);
    header.writeUInt16LE(2, 4);
    header.writeUInt16LE(4, 6);
    header.writeUInt32LE(0, 8);
    header.writeUInt32LE(0, 12);
    header.writeUInt32LE(SNAP_BYTES, 16);
    header.writeUInt32LE(LINKTYPE_RAW, 20);
    this.#used = FILE_HEADER_BYTES;
    this.flush();
  }

  /** Records the packet at the start of `bytes`; `wall` is milliseconds since the Unix epoch, fractions count. */
  write(bytes: Uint8Array, length: number, wall: Millis): void {
    const kept = Math.min(length, SNAP_BYTES);
    if (this.#used + RECORD_HEADER_BYTES + kept > BUFFER_BYTES) this.flush();
    const at = this.#used;
    const seconds = Math.floor(wall / 1000);
    this.#buffer.writeUInt32LE(seconds, at);
    this.#buffer.writeUInt32LE(Math.floor((wall - seconds * 1000) * 1000), at + 4);
    this.#buffer.writeUInt32LE(kept, at + 8);
    this.#buffer.writeUInt32LE(length, at + 12);
    this.#buffer.set(kept === bytes.length ? bytes : bytes.subarray(0, kept), at + RECORD_HEADER_BYTES);
    this.#used = at + RECORD_HEADER_BYTES + kept;
  }

  flush(): void {
    let at = 0;
    while (at < this.#used) at += writeSync(this.#fd, this.#buffer, at, this.#used - at);
    this.#used = 0;
  }

  close(): void {
    this.flush();
    closeSync(this.#fd);
  }
}
