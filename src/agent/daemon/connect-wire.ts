import { fromBinary } from "@bufbuild/protobuf";
import { PerchError } from "#base/errors.ts";
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
export const ENVELOPE_HEADER_BYTES = 5;
/** Of one message from the daemon; the largest by far are parts of a status, some 100 KiB. */
export const MESSAGE_MAX_BYTES = 64 * 2 ** 20;

const FLAG_END = 2;

/** A failure that the daemon reported, with the code it gave. */
export class RemoteError extends PerchError {}

export type Envelope =
  | { readonly kind: "message"; readonly bytes: Uint8Array }
  | { readonly kind: "end"; readonly error: PerchError | undefined };

/** One message as it travels; a fresh buffer. */
export function encodeEnvelope(message: Uint8Array): Buffer {
  const envelope = Buffer.allocUnsafe(ENVELOPE_HEADER_BYTES + message.length);
  envelope[0] = 0;
  envelope.writeUInt32BE(message.length, 1);
  envelope.set(message, ENVELOPE_HEADER_BYTES);
  return envelope;
}

/** Cuts a byte stream into envelopes. Holds at most one unfinished one. */
export class EnvelopeReader {
  #rest: Uint8Array[] = [];
  #have = 0;
  #want = ENVELOPE_HEADER_BYTES;

  /**
   * Takes the next bytes and yields the envelopes that they complete, which may share memory with `chunk`. Throws DaemonError
   * `daemon-lost` for what is not Connect; the reader is unusable then.
   */
  *push(chunk: Uint8Array): Generator<Envelope> {
    this.#rest.push(chunk);
    this.#have += chunk.length;
    while (this.#have >= this.#want) {
      const bytes = this.#rest.length === 1 ? asBuffer(this.#rest[0]!) : Buffer.concat(this.#rest);
      this.#rest = [bytes];
      this.#want = ENVELOPE_HEADER_BYTES + bytes.readUInt32BE(1);
      if (this.#want - ENVELOPE_HEADER_BYTES > MESSAGE_MAX_BYTES)
        throw new DaemonError(
          "daemon-lost",
          `a message is at most ${MESSAGE_MAX_BYTES} bytes, got ${bytes.readUInt32BE(1)}`,
        );
      if (this.#have < this.#want) return;
      const rest = bytes.subarray(this.#want);
      yield parseEnvelope(bytes[0]!, bytes.subarray(ENVELOPE_HEADER_BYTES, this.#want));
      this.#rest = rest.length > 0 ? [rest] : [];
      this.#have = rest.length;
      this.#want = ENVELOPE_HEADER_BYTES;
    }
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
