import { randomFillSync } from "node:crypto";
import type { Millis } from "#base/time.ts";
import { macState, macWithState } from "../blake2s.ts";
import { RATE_LIMIT_PER_SECOND, UNDER_LOAD_HOLD } from "../constants.ts";
import { MAC_BYTES, type MessageType, mac1Offset } from "../messages.ts";
import type { AddressPlace } from "./reporter.ts";
import { Counter, type Stats } from "./stats.ts";

/** Queue towards main this full: under load, as main sees it (embedded-device.ts). */
const LOADED_FROM = 1 / 8;
/** The rest of the queue is for senders that proved their address. */
const UNPROVED_UP_TO = 3 / 4;
/**
 * Messages of one source that may ask for a cookie under load: ten times what the paper allows proved ones, because many
 * peers may share one address and a cookie reply costs a tenth of an answer.
 */
const COST_MS: Millis = 1000 / (10 * RATE_LIMIT_PER_SECOND);
const CAPACITY_MS: Millis = 250;
/** Sources told apart; two that meet in one place take it from each other. */
const SOURCES = 4096;

/** How full the queue towards main is. */
export interface GateQueue {
  readonly used: number;
  readonly capacity: number;
}

/**
 * Decides which handshake messages (types 1 and 2) main gets to see, so that those that lead nowhere cannot push out the
 * others (paper, section 5.3):
 *
 *   mac1 wrong                         dropped: whoever sent it does not know whom it wrote to
 *   not under load                     let through
 *   under load, mac2 right             let through; main applies the rate limit for proved addresses
 *   under load, queue 3/4 full         dropped: the rest of the queue is for proved addresses
 *   under load, too many of a source   dropped
 *   under load else                    let through: main answers with a cookie
 *
 * An attacker that forges source addresses gets cookies sent to somebody else and at most 3/4 of the queue.
 */
export class HandshakeGate {
  readonly #bytes: Uint8Array;
  readonly #words: Float64Array;
  readonly #queue: GateQueue;
  readonly #mac1Key: Int32Array | undefined;
  #cookieKey: Int32Array | undefined;
  #loadedUntil: Millis = Number.NEGATIVE_INFINITY;
  /** By place: which source has it, and when its allowance is whole again. */
  readonly #source = new Int32Array(SOURCES);
  readonly #wholeAt = new Float64Array(SOURCES);
  readonly #seed = randomFillSync(new Int32Array(1))[0]!;
  readonly #address = new Uint8Array(18);

  /** `bytes` hold the messages; without `mac1Key` everything is let through. */
  constructor(bytes: Uint8Array, stats: Stats, queue: GateQueue, mac1Key: Int32Array | undefined) {
    this.#bytes = bytes;
    this.#words = stats.words;
    this.#queue = queue;
    this.#mac1Key = mac1Key;
  }

  /** The secret that main makes cookies with from now on, 32 bytes. */
  setCookieSecret(secret: Uint8Array): void {
    this.#cookieKey?.fill(0);
    this.#cookieKey = macState(secret);
  }

  /** Whether the message of `type` at `at` goes on to main. `relaySlot` -1: it came from `source`. */
  admits(
    at: number,
    type: typeof MessageType.initiation | typeof MessageType.response,
    source: AddressPlace,
    relaySlot: number,
    now: Millis,
  ): boolean {
    if (this.#mac1Key === undefined) return true;
    const mac1 = mac1Offset(type);
    const message = this.#bytes.subarray(at, at + mac1 + 2 * MAC_BYTES);
    if (!isAt(macWithState(this.#mac1Key, message, mac1), message, mac1)) {
      this.#words[Counter["drop-mac1"]]!++;
      return false;
    }
    const load = this.#queue.used / this.#queue.capacity;
    if (load >= LOADED_FROM) this.#loadedUntil = now + UNDER_LOAD_HOLD;
    if (now >= this.#loadedUntil) return true;
    const address = this.#addressOf(source, relaySlot);
    if (this.#isProved(message, mac1 + MAC_BYTES, address)) return true;
    if (load < UNPROVED_UP_TO && this.#allows(address, now)) return true;
    this.#words[Counter["drop-unproved-source"]]!++;
    return false;
  }

  /** Wipes the secret. */
  close(): void {
    this.#cookieKey?.fill(0);
    this.#cookieKey = undefined;
  }

  #isProved(message: Uint8Array, mac2: number, address: Uint8Array): boolean {
    if (this.#cookieKey === undefined || message.subarray(mac2).every((byte) => byte === 0)) return false;
    const cookie = macWithState(this.#cookieKey, address);
    const key = macState(cookie);
    const isProved = isAt(macWithState(key, message, mac2), message, mac2);
    cookie.fill(0);
    key.fill(0);
    return isProved;
  }

  /** A bucket that leaks: each message puts `COST_MS` in, and it holds `CAPACITY_MS`. */
  #allows(address: Uint8Array, now: Millis): boolean {
    // Without the port, which costs an attacker nothing.
    const end = address.length > 9 ? 8 : address.length - (address.length === 6 ? 2 : 0);
    let id = this.#seed;
    for (let i = 0; i < end; i++) id = Math.imul(id ^ address[i]!, 0x01000193);
    id ^= id >>> 15;
    const place = id & (SOURCES - 1);
    const wholeAt = this.#source[place] === id ? Math.max(now, this.#wholeAt[place]!) : now;
    if (wholeAt + COST_MS - now > CAPACITY_MS) return false;
    this.#source[place] = id;
    this.#wholeAt[place] = wholeAt + COST_MS;
    return true;
  }

  /** The same bytes that main binds a cookie to (handshake-manager.ts). */
  #addressOf(source: AddressPlace, relaySlot: number): Uint8Array {
    const address = this.#address;
    if (relaySlot >= 0) {
      for (let i = 0; i < RELAY_MARK.length; i++) address[i] = RELAY_MARK[i]!;
      for (let i = 0; i < 4; i++) address[5 + i] = relaySlot >>> (24 - 8 * i);
      return address.subarray(0, 9);
    }
    const length = source.family === 6 ? 16 : 4;
    for (let i = 0; i < length; i++) address[i] = this.#bytes[source.at + i]!;
    address[length] = source.port >> 8;
    address[length + 1] = source.port;
    return address.subarray(0, length + 2);
  }
}

const RELAY_MARK = Buffer.from("relay");

/** In constant time. */
function isAt(mac: Uint8Array, message: Uint8Array, at: number): boolean {
  let difference = 0;
  for (let i = 0; i < MAC_BYTES; i++) difference |= mac[i]! ^ message[at + i]!;
  return difference === 0;
}
