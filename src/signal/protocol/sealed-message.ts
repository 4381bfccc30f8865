import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { PerchError } from "#base/errors.ts";
import { type PrivateKey, PublicKey } from "#base/keys.ts";
import { BOX_NONCE_BYTES, openBox, sealBox } from "#base/nacl-box.ts";
import { type Body, BodySchema, type EncryptedMessage, EncryptedMessageSchema } from "#gen/signal_pb.ts";

export class SealedMessageError extends PerchError<
  "signal-message-malformed" | "signal-message-not-ours" | "signal-message-forged" | "signal-body-malformed"
> {}

/** A message that was opened: `from` is authenticated by the box. */
export interface OpenedMessage {
  readonly from: PublicKey;
  readonly body: Body;
  /** The box nonce, 24 bytes as latin1: a server that repeats a message cannot change it. */
  readonly nonce: string;
}

/** Encrypts a body for `to` and wraps it: the bytes of an EncryptedMessage. `nonce` is for test vectors only. */
export function sealMessage(body: Body, to: PublicKey, own: PrivateKey, nonce?: Uint8Array): Uint8Array {
  const message = create(EncryptedMessageSchema, {
    key: own.publicKey,
    remoteKey: to,
    body: sealBox(toBinary(BodySchema, body), to, own, nonce),
  });
  return toBinary(EncryptedMessageSchema, message);
}

/** Parses an EncryptedMessage; undefined when it is none. The body refers to `bytes`. */
export function parseEncryptedMessage(bytes: Uint8Array): EncryptedMessage | undefined {
  try {
    return fromBinary(EncryptedMessageSchema, bytes);
  } catch {
    return undefined;
  }
}

/** The nonce of a sealed body as a map key; undefined when the body is too short for one. */
export function nonceOf(body: Uint8Array): string | undefined {
  if (body.length < BOX_NONCE_BYTES) return undefined;
  return Buffer.from(body.buffer, body.byteOffset, BOX_NONCE_BYTES).toString("latin1");
}

/** Opens a message addressed to us. Throws SealedMessageError; the message is to be dropped then. */
export function openMessage(message: EncryptedMessage, own: PrivateKey): OpenedMessage {
  if (message.remoteKey !== own.publicKey)
    throw new SealedMessageError("signal-message-not-ours", "the message is addressed to another key");
  let from: PublicKey;
  let plaintext: Uint8Array;
  try {
    from = PublicKey.parse(message.key);
  } catch (cause) {
    throw new SealedMessageError("signal-message-malformed", "the sender is no public key", { cause });
  }
  try {
    plaintext = openBox(message.body, from, own);
  } catch (cause) {
    throw new SealedMessageError("signal-message-forged", `the body is not from ${PublicKey.short(from)}`, { cause });
  }
  try {
    return { from, body: fromBinary(BodySchema, plaintext), nonce: nonceOf(message.body)! };
  } catch (cause) {
    throw new SealedMessageError("signal-body-malformed", `${plaintext.length} bytes are no body`, { cause });
  }
}
