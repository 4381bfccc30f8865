import { unreachable } from "#base/errors.ts";
import type { Millis } from "#base/time.ts";
import type { SleepMessage } from "#signal/protocol/sleep-message.ts";

/**
 * How two Perch agents agree to sleep (docs/adr/0004). Pure: no IO and no clock.
 *
 *   this end                                         the other end
 *   no traffic for the threshold
 *        |-- propose(epoch) ------------------------------>| no traffic there either:
 *        |   awake: receives, sends                        | it sleeps
 *        |<------------------------------ agree(epoch) ----|
 *   no traffic since: it sleeps
 *
 *        |-- propose(epoch) ------------------------------>| traffic there, or it stays connected for good
 *        |<---------------------- refuse(epoch, wait) -----|
 *   asks again after `wait`
 *
 * Who agrees sleeps at once, and says so again each time it is asked: what gets lost is made up for by the proposal's
 * repetition. So the two differ for one way plus, for each lost message, one repetition. The epoch names one proposal: an
 * answer to an earlier one puts nobody to sleep, but where it may mean that the other end sleeps, this one asks anew. Packets that cross with an agreement are decrypted by the sessions that a
 * sleeping peer keeps, and wake it.
 */
export type SleepTalk =
  | { readonly kind: "silent" }
  | Proposed
  /** Traffic came before the answer. The other end may sleep by now. */
  | { readonly kind: "withdrawn"; readonly epoch: number; readonly since: Millis };

export interface Proposed {
  readonly kind: "proposed";
  readonly epoch: number;
  /** Why this end wants to sleep, in words. */
  readonly reason: string;
  readonly since: Millis;
  /** As in the message. */
  readonly idle: Millis;
  /** How often it was sent. */
  readonly sent: number;
  readonly repeatAt: Millis;
}

/** What the decisions need to know of one peer. Instants are 0 for never. */
export interface SleepFacts {
  readonly now: Millis;
  readonly awake: boolean;
  /** It may sleep at all. */
  readonly lazy: boolean;
  /** This end's own inactivity threshold. */
  readonly threshold: Millis;
  /** Last user traffic in either direction, or the wake; of the peer or of one that sleeps together with it. */
  readonly lastActivity: Millis;
  /** Last user packet of the peer itself, from here and from there. */
  readonly lastSent: Millis;
  readonly lastReceived: Millis;
  /** Packets wait for it. */
  readonly waiting: boolean;
  /** Last handshake, and last OFFER of ours. */
  readonly lastProven: Millis;
  readonly lastOffered: Millis;
}

export type SleepEffect =
  | { readonly kind: "say"; readonly message: SleepMessage }
  /** Agreed. */
  | { readonly kind: "sleep"; readonly reason: string }
  /** Nobody answers: it is announced, not agreed. */
  | { readonly kind: "sleep-alone"; readonly reason: string }
  /** The other end sleeps, this one has traffic for it. */
  | { readonly kind: "call-back" }
  /** The other end may sleep without our knowing: prove it, which wakes it then. */
  | { readonly kind: "prove" }
  /** The other end stays connected for good. */
  | { readonly kind: "kept" }
  /** Come back with `comeDue` while a proposal is open, else look whether the peer is idle. */
  | { readonly kind: "look-at"; readonly at: Millis }
  | { readonly kind: "note"; readonly event: string; readonly detail: string };

export interface SleepStep {
  readonly talk: SleepTalk;
  readonly effects: readonly SleepEffect[];
}

/** Nothing is proposed. */
export const SILENT: SleepTalk = { kind: "silent" };

/**
 * Pauses after each sending of a proposal; after the last the peer sleeps without agreement. The longest, and a round trip, is
 * how long two ends differ whose message got lost.
 */
export const PROPOSAL_PAUSES: readonly Millis[] = [1_000, 1_000, 1_500, 1_500, 1_500, 1_500];
/** Who had traffic within this time refuses even what a user asked for: the answer may be under way. */
export const QUIET_MIN: Millis = 2_000;
/** While packets wait for a session, asking again is of use so soon. */
const WAITING_PAUSE: Millis = 5_000;
/** Pause before a proposal is made anew. */
const RENEWAL: Millis = 500;
const REFUSAL_MIN: Millis = 1_000;
const REFUSAL_MAX: Millis = 24 * 3_600_000;

/** Opens an agreement. `idle`: as in SleepMessage. */
export function propose(reason: string, idle: Millis, epoch: number, { now }: SleepFacts): SleepStep {
  const talk: Proposed = { kind: "proposed", epoch, reason, since: now, idle, sent: 0, repeatAt: now };
  const step = send(talk, now);
  const words = `${reason}: asked the other side`;
  return { talk: step.talk, effects: [{ kind: "note", event: "sleep-proposed", detail: words }, ...step.effects] };
}

/** Takes a step of the other end. `freshEpoch` names a proposal that has to be made anew. */
export function receive(
  talk: SleepTalk,
  message: SleepMessage,
  freshEpoch: () => number,
  facts: SleepFacts,
): SleepStep {
  switch (message.kind) {
    case "propose":
      return answer(talk, message, facts);
    case "agree":
      return takeAgreement(talk, message.epoch, freshEpoch, facts);
    case "refuse":
      return takeRefusal(talk, message, facts);
    default:
      return unreachable(message);
  }
}

/** The time of a repetition has come. */
export function comeDue(talk: Proposed, facts: SleepFacts): SleepStep {
  const { epoch, since, sent, reason } = talk;
  if (!isFree(talk, facts)) {
    const at = Math.max(facts.now + REFUSAL_MIN, facts.lastActivity + facts.threshold);
    const detail = facts.lazy ? "there is traffic again" : "it stays connected now";
    const effects: SleepEffect[] = [
      { kind: "note", event: "sleep-withdrawn", detail },
      { kind: "look-at", at },
    ];
    // Its agreement may be lost.
    if (facts.lastReceived < since) effects.push({ kind: "prove" });
    return { talk: { kind: "withdrawn", epoch, since }, effects };
  }
  if (sent < PROPOSAL_PAUSES.length) return send(talk, facts.now);
  return { talk: SILENT, effects: [{ kind: "sleep-alone", reason: `${reason}, the other side did not answer` }] };
}

function send(talk: Proposed, now: Millis): SleepStep {
  const { epoch, idle, sent } = talk;
  const repeatAt = now + PROPOSAL_PAUSES[sent]!;
  return {
    talk: { ...talk, sent: sent + 1, repeatAt },
    effects: [
      { kind: "say", message: { kind: "propose", epoch, idle } },
      { kind: "look-at", at: repeatAt },
    ],
  };
}

function answer(talk: SleepTalk, { epoch, idle }: SleepMessage & { kind: "propose" }, facts: SleepFacts): SleepStep {
  const agree: SleepEffect = { kind: "say", message: { kind: "agree", epoch } };
  if (!facts.awake) return { talk, effects: [agree] };
  const wait = waitOf(talk, idle, facts);
  if (wait !== 0) {
    const message: SleepMessage = { kind: "refuse", epoch, wait: wait === "for good" ? undefined : wait };
    return { talk, effects: [{ kind: "say", message }] };
  }
  const why = idle === 0 ? "the other side was asked to sleep" : "the other side proposed to sleep";
  const quiet = `no traffic for ${describeDuration(facts.now - facts.lastActivity)}`;
  return { talk: SILENT, effects: [agree, { kind: "sleep", reason: `${quiet}, ${why}` }] };
}

/** How long a proposal comes too early. The end with the shorter threshold decides, but for traffic that it did not see. */
function waitOf(talk: SleepTalk, idle: Millis, facts: SleepFacts): Millis | "for good" {
  if (!facts.lazy) return "for good";
  if (facts.waiting) return WAITING_PAUSE;
  // Both proposed: what this end wants itself it does not refuse.
  if (talk.kind === "proposed" && isFree(talk, facts)) return 0;
  const enough = Math.max(QUIET_MIN, Math.min(idle, facts.threshold) / 2);
  return Math.max(0, facts.lastActivity + enough - facts.now);
}

/** The other end sleeps, or slept when it said so. */
function takeAgreement(talk: SleepTalk, epoch: number, freshEpoch: () => number, facts: SleepFacts): SleepStep {
  const { now, awake, lazy, waiting, threshold } = facts;
  if (!awake) return { talk, effects: [] };
  if (talk.kind === "silent") return lazy && !waiting ? renew("the other side sleeps") : prove();
  // The open proposal will tell.
  if (talk.epoch !== epoch) return talk.kind === "proposed" ? { talk, effects: [] } : prove();
  const { since } = talk;
  const heard = facts.lastReceived >= since;
  if (!lazy || waiting || facts.lastSent >= since || (talk.kind === "withdrawn" && !heard)) {
    const at = Math.max(now, facts.lastActivity + threshold);
    return { talk: SILENT, effects: [{ kind: "call-back" }, { kind: "look-at", at }] };
  }
  const reason = talk.kind === "proposed" ? talk.reason : "the other side sleeps";
  // By a handshake, a packet, or our OFFER it may have woken after agreeing, and refuses then; or the packet is an old one.
  if (heard || facts.lastProven > since || facts.lastOffered >= since) return renew(reason);
  return { talk: SILENT, effects: [{ kind: "sleep", reason: `${reason}, the other side agreed` }] };

  function renew(why: string): SleepStep {
    const repeatAt = now + RENEWAL;
    const idle = talk.kind === "proposed" ? talk.idle : now - facts.lastActivity;
    const renewed: Proposed = {
      kind: "proposed",
      epoch: freshEpoch(),
      reason: why,
      since: now,
      idle,
      sent: 0,
      repeatAt,
    };
    return { talk: renewed, effects: [{ kind: "look-at", at: repeatAt }] };
  }

  function prove(): SleepStep {
    return { talk, effects: [{ kind: "prove" }] };
  }
}

function takeRefusal(
  talk: SleepTalk,
  { epoch, wait }: SleepMessage & { kind: "refuse" },
  facts: SleepFacts,
): SleepStep {
  if (talk.kind === "silent" || talk.epoch !== epoch) return { talk, effects: [] };
  if (wait === undefined) return { talk: SILENT, effects: [{ kind: "kept" }] };
  const at = facts.now + Math.min(REFUSAL_MAX, Math.max(REFUSAL_MIN, wait));
  return {
    talk: SILENT,
    effects: [
      { kind: "note", event: "sleep-refused", detail: "the other side has traffic" },
      { kind: "look-at", at },
    ],
  };
}

/** Nothing happened since that speaks against what was proposed. */
function isFree({ since }: Proposed, { lazy, waiting, lastActivity }: SleepFacts): boolean {
  return lazy && !waiting && lastActivity < since;
}

export function describeDuration(ms: Millis): string {
  if (ms < 60_000) return `${Math.round(ms / 1000)} s`;
  return ms < 3_600_000 ? `${Math.round(ms / 60_000)} min` : `${(ms / 3_600_000).toFixed(1)} h`;
}
