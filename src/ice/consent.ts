import type { Millis } from "#base/time.ts";
import type { ValidPair } from "./pair.ts";
import {
  CHECK_RETRY_FIRST,
  CONSENT_INTERVAL,
  CONSENT_RETRY_CEILING,
  CONSENT_RETRY_FIRST,
  CONSENT_TIMEOUT,
  SUSPECT_CHECKS,
  SUSPECT_GAP,
} from "./timing.ts";

/**
 * The pair in use and how sure of it we are (RFC 7675). Checks go out every CONSENT_INTERVAL, sooner while one is unanswered;
 * after CONSENT_TIMEOUT without an answer, or under suspicion after three checks, the pair is lost.
 */
export interface Selection {
  readonly pair: ValidPair;
  /** When it was chosen. */
  readonly since: Millis;
  /** Controlling: the nomination was answered. Controlled: the remote nominated it. */
  confirmed: boolean;
  /** Checks since the last answer. */
  unanswered: number;
  nextAt: Millis;
  suspicion: { readonly since: Millis; sent: number } | undefined;
  /** When the last suspicion began. */
  suspectedAt: Millis;
}

export function createSelection(pair: ValidPair, confirmed: boolean, now: Millis): Selection {
  // A pair that answered long ago is checked at once.
  const nextAt = Math.max(now, pair.state.answeredAt + CONSENT_INTERVAL);
  return {
    pair,
    since: now,
    confirmed,
    unanswered: 0,
    nextAt,
    suspicion: undefined,
    suspectedAt: Number.NEGATIVE_INFINITY,
  };
}

/** A check went out; sets when the next one is due. */
export function noteConsentSent(selection: Selection, now: Millis): void {
  const { suspicion, confirmed, pair } = selection;
  selection.unanswered++;
  if (suspicion) {
    suspicion.sent++;
    selection.nextAt = suspicion.sent < SUSPECT_CHECKS ? now + SUSPECT_GAP : Number.POSITIVE_INFINITY;
    return;
  }
  // Each check has its own transaction, so only the first retry waits for a round trip: the more checks, the less loss matters.
  const first = Math.max(confirmed ? CONSENT_RETRY_FIRST : CHECK_RETRY_FIRST, 1.25 * pair.state.rtt);
  const retry = Math.min(first * 2 ** (selection.unanswered - 1), CONSENT_RETRY_CEILING);
  selection.nextAt = now + (selection.unanswered === 1 ? first : retry);
}

/**
 * A check that left at `sentAt` was answered. Under suspicion only one that left since counts. With `hurry` the next check
 * keeps its time (a nomination that was not answered yet).
 */
export function noteConsentAnswered(selection: Selection, sentAt: Millis, hurry: boolean, now: Millis): void {
  if (selection.suspicion && sentAt < selection.suspicion.since) return;
  selection.suspicion = undefined;
  selection.unanswered = 0;
  if (!hurry) selection.nextAt = now + CONSENT_INTERVAL;
}

/** False when it was under suspicion already. */
export function beginSuspicion(selection: Selection, now: Millis): boolean {
  if (selection.suspicion) return false;
  selection.suspicion = { since: now, sent: 0 };
  selection.suspectedAt = now;
  selection.nextAt = now;
  return true;
}

/** When the pair is lost if nothing answers. Under suspicion counted from the last check, so that a late timer costs no check. */
export function lostAt(selection: Selection): Millis {
  const { suspicion, pair, since } = selection;
  if (!suspicion) return Math.max(pair.state.answeredAt, since) + CONSENT_TIMEOUT;
  if (suspicion.sent < SUSPECT_CHECKS) return Number.POSITIVE_INFINITY;
  return pair.lastSentAt + Math.max(SUSPECT_GAP, 1.5 * pair.state.rtt);
}

/** The process slept or was busy: time ran out without our asking. Then the silence proves nothing. */
export function hasOverslept(selection: Selection, now: Millis): boolean {
  return (
    !selection.suspicion && now - selection.pair.lastSentAt > 2 * CONSENT_RETRY_CEILING + 2 * selection.pair.state.rtt
  );
}
