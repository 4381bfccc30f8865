import type { Millis } from "#base/time.ts";
import type { IceCredentials } from "#signal/protocol/offer.ts";
import type { AwakeState, PeerContext, PeerEffect, SearchRest, Step } from "./peer-state.ts";
import { choosePath, unchanged } from "./peer-steps.ts";
import { remoteNetwork } from "./search-memory.ts";

/*
 * When a direct way is searched for, and what is done while it is not: transitions of an awake peer, like those in
 * peer-transitions.ts.
 *
 *   searching ──found──> direct
 *      |  ^
 *      |  '-- user traffic when the next search is due, or evidence of another network on either side
 *      v
 *   resting: a probe now and then while user traffic takes the relay; a check of the remote, or an answer, finds the way
 */

/**
 * A search that failed while the relay carries is made again when there is user traffic after 30 s, then ever more rarely.
 * Where nothing carries, ten times as often, traffic or not.
 */
const FIRST_SEARCH_PAUSE: Millis = 30_000;
const MAX_SEARCH_PAUSE: Millis = 3_600_000;
/** While user traffic takes the relay: pauses between probes, the first and the longest, where a direct way was there ... */
const LOST_PROBE_PAUSES = { first: 2000, longest: 5000 } as const;
/** ... and where there never was one. */
const NEVER_PROBE_PAUSES = { first: 10_000, longest: 300_000 } as const;
/** Longest pause between looks for user traffic; a look only reads two counters. */
const MAX_QUIET_LOOK: Millis = 30_000;

/** Gives the open agent the remote's half: it searches, unless searches between these two networks are known to fail. */
export function search(
  state: AwakeState,
  credentials: IceCredentials,
  before: readonly PeerEffect[],
  context: PeerContext,
): Step {
  const remote = state.remote!;
  const network = remoteNetwork(remote);
  // Without a relay there is nothing to lose.
  const hold = state.relay ? context.holdOf(network) : undefined;
  const stock = remote.perch === undefined;
  const effects: PeerEffect[] = [
    ...before,
    { kind: "check-ice", credentials, stock, network, quiet: hold !== undefined },
  ];
  const next: AwakeState = { ...state, iceChecking: true };
  if (!hold) return { state: searching(next), effects };
  const inMinutes = Math.max(1, Math.round((hold.until - context.now) / 60_000));
  effects.push({
    kind: "note",
    event: "direct-held",
    detail: `not tried: failed ${hold.failures} times between these networks; tried again in ${inMinutes} min`,
  });
  return { state: resting(next, hold.until, context), effects };
}

/** A search is under way, or none is wanted. */
export function searching(state: AwakeState): AwakeState {
  return { ...state, rest: undefined, deadlines: { ...state.deadlines, look: undefined } };
}

/** No search until `searchAt`; looks for user traffic until then. */
export function resting(state: AwakeState, searchAt: Millis, context: PeerContext): AwakeState {
  const rest: SearchRest = { probes: 0, quietLooks: 0, lookedAt: context.now, searchAt };
  return { ...state, rest, deadlines: { ...state.deadlines, look: lookAt(state, rest, context) } };
}

function lookAt(state: AwakeState, rest: SearchRest, context: PeerContext): Millis {
  // No way carries: nobody's traffic has to be waited for.
  if (choosePath(state).kind === "none") return Math.max(context.now, rest.searchAt);
  const { first, longest } = state.hadDirect ? LOST_PROBE_PAUSES : NEVER_PROBE_PAUSES;
  const pause =
    rest.quietLooks > 0
      ? Math.min(MAX_QUIET_LOOK, first * 2 ** rest.quietLooks)
      : Math.min(longest, first * 1.5 ** rest.probes);
  return context.now + pause;
}

/** How long the next search is put off after the failures so far. */
export function searchPause({ iceFailures, relay }: AwakeState): Millis {
  return Math.min(MAX_SEARCH_PAUSE, FIRST_SEARCH_PAUSE * 4 ** (iceFailures - 1)) * (relay ? 1 : 0.1);
}

/**
 * A direct way is missing: user traffic over the relay is worth a probe now and then, and more rarely a whole search, which
 * is the caller's.
 */
export function look(state: AwakeState, context: PeerContext): Step | "search" {
  const { rest } = state;
  if (!rest) return unchanged(searching(state));
  const flows = context.lastUserData() > rest.lookedAt;
  if (context.now >= rest.searchAt && (flows || choosePath(state).kind === "none")) return "search";
  const next: SearchRest = {
    ...rest,
    probes: rest.probes + (flows ? 1 : 0),
    quietLooks: flows ? 0 : rest.quietLooks + 1,
    lookedAt: context.now,
  };
  const looked = { ...state, rest: next, deadlines: { ...state.deadlines, look: lookAt(state, next, context) } };
  // A stock remote gave its agent up: nobody would answer.
  const probes = flows && state.remote?.perch !== undefined;
  return { state: looked, effects: probes ? [{ kind: "probe-ice", heardFrom: undefined }] : [] };
}
