import { PerchError } from "#base/errors.ts";
import { MessageReader } from "#base/flagged-messages.ts";

/*
 * The little of gRPC over HTTP/2 that signal needs, for both sides.
 *
 *   message:   flag u8 (1 = compressed) | length u32 big-endian | protobuf (base/flagged-messages)
 *   response:  HEADERS :status 200, initial metadata; messages; HEADERS grpc-status, grpc-message (percent-encoded)
 *
 * It is written out here, and not taken from a library, because stock agents wait for the response HEADERS of a stream on
 * which no message may ever travel, and because a message has to leave in the event-loop turn in which it was sent.
 * Source: the gRPC project's PROTOCOL-HTTP2 document.
 */

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

/** Cuts a byte stream into messages. Holds at most one unfinished message. */
export class GrpcFrameReader {
  readonly #messages: MessageReader;

  /** `maxBytes` bounds a message without its header. */
  constructor(maxBytes: number) {
    this.#messages = new MessageReader((flags, length) => {
      if (length > maxBytes)
        throw new GrpcWireError("grpc-message-too-large", `message of ${length} bytes, limit ${maxBytes}`);
      if (flags !== 0) throw new GrpcWireError("grpc-compressed", "compressed messages are not supported");
    });
  }

  /** Takes the next bytes and returns the messages they complete. Throws GrpcWireError; the reader is unusable then. */
  push(chunk: Uint8Array): Uint8Array[] {
    return [...this.#messages.push(chunk)].map(({ bytes }) => bytes);
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
