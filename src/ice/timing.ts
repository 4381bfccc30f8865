import type { Millis } from "#base/time.ts";

/*
 * Every time constant of the ICE agent. Stock agents (signal-and-peer-connection.md, 3.1) check every 200 ms, give a pair up
 * after 8 checks and call a path lost after 6 s without STUN; the values here are faster where the other side does not notice.
 */

/** Gap between the first checks of different pairs (RFC 8445, 14.2: not below 5 ms) ... */
export const NEW_PAIR_PACING: Millis = 5;
/** ... of which this many may leave at once. */
export const NEW_PAIR_BURST = 3;

/** Checks of an unanswered pair leave at 0, 50, 150, 350, 750 ms and then every 800 ms. */
export const CHECK_RETRY_FIRST: Millis = 50;
export const CHECK_RETRY_CEILING: Millis = 800;
/** A pair that never answered is given up this long after its first check; so is the agent when no pair is left. */
export const CHECK_GIVE_UP: Millis = 10_000;
/** Inbound checks of one pair cause at most one check of ours in this time. */
export const TRIGGERED_MIN_GAP: Millis = 5;

/** How long a controlling agent may still change its nomination when the remote is no stock agent. */
export const RENOMINATION_WINDOW: Millis = 2_000;
/** A stock remote is nominated to once only, so a pair through a NAT waits this long for one without. */
export const STOCK_NAT_ACCEPTANCE: Millis = 150;
/** A pair with a TURN candidate of the remote is accepted only when nothing else answered for this long. */
export const RELAY_ACCEPTANCE: Millis = 2_000;

/** Checks on the selected pair; a stock remote calls the path lost after 6 s without one. */
export const CONSENT_INTERVAL: Millis = 2_000;
/** First retry of an unanswered check on the selected pair (or 1.25 round trips), doubled up to the ceiling. */
export const CONSENT_RETRY_FIRST: Millis = 200;
export const CONSENT_RETRY_CEILING: Millis = 500;
/** Without an answer for this long the selected pair is lost. */
export const CONSENT_TIMEOUT: Millis = 6_000;

/** Under suspicion: this many checks, this far apart, and the path is lost one gap (or 1.5 round trips) after the last. */
export const SUSPECT_CHECKS = 3;
export const SUSPECT_GAP: Millis = 200;
/** From one suspicion to the next from outside: a flow in one direction, which nothing answers, would check without end. */
export const SUSPECT_REST: Millis = 1_000;

/** Once a search has failed: the most pairs that one probe checks, and the least time between two checks of a pair. */
export const PROBE_PAIRS_MAX = 6;
export const PROBE_MIN_GAP: Millis = 500;

/** Most remote candidates an agent keeps, signalled and peer-reflexive ones. */
export const MAX_REMOTE_SIGNALLED = 48;
export const MAX_REMOTE_REFLEXIVE = 16;
/** Most inbound checks kept while the remote's credentials are unknown, and most candidates. */
export const MAX_EARLY_CHECKS = 16;
