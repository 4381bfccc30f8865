/**
 * Sealed messages: `EncryptedMessage { wgPubKey: sender, body: box(encoded inner message) }`.
 * Source: protocol/management.md, section 2.
 */
import { create, type DescMessage, fromBinary, type MessageShape, toBinary } from "@bufbuild/protobuf";
import { PerchError } from "#base/errors.ts";
import { type PrivateKey, PublicKey } from "#base/keys.ts";
import { openBox, sealBox } from "#base/nacl-box.ts";
import { type EncryptedMessage, EncryptedMessageSchema } from "#gen/management_pb.ts";

/** This one message is unusable; the stream or call it came with is answered or dropped by the caller. */
export class EnvelopeError extends PerchError<"sender-malformed" | "body-unopenable" | "message-malformed"> {}

/** Seals a message for the owner of `remote`. `nonce` is for test vectors only. */
export function sealMessage<Desc extends DescMessage>(
  schema: Desc,
  message: MessageShape<Desc>,
  remote: PublicKey,
  own: PrivateKey,
  nonce?: Uint8Array,
): EncryptedMessage {
  return sealBytes(toBinary(schema, message), remote, own, nonce);
}

/** As sealMessage, for a message that is encoded already. */
export function sealBytes(
  plaintext: Uint8Array,
  remote: PublicKey,
  own: PrivateKey,
  nonce?: Uint8Array,
): EncryptedMessage {
  return create(EncryptedMessageSchema, { wgPubKey: own.publicKey, body: sealBox(plaintext, remote, own, nonce) });
}

/** The key the sender claims, which opening the body then proves. Throws EnvelopeError `sender-malformed`. */
export function senderOf(envelope: EncryptedMessage): PublicKey {
  try {
    // Old stores hold keys with stray bits in the padding: compare bytes, so canonical text here (section 9, point 14).
    return PublicKey.fromBytes(decodeLenient(envelope.wgPubKey));
  } catch (cause) {
    throw new EnvelopeError("sender-malformed", "wgPubKey is not base64 of 32 bytes", { cause });
  }
}

/** Opens and decodes a body sealed by the owner of `remote`. Throws EnvelopeError. */
export function openMessage<Desc extends DescMessage>(
  schema: Desc,
  envelope: EncryptedMessage,
  remote: PublicKey,
  own: PrivateKey,
): MessageShape<Desc> {
  let plaintext: Uint8Array;
  try {
    plaintext = openBox(envelope.body, remote, own);
  } catch (cause) {
    throw new EnvelopeError("body-unopenable", `the body of ${envelope.body.length} bytes cannot be opened`, { cause });
  }
  try {
    return fromBinary(schema, plaintext);
  } catch (cause) {
    throw new EnvelopeError("message-malformed", `the body holds no ${schema.typeName}`, { cause });
  }
}

function decodeLenient(text: string): Uint8Array {
  if (!/^[A-Za-z0-9+/]{43}=$/.test(text)) throw new RangeError(`${text.length} characters`);
  return Buffer.from(text, "base64");
}
