import { PerchError } from "#base/errors.ts";

/*
 * The little of gRPC over HTTP/2 that signal needs, for both sides.
 *
 *   message:   flag u8 (1 = compressed) | length u32 big-endian | protobuf
 *   response:  HEADERS :status 200, initial metadata; messages; HEADERS grpc-status, grpc-message (percent-encoded)
 *
 * It is written out here, and not taken from a library, because stock agents wait for the response HEADERS of a stream on
 * which no message may ever travel, and because a message has to leave in the event-loop turn in which it was sent.
 * Source: the gRPC project's PROTOCOL-HTTP2 document.
 */

export const GRPC_FRAME_HEADER_BYTES = 5;

export const GrpcStatus = {
  ok: 0,
  unknown: 2,
  deadlineExceeded: 4,
  resourceExhausted: 8,
  failedPrecondition: 9,
  unimplemented: 12,
  internal: 13,
  unavailable: 14,
} as const;
export type GrpcStatus = (typeof GrpcStatus)[keyof typeof GrpcStatus];

/** The stream cannot be read on; `status` is what to end it with. */
export class GrpcWireError extends PerchError<"grpc-message-too-large" | "grpc-compressed"> {
  get status(): GrpcStatus {
    return this.code === "grpc-compressed" ? GrpcStatus.unimplemented : GrpcStatus.resourceExhausted;
  }
}

/** One message as it travels; a fresh buffer. */
export function encodeGrpcFrame(payload: Uint8Array): Buffer {
  const frame = Buffer.allocUnsafe(GRPC_FRAME_HEADER_BYTES + payload.length);
  frame[0] = 0;
  frame.writeUInt32BE(payload.length, 1);
  frame.set(payload, GRPC_FRAME_HEADER_BYTES);
  return frame;
}

/** Cuts a byte stream into messages. Holds at most one unfinished message. */
export class GrpcFrameReader {
  readonly #maxBytes: number;
  #rest: Uint8Array[] = [];
  #have = 0;
  /** Bytes of the message being collected, header included; undefined until its header is complete. */
  #want: number | undefined;

  /** `maxBytes` bounds a message without its header. */
  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  /** Takes the next bytes and returns the messages they complete. Throws GrpcWireError; the reader is unusable then. */
  push(chunk: Uint8Array): Uint8Array[] {
    const messages: Uint8Array[] = [];
    this.#rest.push(chunk);
    this.#have += chunk.length;
    for (;;) {
      if (this.#want === undefined) {
        if (this.#have < GRPC_FRAME_HEADER_BYTES) return messages;
        const header = this.#joined();
        const length = new DataView(header.buffer, header.byteOffset).getUint32(1);
        if (length > this.#maxBytes)
          throw new GrpcWireError("grpc-message-too-large", `message of ${length} bytes, limit ${this.#maxBytes}`);
        if (header[0] !== 0) throw new GrpcWireError("grpc-compressed", "compressed messages are not supported");
        this.#want = GRPC_FRAME_HEADER_BYTES + length;
      }
      if (this.#have < this.#want) return messages;
      const bytes = this.#joined();
      messages.push(bytes.subarray(GRPC_FRAME_HEADER_BYTES, this.#want));
      this.#rest = bytes.length > this.#want ? [bytes.subarray(this.#want)] : [];
      this.#have -= this.#want;
      this.#want = undefined;
    }
  }

  #joined(): Uint8Array {
    const [only] = this.#rest;
    if (only && this.#rest.length === 1) return only;
    const bytes = Buffer.concat(this.#rest);
    this.#rest = [bytes];
    return bytes;
  }
}

/** Text of grpc-message: everything but printable ASCII, and `%`, is percent-encoded. */
export function encodeGrpcMessage(text: string): string {
  return Buffer.from(text).reduce(
    (out, byte) =>
      out +
      (byte >= 0x20 && byte <= 0x7e && byte !== 0x25
        ? String.fromCharCode(byte)
        : `%${byte.toString(16).toUpperCase().padStart(2, "0")}`),
    "",
  );
}

/** The inverse; text with broken escapes is returned as it came. */
export function decodeGrpcMessage(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
