import { randomBytes, timingSafeEqual } from "node:crypto";
import type { Millis } from "#base/time.ts";
import { xopen, xseal } from "./aead.ts";
import { mac, macWithState } from "./blake2s.ts";
import { COOKIE_REFRESH_TIME, COOKIE_SECRET_LATENCY } from "./constants.ts";
import type { LocalIdentity, RemoteIdentity } from "./identity.ts";
import {
  COOKIE_BYTES,
  COOKIE_NONCE_BYTES,
  COOKIE_REPLY,
  COOKIE_REPLY_BYTES,
  COOKIE_SECRET_BYTES,
  INITIATION,
  MAC_BYTES,
  MessageType,
  mac1Offset,
  readU32,
  writeU32,
} from "./messages.ts";

/*
 * mac1, mac2 and cookies (paper, sections 5.3 and 5.4.4). Every handshake message carries mac1, which says "I know who I
 * am writing to". A responder under load also wants mac2, a MAC under a cookie that it sent to the source address before:
 * that proves the address, so that a rate limit by address means something.
 */

const NO_MAC2 = new Uint8Array(MAC_BYTES);

/** Randomness of the responder, replaceable for test vectors. */
export type CookieRandom = (bytes: number) => Uint8Array;

/** The responder's side: checks mac1 and mac2 and makes cookie replies. One per device. */
export class CookieChecker {
  readonly #local: LocalIdentity;
  readonly #random: CookieRandom;
  readonly #secretChanged: (secret: Uint8Array) => void;
  #secret: Uint8Array | undefined;
  #secretFrom: Millis = 0;

  /** `secretChanged` gets each new secret, to read and not to keep: it is wiped when the next one comes. */
  constructor(
    local: LocalIdentity,
    random: CookieRandom = (bytes) => new Uint8Array(randomBytes(bytes)),
    secretChanged: (secret: Uint8Array) => void = () => {},
  ) {
    this.#local = local;
    this.#random = random;
    this.#secretChanged = secretChanged;
  }

  /** Whether an initiation or response is addressed to us; cheap, before anything else. */
  isMac1Valid(message: Uint8Array): boolean {
    const at = handshakeMac1(message);
    return timingSafeEqual(macWithState(this.#local.mac1Key, message, at), message.subarray(at, at + MAC_BYTES));
  }

  /** Whether the sender holds the cookie for `source` (bytes that stand for address and port) under today's secret. */
  isMac2Valid(message: Uint8Array, source: Uint8Array, now: Millis): boolean {
    if (!this.#secret || now - this.#secretFrom >= COOKIE_REFRESH_TIME) return false;
    const at = handshakeMac1(message) + MAC_BYTES;
    const cookie = mac(this.#secret, source);
    const expected = mac(cookie, message.subarray(0, at));
    cookie.fill(0);
    return timingSafeEqual(expected, message.subarray(at, at + MAC_BYTES));
  }

  /** The answer under load: a cookie for `source`, sealed to the refused message. Replaces the secret after 120 s. */
  createReply(refused: Uint8Array, source: Uint8Array, now: Millis): Uint8Array {
    if (!this.#secret || now - this.#secretFrom >= COOKIE_REFRESH_TIME) {
      this.#secret?.fill(0);
      this.#secret = this.#random(COOKIE_SECRET_BYTES);
      this.#secretFrom = now;
      this.#secretChanged(this.#secret);
    }
    const at = handshakeMac1(refused);
    const cookie = mac(this.#secret, source);
    const nonce = this.#random(COOKIE_NONCE_BYTES);
    const reply = new Uint8Array(COOKIE_REPLY_BYTES);
    reply[0] = MessageType.cookieReply;
    writeU32(reply, COOKIE_REPLY.receiver, readU32(refused, INITIATION.sender));
    reply.set(nonce, COOKIE_REPLY.nonce);
    reply.set(xseal(this.#local.cookieKey, nonce, cookie, refused.subarray(at, at + MAC_BYTES)), COOKIE_REPLY.cookie);
    cookie.fill(0);
    return reply;
  }

  wipe(): void {
    this.#secret?.fill(0);
    this.#secret = undefined;
  }
}

/** The other side, one per peer in contact: remembers a received cookie and stamps our messages with it. */
export class CookieJar {
  #lastMac1: Uint8Array | undefined;
  #cookie: Uint8Array | undefined;
  #cookieFrom: Millis = 0;

  /** Call for every handshake message just before it is sent: sets mac2 (zero without a fresh cookie), keeps mac1. */
  stamp(message: Uint8Array, now: Millis): void {
    const at = handshakeMac1(message);
    this.#lastMac1 = message.slice(at, at + MAC_BYTES);
    const fresh = this.#cookie && now - this.#cookieFrom < COOKIE_REFRESH_TIME - COOKIE_SECRET_LATENCY;
    message.set(fresh ? mac(this.#cookie!, message.subarray(0, at + MAC_BYTES)) : NO_MAC2, at + MAC_BYTES);
  }

  /** Takes the cookie out of a reply if it answers the last message stamped; else false. Proves nothing about anybody. */
  consumeReply(remote: RemoteIdentity, reply: Uint8Array, now: Millis): boolean {
    if (!this.#lastMac1) return false;
    const nonce = reply.subarray(COOKIE_REPLY.nonce, COOKIE_REPLY.cookie);
    const cookie = xopen(remote.cookieKey, nonce, reply.subarray(COOKIE_REPLY.cookie), this.#lastMac1);
    if (cookie?.length !== COOKIE_BYTES) return false;
    this.#cookie?.fill(0);
    this.#cookie = cookie;
    this.#cookieFrom = now;
    return true;
  }

  wipe(): void {
    this.#cookie?.fill(0);
    this.#cookie = undefined;
    this.#lastMac1 = undefined;
  }
}

function handshakeMac1(message: Uint8Array): number {
  return mac1Offset(message[0] === MessageType.initiation ? MessageType.initiation : MessageType.response);
}
