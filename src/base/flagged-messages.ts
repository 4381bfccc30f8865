/*
 * Messages in a byte stream as gRPC and Connect write them:
 *
 *   flags u8 | length u32 big-endian | message
 */
export const MESSAGE_HEADER_BYTES = 5;

export interface FlaggedMessage {
  readonly flags: number;
  readonly bytes: Buffer;
}

/** One message as it travels, with flags 0; a fresh buffer. */
export function encodeMessage(message: Uint8Array): Buffer {
  const whole = Buffer.allocUnsafe(MESSAGE_HEADER_BYTES + message.length);
  whole[0] = 0;
  whole.writeUInt32BE(message.length, 1);
  whole.set(message, MESSAGE_HEADER_BYTES);
  return whole;
}

/** Cuts a byte stream into messages. Holds at most one unfinished one. */
export class MessageReader {
  readonly #check: (flags: number, length: number) => void;
  #rest: Uint8Array[] = [];
  #have = 0;
  /** Bytes of the message being collected, header included; undefined until its header is complete. */
  #want: number | undefined;

  /** `check` throws for a header that is not to be read on; the reader is unusable then. */
  constructor(check: (flags: number, length: number) => void) {
    this.#check = check;
  }

  /** Takes the next bytes and yields the messages that they complete, which may share memory with `chunk`. */
  *push(chunk: Uint8Array): Generator<FlaggedMessage> {
    this.#rest.push(chunk);
    this.#have += chunk.length;
    for (;;) {
      if (this.#want === undefined) {
        if (this.#have < MESSAGE_HEADER_BYTES) return;
        const header = this.#joined();
        const length = header.readUInt32BE(1);
        this.#check(header[0]!, length);
        this.#want = MESSAGE_HEADER_BYTES + length;
      }
      if (this.#have < this.#want) return;
      const whole = this.#joined();
      const message = { flags: whole[0]!, bytes: whole.subarray(MESSAGE_HEADER_BYTES, this.#want) };
      this.#rest = whole.length > this.#want ? [whole.subarray(this.#want)] : [];
      this.#have -= this.#want;
      this.#want = undefined;
      yield message;
    }
  }

  #joined(): Buffer {
    const [only] = this.#rest;
    const joined = only && this.#rest.length === 1 ? asBuffer(only) : Buffer.concat(this.#rest);
    this.#rest = [joined];
    return joined;
  }
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
