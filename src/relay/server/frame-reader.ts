import type { Duplex } from "node:stream";
import { applyMask } from "../protocol/frame-mask.ts";

const FIN_BINARY = 0x82;
const FIN = 0x80;
const MASKED = 0x80;
const KEY_BYTES = 4;
/** Above these come the control frames. */
const DATA_OPCODE_MAX = 2;
/** Longest header of a frame that is read here: 2 + 2 + 4. */
const HEADER_MAX_BYTES = 8;

export interface FrameReaderDeps {
  /** The message of a plain frame, unmasked in place: a view of the memory that was read. */
  readonly deliver: (message: Buffer) => void;
  /** Bytes of all other frames, in order; a frame may come in pieces. */
  readonly other: (bytes: Buffer) => void;
}

/**
 * Reads what agents send nearly always: masked, unfragmented binary frames (RFC 6455, 5.2) of at most `maxBytes`. Whatever
 * else there is, control frames, fragments, broken ones, goes to somebody who knows the whole protocol, as it came. Spares the
 * relay a quarter of its time, most of it for unmasking byte by byte.
 */
export class FrameReader {
  readonly #deps: FrameReaderDeps;
  readonly #maxBytes: number;
  /** Beginning of a frame: part of its header, or a plain frame that is not complete. */
  #rest: Buffer | undefined;
  /** Bytes to come of a frame for `other`. */
  #otherBytes = 0;
  /** A fragmented message has begun: what comes before its end is judged there. */
  #isFragmented = false;

  constructor(deps: FrameReaderDeps, maxBytes: number) {
    this.#deps = deps;
    this.#maxBytes = maxBytes;
  }

  push(chunk: Buffer): void {
    let at = 0;
    if (this.#rest) {
      // The frame that was begun is joined alone, not all that came with its end.
      const joined = Buffer.concat([this.#rest, chunk.subarray(0, this.#maxBytes + HEADER_MAX_BYTES)]);
      const used = this.#read(joined, 0);
      if (used === 0) {
        this.#rest = joined;
        return;
      }
      at = used - this.#rest.length;
      this.#rest = undefined;
    }
    while (at < chunk.length) {
      const used = this.#otherBytes > 0 ? this.#passOn(chunk, at) : this.#read(chunk, at);
      if (used === 0) {
        // A copy: this much memory is not kept for the beginning of a frame.
        this.#rest = Buffer.from(chunk.subarray(at));
        return;
      }
      at += used;
    }
  }

  /** Reads one frame at `at` and returns how many bytes it took; 0 when more are needed. */
  #read(bytes: Buffer, at: number): number {
    const left = bytes.length - at;
    if (left < 2) return 0;
    const first = bytes[at]!;
    const short = bytes[at + 1]! & ~MASKED;
    const isMasked = (bytes[at + 1]! & MASKED) !== 0;
    if (short === 127) {
      // Longer than any message here: whoever knows the protocol will end the connection.
      this.#otherBytes = Number.POSITIVE_INFINITY;
      return this.#passOn(bytes, at);
    }
    const lengthEnd = short === 126 ? 4 : 2;
    const header = lengthEnd + (isMasked ? KEY_BYTES : 0);
    if (left < header) return 0;
    const length = short === 126 ? bytes.readUInt16BE(at + 2) : short;
    if (first !== FIN_BINARY || !isMasked || length > this.#maxBytes || this.#isFragmented) {
      if ((first & 0x0f) <= DATA_OPCODE_MAX) this.#isFragmented = (first & FIN) === 0;
      this.#otherBytes = header + length;
      return this.#passOn(bytes, at);
    }
    const end = at + header + length;
    if (end > bytes.length) return 0;
    const key = at + lengthEnd;
    applyMask(bytes, at + header, end, [bytes[key]!, bytes[key + 1]!, bytes[key + 2]!, bytes[key + 3]!]);
    this.#deps.deliver(bytes.subarray(at + header, end));
    return header + length;
  }

  #passOn(bytes: Buffer, at: number): number {
    const used = Math.min(this.#otherBytes, bytes.length - at);
    this.#otherBytes -= used;
    this.#deps.other(bytes.subarray(at, at + used));
    return used;
  }
}

/**
 * Puts a reader between a socket and the WebSocket library that listens to it. Without effect when the library does not
 * listen as expected: it then reads everything.
 */
export function readFrames(socket: Duplex, deliver: (message: Buffer) => void, maxBytes: number): void {
  const listeners = socket.listeners("data");
  const [library] = listeners;
  if (library === undefined || listeners.length > 1) return;
  const reader = new FrameReader({ deliver, other: (bytes) => library.call(socket, bytes) }, maxBytes);
  const read = (chunk: Buffer): void => reader.push(chunk);
  socket.off("data", library as (chunk: Buffer) => void);
  socket.on("data", read);
  socket.once("close", () => socket.off("data", read));
}
