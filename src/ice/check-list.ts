import { unreachable } from "#base/errors.ts";
import { type Endpoint, sameEndpoint } from "#base/ip.ts";
import type { Millis } from "#base/time.ts";
import { type Candidate, candidatePriority } from "./candidate.ts";
import type { CheckEffect, InboundCheck } from "./check-effect.ts";
import {
  beginSuspicion,
  createSelection,
  hasOverslept,
  lostAt,
  noteConsentAnswered,
  noteConsentSent,
  type Selection,
} from "./consent.ts";
import {
  comparePriority,
  compareValid,
  createPair,
  directness,
  isClearlyBetter,
  isValid,
  type Pair,
  type PairSnapshot,
  type ValidPair,
} from "./pair.ts";
import { PairSet } from "./pair-set.ts";
import { remoteReflexive } from "./reflexive.ts";
import type { TransactionId } from "./stun-message.ts";
import {
  CHECK_GIVE_UP,
  CHECK_RETRY_CEILING,
  CHECK_RETRY_FIRST,
  CONSENT_TIMEOUT,
  NEW_PAIR_BURST,
  NEW_PAIR_PACING,
  PROBE_MIN_GAP,
  PROBE_PAIRS_MAX,
  RELAY_ACCEPTANCE,
  RENOMINATION_WINDOW,
  STOCK_NAT_ACCEPTANCE,
  SUSPECT_REST,
  TRIGGERED_MIN_GAP,
} from "./timing.ts";

export interface CheckListOptions {
  readonly role: "controlling" | "controlled";
  /** The remote is a stock agent: one nomination, and no use of a pair before it is nominated. */
  readonly stock: boolean;
  /** Begins as a search that failed: nothing is checked but by `probe` and in answer to the remote's own checks. */
  readonly quiet?: boolean;
  readonly createTransactionId: () => TransactionId;
}

interface Outstanding {
  readonly pair: Pair;
  readonly sentAt: Millis;
  readonly nominate: boolean;
}

type ListState =
  | { readonly kind: "checking" }
  | {
      readonly kind: "selected";
      readonly firstAt: Millis;
      readonly selection: Selection;
      /** The other pairs are checked no more, except where the remote asks for it. */
      readonly settled: boolean;
    }
  | { readonly kind: "failed" }
  | { readonly kind: "lost" };

/**
 * The decisions of an ICE agent towards one remote session: which pair is checked when, which one is nominated, selected,
 * lost. No IO, no clock, no timer: every method takes the time and returns effects; `nextDeadline` says when `advance` is
 * wanted next.
 *
 *   checking --valid and chosen--> selected --no answer--> lost (final: the owner restarts with new credentials)
 *      |  ^                         |    ^
 *      v  | new pair, answer        '----' a clearly better pair, or another one when this one died
 *     failed (begins here when quiet)
 *
 * RFC 8445 with these choices: one component, no freezing (there is one foundation per remote endpoint), no role switch. A
 * controlling agent uses a pair from its first answer on and nominates it with the next check; towards Perch the
 * controlled side uses its first valid pair too until the nomination arrives, the latest nomination counts.
 */
export class CheckList {
  readonly #options: CheckListOptions;
  readonly #pairs = new PairSet();
  readonly #outstanding = new Map<TransactionId, Outstanding>();
  #state: ListState = { kind: "checking" };
  #startedAt: Millis;
  #failAt: Millis;
  /** Theoretical arrival time of the next first check (a leaky bucket of NEW_PAIR_BURST). */
  #paceAt = Number.NEGATIVE_INFINITY;
  #nominations = 0;
  #effects: CheckEffect[] = [];
  /** Until the remote is heard, its candidates alone begin no search. */
  #quiet: boolean;

  constructor(options: CheckListOptions, now: Millis) {
    this.#options = options;
    this.#quiet = options.quiet ?? false;
    if (this.#quiet) this.#state = { kind: "failed" };
    this.#startedAt = now;
    this.#failAt = now + CHECK_GIVE_UP;
  }

  get state(): ListState["kind"] {
    return this.#state.kind;
  }

  /** A local host candidate opens its address family for checks; the others only give names to mapped addresses. */
  addLocal(candidate: Candidate, now: Millis): CheckEffect[] {
    this.#pairs.addLocal(candidate);
    return this.advance(now);
  }

  /** Signalled candidates; a known endpoint gets the signalled description, more than the limit are ignored. */
  addRemotes(candidates: readonly Candidate[], now: Millis): CheckEffect[] {
    for (const candidate of candidates) {
      const known = this.#pairs.of(candidate.endpoint);
      if (known) {
        // What was learned from a check gets its proper name; a derived candidate does not replace the signalled one.
        if (known.remote.type === "prflx" || candidate.cid) known.remote = candidate;
      } else if (this.#pairs.hasRoom("signalled")) this.#addPair(createPair(candidate), now);
    }
    return this.advance(now);
  }

  /** RFC 8445, 7.3.1.3 to 7.3.1.5: learn the candidate, check it at once, note the nomination. */
  noteRequest(check: InboundCheck, now: Millis): CheckEffect[] {
    if (this.#state.kind === "lost") return [];
    let pair = this.#pairs.of(check.from);
    // A probe of the remote, whose search failed like ours, is worth one check: the answer to that resumes the search.
    const isProbe = this.#state.kind === "failed" && pair !== undefined;
    if (!pair) {
      if (!this.#pairs.hasRoom("reflexive")) return [];
      this.#quiet = false;
      pair = createPair(remoteReflexive(check.from, check.priority, check.senderCid));
      this.#addPair(pair, now);
    }
    pair.received++;
    if (check.useCandidate && this.#options.role === "controlled") pair.nomination = ++this.#nominations;
    if (isValid(pair)) this.#chooseAsControlled(pair, now);
    else if (now - pair.lastSentAt >= TRIGGERED_MIN_GAP) {
      if (isProbe) this.#sendCheck(pair, false, now);
      else this.#startChecks(pair, now);
    }
    return this.advance(now);
  }

  /** An authenticated success answer; `mapped` is its XOR-MAPPED-ADDRESS. Undefined when no check waits for it. */
  noteResponse(
    id: TransactionId,
    from: Endpoint,
    mapped: Endpoint | undefined,
    now: Millis,
  ): CheckEffect[] | undefined {
    const check = this.#outstanding.get(id);
    // RFC 8445, 7.2.5.2.1: an answer from elsewhere proves nothing about the pair.
    if (!check || !sameEndpoint(check.pair.remote.endpoint, from)) return undefined;
    this.#outstanding.delete(id);
    if (this.#state.kind === "lost") return [];
    const { pair } = check;
    const sample = now - check.sentAt;
    const before = isValid(pair) ? pair.state : undefined;
    pair.answered++;
    pair.state = {
      kind: "valid",
      local: this.#pairs.localOf(mapped, pair.remote),
      rtt: before ? before.rtt + (sample - before.rtt) / 8 : sample,
      answeredAt: now,
    };
    const valid = pair as ValidPair;
    if (this.#state.kind === "selected" && this.#state.selection.pair === valid) {
      this.#noteConsent(this.#state.selection, check, now);
    } else {
      this.#quiet = false;
      this.#revive(now);
      if (this.#options.role === "controlling") this.#chooseAsControlling(now);
      else this.#chooseAsControlled(valid, now);
      // Another pair works while the selected one is silent: the remote's mapping may have changed. Decide quickly.
      if (!this.#options.stock && this.#state.kind === "selected" && this.#state.selection.unanswered >= 2)
        this.#suspect(this.#state.selection, now);
    }
    return this.advance(now);
  }

  /**
   * Other evidence says that the selected path may be dead: three checks, SUSPECT_GAP apart, decide. The other pairs are
   * checked too, so that one that works can take over; `heardFrom` becomes one of them. Without a selected pair, under
   * suspicion already, or soon after the last one nothing happens.
   */
  suspect(now: Millis, heardFrom?: Endpoint): CheckEffect[] {
    if (this.#state.kind !== "selected") return this.advance(now);
    const { selection } = this.#state;
    if (selection.suspicion || now - selection.suspectedAt < SUSPECT_REST) return this.advance(now);
    if (heardFrom && !this.#options.stock && !this.#pairs.of(heardFrom)) {
      const pair = createPair(remoteReflexive(heardFrom, candidatePriority("prflx"), undefined));
      if (this.#pairs.hasRoom("reflexive")) {
        this.#addPair(pair, now);
        this.#startChecks(pair, now);
      }
    }
    this.#suspect(selection, now);
    return this.advance(now);
  }

  /**
   * The search has failed, but something suggests that a way may be there again: one check on each of a few pairs, those
   * that ever worked first, then those checked longest ago. `heardFrom` is a place the remote sends from. An answer
   * resumes the search.
   */
  probe(now: Millis, heardFrom?: Endpoint): CheckEffect[] {
    if (this.#state.kind !== "failed") return this.advance(now);
    if (heardFrom && !this.#pairs.of(heardFrom) && this.#pairs.hasRoom("reflexive")) {
      const pair = createPair(remoteReflexive(heardFrom, candidatePriority("prflx"), undefined));
      pair.state = { kind: "failed" };
      this.#pairs.add(pair);
    }
    const hasWorked = (pair: Pair): number => (pair.answered + pair.received > 0 ? 1 : 0);
    const worthOne = [...this.#pairs]
      .filter((pair) => this.#pairs.baseOf(pair.remote) !== undefined && now - pair.lastSentAt >= PROBE_MIN_GAP)
      .sort((a, b) => hasWorked(b) - hasWorked(a) || a.lastSentAt - b.lastSentAt);
    for (const pair of worthOne.slice(0, PROBE_PAIRS_MAX)) this.#sendCheck(pair, false, now);
    return this.advance(now);
  }

  /** Sends and decides whatever is due. */
  advance(now: Millis): CheckEffect[] {
    switch (this.#state.kind) {
      case "checking":
        this.#retryChecks(now);
        this.#startNewPairs(now);
        if (this.#options.role === "controlling") this.#chooseAsControlling(now);
        if (this.#state.kind === "checking" && now >= this.#failAt) this.#fail();
        break;
      case "selected":
        this.#retryChecks(now);
        this.#startNewPairs(now);
        this.#keepSelected(this.#state.selection, now);
        if (this.#state.kind === "selected") this.#settle(this.#state, now);
        break;
      case "failed":
      case "lost":
        break;
      default:
        unreachable(this.#state);
    }
    const effects = this.#effects;
    this.#effects = [];
    return effects;
  }

  /** When `advance` has something to do again; undefined when only an event can change anything. */
  nextDeadline(): Millis | undefined {
    if (this.#state.kind === "failed" || this.#state.kind === "lost") return undefined;
    let next = Number.POSITIVE_INFINITY;
    for (const pair of this.#pairs) {
      if (pair.state.kind === "in-progress") next = Math.min(next, pair.state.nextAt, pair.state.giveUpAt);
      else if (pair.state.kind === "waiting" && this.#pairs.baseOf(pair.remote))
        next = Math.min(next, this.#newPairAt());
    }
    if (this.#state.kind === "selected") {
      next = Math.min(next, this.#state.selection.nextAt, lostAt(this.#state.selection));
      if (!this.#state.settled) next = Math.min(next, this.#settleAt(this.#state));
    } else {
      next = Math.min(next, this.#failAt);
      if (this.#options.role === "controlling") next = Math.min(next, this.#acceptanceAt() ?? next);
    }
    return next;
  }

  pairs(): PairSnapshot[] {
    return [...this.#pairs].map((pair) => {
      const selected = this.#state.kind === "selected" && this.#state.selection.pair === pair;
      return {
        local: isValid(pair) ? pair.state.local : this.#pairs.baseOf(pair.remote),
        remote: pair.remote,
        state: pair.state.kind,
        rtt: isValid(pair) ? pair.state.rtt : undefined,
        sent: pair.sent,
        answered: pair.answered,
        received: pair.received,
        selected,
        nominated: pair.nomination > 0 || (selected && this.#options.role === "controlling"),
      };
    });
  }

  // Pairs and first checks.

  #addPair(pair: Pair, now: Millis): void {
    this.#revive(now);
    this.#pairs.add(pair);
    this.#failAt = now + CHECK_GIVE_UP;
    if (this.#state.kind === "selected" && this.#state.settled) pair.state = { kind: "stopped" };
  }

  /** A failed agent starts again when something new turns up. */
  #revive(now: Millis): void {
    if (this.#state.kind !== "failed" || this.#quiet) return;
    this.#state = { kind: "checking" };
    this.#failAt = now + CHECK_GIVE_UP;
  }

  #startNewPairs(now: Millis): void {
    const waiting = [...this.#pairs]
      .filter((pair) => pair.state.kind === "waiting" && this.#pairs.baseOf(pair.remote) !== undefined)
      .sort(comparePriority);
    for (const pair of waiting) {
      if (now < this.#newPairAt()) return;
      this.#paceAt = Math.max(this.#paceAt, now) + NEW_PAIR_PACING;
      this.#startChecks(pair, now);
    }
  }

  #newPairAt(): Millis {
    return this.#paceAt - (NEW_PAIR_BURST - 1) * NEW_PAIR_PACING;
  }

  #startChecks(pair: Pair, now: Millis): void {
    const giveUpAt = now + CHECK_GIVE_UP;
    pair.state = { kind: "in-progress", attempt: 1, nextAt: now + CHECK_RETRY_FIRST, giveUpAt };
    this.#failAt = Math.max(this.#failAt, giveUpAt);
    this.#sendCheck(pair, false, now);
  }

  #retryChecks(now: Millis): void {
    for (const pair of this.#pairs) {
      if (pair.state.kind !== "in-progress") continue;
      const { attempt, nextAt, giveUpAt } = pair.state;
      if (now >= giveUpAt) pair.state = { kind: "failed" };
      else if (now >= nextAt) {
        const delay = Math.min(CHECK_RETRY_FIRST * 2 ** attempt, CHECK_RETRY_CEILING);
        pair.state = { kind: "in-progress", attempt: attempt + 1, nextAt: now + delay, giveUpAt };
        this.#sendCheck(pair, false, now);
      }
    }
  }

  #sendCheck(pair: Pair, nominate: boolean, now: Millis): void {
    for (const [id, check] of this.#outstanding) {
      if (now - check.sentAt < CHECK_GIVE_UP) break;
      this.#outstanding.delete(id);
    }
    const transactionId = this.#options.createTransactionId();
    this.#outstanding.set(transactionId, { pair, sentAt: now, nominate });
    pair.sent++;
    pair.lastSentAt = now;
    const local = this.#pairs.baseOf(pair.remote);
    this.#effects.push({ kind: "check", transactionId, local, remote: pair.remote, nominate });
  }

  // Choosing.

  #chooseAsControlling(now: Millis): void {
    const best = this.#pairs.bestValid();
    if (!best) return;
    if (this.#state.kind === "checking") {
      if (now >= (this.#acceptanceAt() ?? now)) this.#select(best, false, now);
    } else if (this.#state.kind === "selected" && !this.#options.stock) {
      const { pair: current } = this.#state.selection;
      if (now - this.#state.firstAt > RENOMINATION_WINDOW) return;
      const better = this.#pairs.valid().filter((pair) => pair !== current && isClearlyBetter(pair, current));
      const choice = better.sort(compareValid)[0];
      if (choice) this.#select(choice, false, now);
    }
  }

  /** When the best valid pair may be nominated; undefined when there is none. */
  #acceptanceAt(): Millis | undefined {
    const best = this.#pairs.bestValid();
    if (!best) return undefined;
    const direct = directness(best);
    if (direct === 0) return this.#startedAt + RELAY_ACCEPTANCE;
    if (!this.#options.stock || direct === 3) return Number.NEGATIVE_INFINITY;
    const closerPossible = [...this.#pairs].some(
      (pair) => pair.remote.type === "host" && (pair.state.kind === "in-progress" || pair.state.kind === "waiting"),
    );
    return closerPossible ? this.#startedAt + STOCK_NAT_ACCEPTANCE : Number.NEGATIVE_INFINITY;
  }

  #chooseAsControlled(pair: ValidPair, now: Millis): void {
    if (this.#options.role !== "controlled") return;
    const nominated = pair.nomination > 0;
    if (this.#state.kind === "checking") {
      if (nominated || (!this.#options.stock && directness(pair) > 0)) this.#select(pair, nominated, now);
      return;
    }
    if (this.#state.kind !== "selected" || !nominated) return;
    const { selection } = this.#state;
    if (selection.pair === pair) selection.confirmed = true;
    else if (selection.pair.nomination === 0 || this.#overrides(pair, selection.pair)) this.#select(pair, true, now);
  }

  /**
   * A stock remote may put USE-CANDIDATE into every check, then priority decides (RFC 5245, 8.1.1.2); a Perch remote
   * changes its mind on purpose, then the latest counts.
   */
  #overrides(pair: Pair, current: Pair): boolean {
    return this.#options.stock ? comparePriority(pair, current) < 0 : pair.nomination > current.nomination;
  }

  #select(pair: ValidPair, confirmed: boolean, now: Millis): void {
    const { firstAt, settled } = this.#state.kind === "selected" ? this.#state : { firstAt: now, settled: false };
    const selection = createSelection(pair, confirmed, now);
    this.#state = { kind: "selected", firstAt, selection, settled };
    const { local, rtt } = pair.state;
    const nominated = confirmed || this.#options.role === "controlling";
    if (this.#options.role === "controlling") this.#sendConsent(selection, now);
    this.#effects.push({ kind: "selected", local, remote: pair.remote, rtt, nominated });
  }

  // Keeping the selected pair.

  #sendConsent(selection: Selection, now: Millis): void {
    const { role, stock } = this.#options;
    // A stock remote is told once; for Perch every check repeats the choice, which repairs a lost or overtaken one.
    this.#sendCheck(selection.pair, role === "controlling" && !(stock && selection.confirmed), now);
    noteConsentSent(selection, now);
    if (selection.unanswered === 3) this.#probeAlternatives(selection.pair, now);
  }

  #noteConsent(selection: Selection, check: Outstanding, now: Millis): void {
    if (check.nominate) selection.confirmed = true;
    const hurry = this.#options.role === "controlling" && !selection.confirmed;
    noteConsentAnswered(selection, check.sentAt, hurry, now);
  }

  #suspect(selection: Selection, now: Millis): void {
    if (beginSuspicion(selection, now)) this.#probeAlternatives(selection.pair, now);
  }

  #keepSelected(selection: Selection, now: Millis): void {
    if (now >= lostAt(selection)) {
      if (!hasOverslept(selection, now)) return this.#replaceOrLose(selection, now);
      this.#suspect(selection, now);
    }
    if (now >= selection.nextAt) this.#sendConsent(selection, now);
  }

  /** The selected pair is dead: take another one that answered since, or give the path up. */
  #replaceOrLose(selection: Selection, now: Millis): void {
    const since = selection.suspicion?.since ?? selection.pair.state.answeredAt + 1;
    const { pair: dead } = selection;
    const alternative = this.#pairs
      .valid()
      .filter((pair) => pair !== dead && pair.state.answeredAt >= since)
      .sort(compareValid)[0];
    (dead as Pair).state = { kind: "failed" };
    if (alternative && !this.#options.stock) {
      this.#select(alternative, false, now);
      return;
    }
    const reason = selection.suspicion ? "suspicion-confirmed" : "consent-expired";
    this.#state = { kind: "lost" };
    this.#outstanding.clear();
    this.#effects.push({ kind: "lost", reason });
  }

  /** One check on every other pair; an answer makes it a replacement. A stock remote takes none. */
  #probeAlternatives(selected: Pair, now: Millis): void {
    if (this.#options.stock) return;
    for (const pair of this.#pairs) {
      if (pair !== selected && pair.state.kind !== "waiting") this.#sendCheck(pair, false, now);
    }
  }

  /** When a settled agent stops checking the pairs it did not take. */
  #settleAt(state: Extract<ListState, { kind: "selected" }>): Millis {
    if (!this.#options.stock) return state.firstAt + RENOMINATION_WINDOW;
    return state.selection.confirmed ? state.firstAt : state.firstAt + CONSENT_TIMEOUT;
  }

  #settle(state: Extract<ListState, { kind: "selected" }>, now: Millis): void {
    if (state.settled || now < this.#settleAt(state)) return;
    this.#state = { ...state, settled: true };
    for (const pair of this.#pairs) {
      if (pair.state.kind === "waiting" || pair.state.kind === "in-progress") pair.state = { kind: "stopped" };
    }
  }

  #fail(): void {
    this.#state = { kind: "failed" };
    for (const pair of this.#pairs) {
      if (pair.state.kind === "in-progress") pair.state = { kind: "failed" };
    }
    const reason =
      this.#pairs.size === 0 ? "no-remote-candidate" : this.#pairs.bestValid() ? "no-nomination" : "no-answer";
    this.#effects.push({ kind: "failed", reason });
  }
}
