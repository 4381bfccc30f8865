import { type Endpoint, formatEndpoint } from "#base/ip.ts";
import type { Millis } from "#base/time.ts";
import type { Candidate } from "./candidate.ts";

/**
 * How far the checks of one pair are.
 *
 *   waiting --check sent--> in-progress --answer--> valid
 *                             |  ^                    ^
 *                     10 s    v  | inbound check      | answer to a late check
 *                            failed ------------------'
 *
 * `stopped` is an in-progress or waiting pair of an agent that has settled on another one.
 */
export type PairState =
  | { readonly kind: "waiting" }
  | { readonly kind: "in-progress"; readonly attempt: number; readonly nextAt: Millis; readonly giveUpAt: Millis }
  | { readonly kind: "valid"; readonly local: Candidate; readonly rtt: Millis; readonly answeredAt: Millis }
  | { readonly kind: "failed" }
  | { readonly kind: "stopped" };

/**
 * A remote candidate and the one socket of its address family. There is one pair per remote endpoint: the socket is not
 * bound to an address, the kernel chooses the source by its routes, and a check must leave the way data will. Which local
 * candidate a pair stands for is read from the mapped address in the answer (RFC 8445, 7.2.5.3.1).
 */
export interface Pair {
  readonly key: string;
  remote: Candidate;
  state: PairState;
  /** Checks sent on it, answers to them, and checks received from it. */
  sent: number;
  answered: number;
  received: number;
  lastSentAt: Millis;
  /** Order in which the controlling remote nominated pairs; 0 = never. */
  nomination: number;
}

/** A pair whose checks were answered. */
export type ValidPair = Pair & { state: Extract<PairState, { kind: "valid" }> };

/** What `pairs()` shows; for diagnosis. */
export interface PairSnapshot {
  readonly local: Candidate | undefined;
  readonly remote: Candidate;
  readonly state: PairState["kind"];
  readonly rtt: Millis | undefined;
  readonly sent: number;
  readonly answered: number;
  readonly received: number;
  readonly selected: boolean;
  readonly nominated: boolean;
}

export function pairKey(remote: Endpoint): string {
  return formatEndpoint(remote);
}

export function createPair(remote: Candidate): Pair {
  return {
    key: pairKey(remote.endpoint),
    remote,
    state: { kind: "waiting" },
    sent: 0,
    answered: 0,
    received: 0,
    lastSentAt: Number.NEGATIVE_INFINITY,
    nomination: 0,
  };
}

export function isValid(pair: Pair): pair is ValidPair {
  return pair.state.kind === "valid";
}

/**
 * Negative when `a` comes first. RFC 8445, 6.1.2.3 with the local side equal for both: the order of
 * 2^32 * MIN + 2 * MAX is the order of the remote priorities. Ties keep the order of arrival.
 */
export function comparePriority(a: Pair, b: Pair): number {
  return b.remote.priority - a.remote.priority;
}

/** How direct a pair is: 3 without a NAT on either side, 2 through NATs, 0 through the remote's TURN server. */
export function directness(pair: ValidPair): number {
  if (pair.remote.type === "relay") return 0;
  return pair.remote.type === "host" && pair.state.local.type === "host" ? 3 : 2;
}

/** Whether `a` is worth a change of the nomination from `b`: a shorter round trip by a clear margin, or a more direct way. */
export function isClearlyBetter(a: ValidPair, b: ValidPair): boolean {
  const gain = b.state.rtt - a.state.rtt;
  const closer = directness(a) - directness(b);
  if (directness(a) === 0) return false;
  if (directness(b) === 0) return true;
  if (gain >= 5 && a.state.rtt <= 0.75 * b.state.rtt) return true;
  return closer > 0 && a.state.rtt <= 1.2 * b.state.rtt + 10;
}

/** The better of two valid pairs for a first choice. */
export function compareValid(a: ValidPair, b: ValidPair): number {
  return directness(b) - directness(a) || a.state.rtt - b.state.rtt || comparePriority(a, b);
}
