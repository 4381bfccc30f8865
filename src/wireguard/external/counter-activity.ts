import type { Millis } from "#base/time.ts";
import { KEEPALIVE_TIMEOUT } from "../constants.ts";
import { COOKIE_REPLY_BYTES, INITIATION_BYTES, MIN_TRANSPORT_BYTES, RESPONSE_BYTES } from "../messages.ts";

/** Byte counters of a peer at two readings: what moved between them. UDP payload bytes. */
export interface CounterGrowth {
  readonly rx: number;
  readonly tx: number;
  /** Time between the readings. */
  readonly span: Millis;
  /** A handshake went on in that time, as far as is known otherwise. */
  readonly handshake: boolean;
}

export interface CounterActivity {
  /** Anything authenticated came, or anything went out. */
  readonly rx: boolean;
  readonly tx: boolean;
  /** User traffic: more than keepalives and handshake messages account for. */
  readonly rxData: boolean;
  readonly txData: boolean;
}

/**
 * Handshake messages of a kind in one direction: one is told from data by its size, more only where a handshake is known of. Who
 * sends still more of them is about to talk: there it does no harm to take them for data.
 */
const HANDSHAKE_MESSAGES = { unknown: 1, known: 2 } as const;

/**
 * Tells user traffic from what WireGuard says by itself. Data is 32 bytes and the packet padded to 16, so never less than 64
 * and a multiple of 16 below the MTU; a keepalive is 32 bytes, at most one in ten seconds and one for each handshake; an
 * initiation is 148 and a response 92 bytes, neither a multiple of 16.
 */
export function judgeGrowth({ rx, tx, span, handshake }: CounterGrowth): CounterActivity {
  const keepalives = 1 + Math.floor(span / KEEPALIVE_TIMEOUT) + (handshake ? 1 : 0);
  const messages = handshake ? HANDSHAKE_MESSAGES.known : HANDSHAKE_MESSAGES.unknown;
  const isData = (bytes: number): boolean => bytes > 0 && !isOverhead(bytes, keepalives, messages, handshake);
  return { rx: rx > 0, tx: tx > 0, rxData: isData(rx), txData: isData(tx) };
}

/** Whether so many bytes can be keepalives and handshake messages, and nothing else. */
function isOverhead(bytes: number, keepalives: number, messages: number, handshake: boolean): boolean {
  for (let most = 0; most <= messages; most++) {
    for (let others = 0; others <= (handshake ? 1 : 0); others++) {
      for (const size of [
        most * INITIATION_BYTES + others * RESPONSE_BYTES,
        most * RESPONSE_BYTES + others * INITIATION_BYTES,
      ]) {
        for (const reply of handshake ? [0, COOKIE_REPLY_BYTES] : [0]) {
          const left = bytes - size - reply;
          if (left >= 0 && left % MIN_TRANSPORT_BYTES === 0 && left / MIN_TRANSPORT_BYTES <= keepalives) return true;
        }
      }
    }
  }
  return false;
}
