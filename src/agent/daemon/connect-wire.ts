import { fromBinary } from "@bufbuild/protobuf";
import { PerchError } from "#base/errors.ts";
import { MessageReader } from "#base/flagged-messages.ts";
import { ErrorDetailSchema } from "#gen/daemon_pb.ts";
import { DaemonError } from "./daemon-error.ts";

/*
 * The Connect protocol over HTTP/1.1, as far as a client of the daemon's API needs it.
 *
 *   one answer:   POST /SERVICE/METHOD with a message; status 200 and a message, else an error
 *   a stream:     POST with one envelope; status 200 and envelopes, the last of which is the end
 *   envelope:     flags u8 (1 = compressed, never asked for; 2 = the end) | length u32 big-endian | message
 *   end:          JSON { error? }
 *   error:        JSON { code, message?, details?: [{ type, value: base64 }] }
 *
 * It is written out here, and not taken from a library, because commands are programs that run for a tenth of a second: loading
 * the library's client, with the HTTP/2 and the fetch that it brings, took as long as all the rest of `perch status`.
 * Source: connectrpc.com/docs/protocol.
 */

export const CONTENT_TYPES = { unary: "application/proto", stream: "application/connect+proto" } as const;
/** Of one message from the daemon; the largest by far are parts of a status, some 100 KiB. */
export const MESSAGE_MAX_BYTES = 64 * 2 ** 20;

const FLAG_END = 2;

/** A failure that the daemon reported, with the code it gave. */
export class RemoteError extends PerchError {}

export type Envelope =
  | { readonly kind: "message"; readonly bytes: Uint8Array }
  | { readonly kind: "end"; readonly error: PerchError | undefined };

/** Cuts a byte stream into envelopes. Holds at most one unfinished one. */
export class EnvelopeReader {
  readonly #messages = new MessageReader((_, length) => {
    if (length > MESSAGE_MAX_BYTES)
      throw new DaemonError("daemon-lost", `a message is at most ${MESSAGE_MAX_BYTES} bytes, got ${length}`);
  });

  /**
   * Takes the next bytes and yields the envelopes that they complete, which may share memory with `chunk`. Throws DaemonError
   * `daemon-lost` for what is not Connect; the reader is unusable then.
   */
  *push(chunk: Uint8Array): Generator<Envelope> {
    for (const { flags, bytes } of this.#messages.push(chunk)) yield parseEnvelope(flags, bytes);
  }
}

function parseEnvelope(flags: number, bytes: Buffer): Envelope {
  switch (flags) {
    case 0:
      return { kind: "message", bytes };
    case FLAG_END: {
      const { error } = parseJson(bytes);
      return { kind: "end", error: error === undefined ? undefined : remoteError(error) };
    }
    default:
      throw new DaemonError("daemon-lost", `the flags of an envelope are 0 or ${FLAG_END}, got ${flags}`);
  }
}

/** The error of an answer whose status is not 200. */
export function parseError(body: Uint8Array): PerchError {
  return remoteError(parseJson(asBuffer(body)));
}

/** RemoteError where the daemon told its code; DaemonError `daemon-lost` where its transport failed, as it does when it ends. */
function remoteError(error: unknown): PerchError {
  const { message, details } = recordOf(error);
  for (const detail of Array.isArray(details) ? details : []) {
    const { type, value } = recordOf(detail);
    if (type !== ErrorDetailSchema.typeName || typeof value !== "string") continue;
    const { code, retryable } = fromBinary(ErrorDetailSchema, Buffer.from(value, "base64"));
    return new RemoteError(code, typeof message === "string" ? message : code, { retryable });
  }
  return new DaemonError("daemon-lost", typeof message === "string" ? message : "no reason was given");
}

function parseJson(bytes: Buffer): { readonly [name: string]: unknown } {
  return recordOf(JSON.parse(bytes.toString("utf8")));
}

function recordOf(value: unknown): { readonly [name: string]: unknown } {
  if (typeof value === "object" && value !== null) return value as { readonly [name: string]: unknown };
  throw new DaemonError("daemon-lost", "an error is a JSON object");
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
