import type { KeyObject } from "node:crypto";
import { inspect } from "node:util";
import { importPublicKey, type PresharedKey } from "#base/keys.ts";
import { open, seal } from "./aead.ts";
import { hash, macWithState } from "./blake2s.ts";
import { INITIAL_CHAINING_KEY, type LocalIdentity, type RemoteIdentity } from "./identity.ts";
import { kdf1, kdf2, kdf3 } from "./kdf.ts";
import {
  INITIATION,
  INITIATION_BYTES,
  MessageType,
  RESPONSE,
  RESPONSE_BYTES,
  readU32,
  TIMESTAMP_BYTES,
  writeU32,
} from "./messages.ts";
import { type Ephemeral, exchange } from "./x25519.ts";

/*
 * The Noise_IKpsk2 handshake (paper, section 5.4) as pure functions: ephemeral keys, indices and time come in, messages
 * and keys go out. mac1 is set here; mac2, load and replay of timestamps are not this file's business.
 *
 *   initiator                                     responder
 *   createInitiation  -------- initiation ------> readInitiation   (who says he is it, one exchange)
 *                                                 acceptInitiation (is it he, when: no exchange)
 *   consumeResponse   <-------- response -------- createResponse   (two exchanges each)
 *
 * Variables carry the paper's names spelled out: chainingKey = C, hash = H. A transcript is wiped by the step that uses it
 * up or by `wipe` of whoever drops it.
 */

/** The running state of one handshake; secret. Not printable. */
class Transcript {
  readonly #chainingKey: Uint8Array;
  readonly #hash: Uint8Array;

  constructor(chainingKey: Uint8Array, hash: Uint8Array) {
    this.#chainingKey = chainingKey;
    this.#hash = hash;
  }

  get chainingKey(): Uint8Array {
    return this.#chainingKey;
  }

  get hash(): Uint8Array {
    return this.#hash;
  }

  wipe(): void {
    this.#chainingKey.fill(0);
    this.#hash.fill(0);
  }

  [inspect.custom](): string {
    return "[handshake transcript]";
  }

  toJSON(): string {
    return "[handshake transcript]";
  }
}

/** The transport keys that a handshake ends in, both 32 bytes; whoever holds them last wipes them. Not printable. */
export class SessionKeys {
  readonly role: "initiator" | "responder";
  readonly localIndex: number;
  readonly remoteIndex: number;
  readonly #sendKey: Uint8Array;
  readonly #receiveKey: Uint8Array;

  constructor(
    role: "initiator" | "responder",
    localIndex: number,
    remoteIndex: number,
    sendKey: Uint8Array,
    receiveKey: Uint8Array,
  ) {
    this.role = role;
    this.localIndex = localIndex;
    this.remoteIndex = remoteIndex;
    this.#sendKey = sendKey;
    this.#receiveKey = receiveKey;
  }

  get sendKey(): Uint8Array {
    return this.#sendKey;
  }

  get receiveKey(): Uint8Array {
    return this.#receiveKey;
  }

  wipe(): void {
    this.#sendKey.fill(0);
    this.#receiveKey.fill(0);
  }

  [inspect.custom](): string {
    return `[session keys of ${this.role} ${this.localIndex.toString(16)}]`;
  }
}

const NO_KEY = new Uint8Array(32);
const NOTHING = new Uint8Array(0);

/** An initiation that was made and waits for its response. */
export interface SentInitiation {
  readonly message: Uint8Array;
  readonly localIndex: number;
  readonly ephemeral: Ephemeral;
  readonly transcript: Transcript;
}

/** Undefined when an exchange is degenerate. `timestamp` is TAI64N, 12 bytes. mac2 of the message is zero. */
export function createInitiation(
  local: LocalIdentity,
  remote: RemoteIdentity,
  input: { readonly ephemeral: Ephemeral; readonly localIndex: number; readonly timestamp: Uint8Array },
): SentInitiation | undefined {
  const { ephemeral, localIndex, timestamp } = input;
  const ephemeralStatic = exchange(ephemeral.privateKey, remote.publicKey);
  if (!ephemeralStatic) return undefined;
  const message = new Uint8Array(INITIATION_BYTES);
  message[0] = MessageType.initiation;
  writeU32(message, INITIATION.sender, localIndex);
  message.set(ephemeral.publicBytes, INITIATION.ephemeral);

  const start = kdf1(INITIAL_CHAINING_KEY, ephemeral.publicBytes);
  const startHash = hash(remote.startHash, ephemeral.publicBytes);
  const [middle, staticKey] = kdf2(start, ephemeralStatic);
  const sealedStatic = seal(staticKey, local.publicBytes, startHash);
  message.set(sealedStatic, INITIATION.static);
  const staticHash = hash(startHash, sealedStatic);

  const [chainingKey, timestampKey] = kdf2(middle, remote.staticSecret);
  const sealedTimestamp = seal(timestampKey, timestamp, staticHash);
  message.set(sealedTimestamp, INITIATION.timestamp);
  const transcript = new Transcript(chainingKey, hash(staticHash, sealedTimestamp));

  message.set(macWithState(remote.mac1Key, message, INITIATION.mac1), INITIATION.mac1);
  wipeAll(ephemeralStatic, start, middle, staticKey, timestampKey);
  return { message, localIndex, ephemeral, transcript };
}

/** An initiation of which only the first half was read: whoever made it knows the static key it names, no more. */
export interface InitiationClaim {
  /** The static key it names, 32 bytes. */
  readonly staticBytes: Uint8Array;
  readonly remoteIndex: number;
  readonly ephemeralBytes: Uint8Array;
  readonly ephemeralKey: KeyObject;
  readonly sealedTimestamp: Uint8Array;
  readonly transcript: Transcript;
}

/** Reads who an initiation says it is from; undefined when it is not for us or broken. mac1 was checked by the caller. */
export function readInitiation(local: LocalIdentity, message: Uint8Array): InitiationClaim | undefined {
  const ephemeralBytes = message.slice(INITIATION.ephemeral, INITIATION.static);
  const ephemeralKey = importPublicKey(ephemeralBytes);
  const ephemeralStatic = local.exchange(ephemeralKey);
  if (!ephemeralStatic) return undefined;
  const sealedStatic = message.subarray(INITIATION.static, INITIATION.timestamp);
  const start = kdf1(INITIAL_CHAINING_KEY, ephemeralBytes);
  const startHash = hash(local.startHash, ephemeralBytes);
  const [chainingKey, staticKey] = kdf2(start, ephemeralStatic);
  const staticBytes = open(staticKey, sealedStatic, startHash);
  wipeAll(ephemeralStatic, start, staticKey);
  if (!staticBytes) {
    chainingKey.fill(0);
    return undefined;
  }
  return {
    staticBytes,
    remoteIndex: readU32(message, INITIATION.sender),
    ephemeralBytes,
    ephemeralKey,
    sealedTimestamp: message.slice(INITIATION.timestamp, INITIATION.mac1),
    transcript: new Transcript(chainingKey, hash(startHash, sealedStatic)),
  };
}

/** An initiation proven to be from the peer; fresh only if its timestamp is newer than the last one of that peer. */
export interface ReceivedInitiation {
  readonly timestamp: Uint8Array;
  readonly remoteIndex: number;
  readonly ephemeralBytes: Uint8Array;
  readonly ephemeralKey: KeyObject;
  readonly transcript: Transcript;
}

/** Proves that the claim is `remote`'s. Uses the claim up, whatever the result. */
export function acceptInitiation(claim: InitiationClaim, remote: RemoteIdentity): ReceivedInitiation | undefined {
  const { transcript: before, sealedTimestamp, remoteIndex, ephemeralBytes, ephemeralKey } = claim;
  const [chainingKey, timestampKey] = kdf2(before.chainingKey, remote.staticSecret);
  const timestamp = open(timestampKey, sealedTimestamp, before.hash);
  const transcript = new Transcript(chainingKey, hash(before.hash, sealedTimestamp));
  wipeAll(timestampKey);
  before.wipe();
  if (timestamp?.length !== TIMESTAMP_BYTES) {
    transcript.wipe();
    return undefined;
  }
  return { timestamp, remoteIndex, ephemeralBytes, ephemeralKey, transcript };
}

/** Answers an initiation. Uses it up. Undefined when an exchange is degenerate. mac2 of the message is zero. */
export function createResponse(
  remote: RemoteIdentity,
  received: ReceivedInitiation,
  input: {
    readonly ephemeral: Ephemeral;
    readonly localIndex: number;
    readonly presharedKey: PresharedKey | undefined;
  },
): { readonly message: Uint8Array; readonly keys: SessionKeys } | undefined {
  const { ephemeral, localIndex } = input;
  const { transcript: before } = received;
  const ephemeralEphemeral = exchange(ephemeral.privateKey, received.ephemeralKey);
  const staticEphemeral = exchange(ephemeral.privateKey, remote.publicKey);
  if (!ephemeralEphemeral || !staticEphemeral) {
    wipeAll(ephemeralEphemeral, staticEphemeral);
    before.wipe();
    return undefined;
  }
  const message = new Uint8Array(RESPONSE_BYTES);
  message[0] = MessageType.response;
  writeU32(message, RESPONSE.sender, localIndex);
  writeU32(message, RESPONSE.receiver, received.remoteIndex);
  message.set(ephemeral.publicBytes, RESPONSE.ephemeral);

  const { chainingKey, key, sealHash } = mixResponse(
    before,
    ephemeral.publicBytes,
    ephemeralEphemeral,
    staticEphemeral,
    input.presharedKey,
  );
  message.set(seal(key, NOTHING, sealHash), RESPONSE.empty);
  message.set(macWithState(remote.mac1Key, message, RESPONSE.mac1), RESPONSE.mac1);

  const [receiveKey, sendKey] = kdf2(chainingKey, NOTHING);
  wipeAll(chainingKey, key);
  before.wipe();
  return { message, keys: new SessionKeys("responder", localIndex, received.remoteIndex, sendKey, receiveKey) };
}

/**
 * Ends the handshake that `sent` began. Undefined when the response is not an authentic answer to it; `sent` then stays
 * good for another response, otherwise it is used up. mac1 was checked by the caller.
 */
export function consumeResponse(
  local: LocalIdentity,
  sent: SentInitiation,
  message: Uint8Array,
  presharedKey: PresharedKey | undefined,
): SessionKeys | undefined {
  const ephemeralBytes = message.slice(RESPONSE.ephemeral, RESPONSE.empty);
  const ephemeralKey = importPublicKey(ephemeralBytes);
  const ephemeralEphemeral = exchange(sent.ephemeral.privateKey, ephemeralKey);
  const staticEphemeral = local.exchange(ephemeralKey);
  if (!ephemeralEphemeral || !staticEphemeral) {
    wipeAll(ephemeralEphemeral, staticEphemeral);
    return undefined;
  }

  const { chainingKey, key, sealHash } = mixResponse(
    sent.transcript,
    ephemeralBytes,
    ephemeralEphemeral,
    staticEphemeral,
    presharedKey,
  );
  const authentic = open(key, message.subarray(RESPONSE.empty, RESPONSE.mac1), sealHash) !== undefined;
  key.fill(0);
  if (!authentic) {
    chainingKey.fill(0);
    return undefined;
  }
  const [sendKey, receiveKey] = kdf2(chainingKey, NOTHING);
  chainingKey.fill(0);
  sent.transcript.wipe();
  return new SessionKeys("initiator", sent.localIndex, readU32(message, RESPONSE.sender), sendKey, receiveKey);
}

/** The part of the response both sides compute alike; wipes the exchanges, leaves `before` as it was. */
function mixResponse(
  before: Transcript,
  ephemeralBytes: Uint8Array,
  ephemeralEphemeral: Uint8Array,
  staticEphemeral: Uint8Array,
  presharedKey: PresharedKey | undefined,
): { chainingKey: Uint8Array; key: Uint8Array; sealHash: Uint8Array } {
  const first = kdf1(before.chainingKey, ephemeralBytes);
  const second = kdf1(first, ephemeralEphemeral);
  const third = kdf1(second, staticEphemeral);
  const psk = presharedKey?.bytes() ?? NO_KEY;
  const [chainingKey, temporary, key] = kdf3(third, psk);
  const sealHash = hash(hash(before.hash, ephemeralBytes), temporary);
  wipeAll(ephemeralEphemeral, staticEphemeral, first, second, third, temporary);
  if (presharedKey) psk.fill(0);
  return { chainingKey, key, sealHash };
}

function wipeAll(...secrets: readonly (Uint8Array | undefined)[]): void {
  for (const secret of secrets) secret?.fill(0);
}
