import type { Endpoint } from "#base/ip.ts";
import type { Millis } from "#base/time.ts";
import type { DevicePath, PacketSource } from "#wireguard/device.ts";
import { look, resting, search, searching, searchPause } from "./direct-search.ts";
import type { AwakeState, DirectPath, IdleState, PeerContext, PeerEffect, RemoteSession, Step } from "./peer-state.ts";
import { append, chain, choosePath, unchanged } from "./peer-steps.ts";

/*
 * The transitions of an awake peer, one function for each thing that can happen to it. Pure, like `step` in peer-state.ts,
 * which calls them and describes the states.
 */

/**
 * Pace of handshake initiations while there is no session, never WireGuard's 5 s: an answer is waited for one round trip
 * through the relay and this much longer, twice as much after each.
 */
const INITIATION_GRACE: Millis = 100;
/** Round trip through the relay while it is not measured. */
const ASSUMED_ROUND_TRIP: Millis = 150;
const MAX_INITIATION_RETRY: Millis = 4000;
/** So many that nobody answered, ten seconds: the peer is away, and further ones are as rare as OFFERs. */
const EAGER_INITIATIONS = 8;
const MAX_PATIENT_RETRY: Millis = 30_000;
/** While an initiation is younger than this its answer may come: the device repeats it over a way that turns up. */
const INITIATION_IN_FLIGHT: Millis = 1000;
/** As the woken side we leave the first initiation to the other for this long (signal document, W4). */
const RESPONDER_PATIENCE: Millis = 1000;
/** First repetition of an OFFER nobody answered; doubles up to the ceiling. */
const FIRST_OFFER_RETRY: Millis = 1000;
const MAX_OFFER_RETRY: Millis = 30_000;
/** When woken by an OFFER, our ANSWER carries everything; our own OFFER is held back (W5). */
export const ANSWERER_PATIENCE: Millis = 3000;
/** A peer that has no fresh handshake this long after its path was lost is Connecting again. */
const PROOF_PATIENCE: Millis = 12_000;
/**
 * A path lost so soon after a handshake is not followed by the next one at once: each handshake ends a session, and the
 * packets under way on that one would be lost.
 */
const PROOF_FRESH: Millis = 1000;
/** Data that nothing answers asks for a new proof when the last is this old; a program that only sends does no harm. */
const SILENT_PROOF: Millis = 10_000;

/** Everything starts in the same instant: the handshake over every way known, and the OFFER. */
export function wake(
  idle: IdleState,
  cause: string,
  initiator: boolean,
  context: PeerContext,
  offerAfter: Millis,
): Step {
  const state: AwakeState = {
    kind: "awake",
    generation: idle.generation + 1,
    since: context.now,
    initiator,
    local: context.freshSession(),
    remote: undefined,
    ice: context.iceAllowed ? 1 : 0,
    iceChecking: false,
    iceFailures: 0,
    hadDirect: false,
    rest: undefined,
    direct: undefined,
    relay: context.relayUp,
    proven: undefined,
    initiations: 0,
    initiatedAt: undefined,
    offers: 0,
    deadlines: { initiate: context.now + RESPONDER_PATIENCE, offer: context.now + offerAfter },
  };
  const woken: Step = {
    state,
    effects: [{ kind: "note", event: "wake", detail: cause }, { kind: "device-awake" }],
  };
  // The handshake goes before the path: for packets that wait, a path alone makes the device begin one itself, and of two
  // within 20 ms the receiver answers the first, which the second has replaced here.
  const started = initiator ? chain(woken, (awake) => initiate(awake, context)) : woken;
  const opened = append(started, [
    { kind: "use-path", path: choosePath(state) },
    ...(context.iceAllowed ? [{ kind: "open-ice", ice: state.ice } as const] : []),
  ]);
  return offerAfter === 0 ? chain(opened, (awake) => offer(awake, context)) : opened;
}

export function sleep(state: AwakeState, reason: string): Step {
  const effects: PeerEffect[] = [{ kind: "note", event: "sleep", detail: reason }];
  if (state.ice > 0) effects.push({ kind: "close-ice" });
  effects.push({ kind: "device-asleep" });
  return { state: { kind: "idle", generation: state.generation, reason }, effects };
}

/** Sends a handshake initiation over every way there is and sets the time of the next. */
export function initiate(state: AwakeState, context: PeerContext): Step {
  const paths = initiationPaths(state, context);
  const roundTrip = context.relayRtt === undefined ? ASSUMED_ROUND_TRIP : 2 * context.relayRtt;
  const patience = Math.max(0, state.initiations - EAGER_INITIATIONS);
  const ceiling = Math.min(MAX_PATIENT_RETRY, MAX_INITIATION_RETRY * 2 ** patience);
  const delay = Math.min(ceiling, roundTrip + INITIATION_GRACE * 2 ** state.initiations);
  return {
    state: {
      ...state,
      initiations: state.initiations + 1,
      initiatedAt: paths.length === 0 ? state.initiatedAt : context.now,
      deadlines: { ...state.deadlines, initiate: context.now + delay },
    },
    effects: [
      ...(paths.length > 0 ? ([{ kind: "initiate", paths }] as const) : []),
      // Twice without an answer: the connections that carried the messages may be dead.
      ...(state.initiations >= 2 ? ([{ kind: "probe-servers" }] as const) : []),
    ],
  };
}

/**
 * A new initiation would throw away the answer to the one under way, which the device repeats over a new path; and every
 * handshake ends a session with which packets may be under way.
 */
function initiateUnlessInFlight(state: AwakeState, context: PeerContext): Step {
  const { initiatedAt } = state;
  const inFlight = initiatedAt !== undefined && context.now - initiatedAt < INITIATION_IN_FLIGHT;
  return inFlight ? unchanged(state) : initiate(state, context);
}

function initiationPaths(state: AwakeState, context: PeerContext): DevicePath[] {
  const paths: DevicePath[] = [];
  if (state.direct) paths.push({ kind: "udp", endpoint: state.direct.endpoint });
  // A known endpoint gets the first one only: where just the way there works, the answer is lost, and the same message over
  // the relay, coming later, is refused as a replay. So would be every repetition.
  else if (context.knownDirect && (state.initiations === 0 || !state.relay))
    paths.push({ kind: "udp", endpoint: context.knownDirect });
  if (state.relay && !(state.direct && state.proven !== undefined)) paths.push({ kind: "relay" });
  return paths;
}

function offer(state: AwakeState, context: PeerContext): Step {
  const delay = Math.min(MAX_OFFER_RETRY, FIRST_OFFER_RETRY * 2 ** state.offers);
  return {
    state: {
      ...state,
      offers: state.offers + 1,
      deadlines: { ...state.deadlines, offer: context.now + delay },
    },
    effects: [{ kind: "send-offer" }],
  };
}

/** After a failed search the same half again would bring no other; where a relay carries, that can wait. */
function offerOrSearch(state: AwakeState, context: PeerContext): Step {
  const needsSearch = state.rest !== undefined && choosePath(state).kind === "none";
  return needsSearch ? restart(state, "no path", context) : offer(state, context);
}

/** Takes the remote's half. The same half again changes nothing; another one is a new life of the remote's ICE agent. */
export function negotiate(state: AwakeState, remote: RemoteSession, context: PeerContext): Step {
  const known = state.remote;
  const negotiated = takeRemote(state, remote, context);
  // It is there after all.
  if (state.proven === undefined && state.initiations > EAGER_INITIATIONS)
    return chain(negotiated, (awake) => initiateUnlessInFlight({ ...awake, initiations: 0 }, context));
  // A new half may come from a new process, which has none of our sessions.
  return known === undefined || sameSession(known, remote)
    ? negotiated
    : chain(negotiated, (awake) => proveAgain(awake, context));
}

function takeRemote(state: AwakeState, remote: RemoteSession, context: PeerContext): Step {
  const known = state.remote;
  const effects: PeerEffect[] = [];
  if (known === undefined || known.relay?.instanceUrl !== remote.relay?.instanceUrl) {
    effects.push({ kind: "use-relay-server", relay: remote.relay });
  }
  const next: AwakeState = { ...state, remote, deadlines: { ...state.deadlines, offer: undefined } };
  if (!remote.credentials || state.ice === 0) return { state: next, effects };
  if (!state.iceChecking) return search(next, remote.credentials, effects, context);
  if (known !== undefined && sameSession(known, remote)) return { state: next, effects };
  // Following a restart of the remote keeps our own half: the remote's new agent was or will be built for exactly it (W22).
  const ice = state.ice + 1;
  effects.push({ kind: "open-ice", ice });
  const followed = search({ ...next, ice }, remote.credentials, effects, context);
  // The remote gave the direct path of the old life up; where a relay carries, nothing has to wait for the new one.
  return chain(followed, (awake) =>
    awake.relay && awake.direct ? leavePath({ ...awake, direct: undefined }) : unchanged(unwatched(awake)),
  );
}

/** Agents before 0.55 send no id: one life until failure (signal document, section 9). */
function sameSession(known: RemoteSession, remote: RemoteSession): boolean {
  if (remote.sessionId === undefined) return true;
  if (known.sessionId === undefined) return known.credentials?.ufrag === remote.credentials?.ufrag;
  return known.sessionId === remote.sessionId;
}

export function useDirect(state: AwakeState, direct: DirectPath, context: PeerContext): Step {
  const next: AwakeState = searching({
    ...state,
    direct,
    iceFailures: 0,
    hadDirect: true,
    deadlines: { ...state.deadlines, offer: undefined },
  });
  const used: Step = {
    state: next,
    effects: [
      {
        kind: "note",
        event: "path",
        detail: `direct ${direct.localKind}/${direct.remoteKind} ${direct.endpoint.address}:${direct.endpoint.port}`,
      },
      { kind: "use-path", path: choosePath(next) },
    ],
  };
  return next.proven === undefined && next.initiator
    ? chain(used, (awake) => initiateUnlessInFlight(awake, context))
    : used;
}

export function loseIce(state: AwakeState, reason: string, failed: boolean, context: PeerContext): Step {
  if (failed) return failSearch(state, reason, context);
  const ice = state.ice + 1;
  const lost: Step = {
    state: searching({
      ...state,
      local: context.freshSession(),
      ice,
      iceChecking: false,
      // A learned path that ICE could not confirm has nobody who watches it: the relay is safer where there is one.
      direct: state.direct?.kind === "ice" || state.relay ? undefined : state.direct,
      offers: 0,
      deadlines: { ...state.deadlines, offer: context.now },
    }),
    effects: [
      { kind: "note", event: "direct-lost", detail: reason },
      { kind: "forget-direct" },
      { kind: "open-ice", ice },
    ],
  };
  return losePath(lost, state, context);
}

/** The agent stays open: both sides know its credentials, so that a probe of either can find the way when it is there again. */
function failSearch(state: AwakeState, reason: string, context: PeerContext): Step {
  const iceFailures = state.iceFailures + 1;
  const direct = state.relay ? undefined : state.direct;
  const next: AwakeState = { ...state, iceFailures, direct };
  const failed: Step = {
    state: resting(next, context.now + searchPause(next), context),
    effects: [{ kind: "note", event: "direct-lost", detail: reason }, { kind: "forget-direct" }],
  };
  return losePath(failed, state, context);
}

function losePath(lost: Step, before: AwakeState, context: PeerContext): Step {
  const isLost = before.direct !== undefined && lost.state.kind === "awake" && lost.state.direct === undefined;
  return isLost ? chain(lost, (awake) => afterPathLoss(awake, context)) : lost;
}

/** The better path is gone: packets move to the next at once, and a handshake shows whether it carries. */
function afterPathLoss(state: AwakeState, context: PeerContext): Step {
  return chain(leavePath(state), (awake) => proveAgain(awake, context));
}

function leavePath(state: AwakeState): Step {
  const path = choosePath(state);
  return {
    state: { ...state, proven: path.kind === "none" ? undefined : state.proven, initiator: true, initiations: 0 },
    effects: [
      { kind: "note", event: "path", detail: path.kind === "relay" ? "back on the relay" : "no path" },
      { kind: "use-path", path },
    ],
  };
}

/** Something says that the peer may not be where the last handshake proved it: the next one decides. */
function proveAgain(state: AwakeState, context: PeerContext): Step {
  if (choosePath(state).kind === "none") return unchanged(state);
  const next: AwakeState = { ...state, initiator: true, initiations: 0 };
  if (state.proven === undefined) return initiateUnlessInFlight(next, context);
  const at = state.proven + PROOF_FRESH;
  const deadlines = { ...state.deadlines, prove: context.now + PROOF_PATIENCE, initiate: at };
  if (at > context.now) return unchanged({ ...next, deadlines });
  // One under way decides as well, and has its own time of repetition.
  const waiting = { ...deadlines, initiate: state.deadlines.initiate ?? context.now };
  return initiateUnlessInFlight({ ...next, deadlines: waiting }, context);
}

export function changeRelay(state: AwakeState, up: boolean, context: PeerContext): Step {
  if (state.relay === up) return unchanged(state);
  const next: AwakeState = { ...state, relay: up };
  if (up && state.direct?.kind === "learned") {
    return leaveDirect(next, { kind: "note", event: "direct-lost", detail: "the relay is back" }, context);
  }
  if (state.direct) return { state: next, effects: [] };
  const moved: Step = {
    state: { ...next, proven: up ? state.proven : undefined, initiations: 0 },
    effects: [
      { kind: "note", event: "path", detail: up ? "the relay is back" : "the relay is gone" },
      { kind: "use-path", path: choosePath(next) },
    ],
  };
  if (!up)
    return chain(moved, (awake) => ({
      state: { ...awake, deadlines: { ...awake.deadlines, offer: context.now } },
      effects: [],
    }));
  // The relayed address of both sides may have changed with it: tell the remote ours and try at once.
  return chain(
    chain(moved, (awake) => initiateUnlessInFlight(awake, context)),
    (awake) => offer({ ...awake, offers: 0 }, context),
  );
}

export function prove(state: AwakeState, source: PacketSource, context: PeerContext): Step {
  const first = state.proven === undefined;
  const proven: AwakeState = {
    ...state,
    proven: context.now,
    initiations: 0,
    initiatedAt: undefined,
    deadlines: { ...state.deadlines, initiate: undefined, prove: undefined },
  };
  const via = source.kind === "relay" ? "relay" : `${source.endpoint.address}:${source.endpoint.port}`;
  const noted: Step = {
    state: proven,
    effects: first ? [{ kind: "note", event: "connected", detail: `handshake by ${via}` }] : [],
  };
  return chain(noted, (awake) => learnDirect(awake, source, context));
}

/** Authenticated packets over a direct way before ICE chose one: use it, ICE may find a better one. */
function learnDirect(state: AwakeState, source: PacketSource, context: PeerContext): Step {
  if (source.kind === "relay" || !context.iceAllowed) return unchanged(state);
  if (state.direct?.kind === "ice") return unchanged(state);
  if (
    state.direct?.endpoint.address === source.endpoint.address &&
    state.direct.endpoint.port === source.endpoint.port
  ) {
    return unchanged(state);
  }
  const direct: DirectPath = {
    kind: "learned",
    endpoint: source.endpoint,
    localKind: "learned",
    remoteKind: "learned",
    local: undefined,
    rtt: undefined,
  };
  const next: AwakeState = { ...state, direct };
  return {
    state: next,
    effects: [
      {
        kind: "note",
        event: "path",
        detail: `direct, learned from ${direct.endpoint.address}:${direct.endpoint.port}`,
      },
      { kind: "use-path", path: choosePath(next) },
    ],
  };
}

export function pathError(state: AwakeState, endpoint: Endpoint, code: string, context: PeerContext): Step {
  if (state.direct?.endpoint.address !== endpoint.address || state.direct.endpoint.port !== endpoint.port)
    return unchanged(state);
  const noted: PeerEffect = { kind: "note", event: "direct-lost", detail: `sending failed: ${code}` };
  if (state.direct.kind === "ice") return { state, effects: [noted, { kind: "suspect-ice", heardFrom: undefined }] };
  return leaveDirect(state, noted, context);
}

/** The remote sends another way than we do: it gave ours up, or its NAT has another port for it now. */
export function hearElsewhere(state: AwakeState, source: PacketSource, context: PeerContext): Step {
  if (state.direct?.kind === "ice") {
    const heardFrom = source.kind === "udp" ? source.endpoint : undefined;
    return { state, effects: [{ kind: "suspect-ice", heardFrom }] };
  }
  const isProvenNow = state.proven !== undefined && context.now - state.proven < PROOF_FRESH;
  if (source.kind === "relay" && state.direct && state.relay && !isProvenNow) {
    // The remote sends by the relay, and nobody watches our direct path: it may have been given up there.
    return leaveDirect(state, { kind: "note", event: "direct-lost", detail: "heard over the relay" }, context);
  }
  // It came, but whether ours would get there nobody knows: the relay is better, if there is one. A probe will tell.
  if (state.relay && state.rest && source.kind === "udp") {
    return { state, effects: [{ kind: "probe-ice", heardFrom: source.endpoint }] };
  }
  return state.relay ? unchanged(state) : learnDirect(state, source, context);
}

/** Nothing answers our data: the first evidence of a path that died somewhere on the way. It may also be a quiet program. */
export function hearNothing(state: AwakeState, context: PeerContext): Step {
  const probe: PeerEffect = { kind: "probe-servers" };
  if (state.direct?.kind === "ice") {
    return { state, effects: [{ kind: "suspect-ice", heardFrom: undefined }, probe] };
  }
  if (state.direct === undefined || !state.relay) {
    // On a relay, or on no better path, nobody else notices that the remote has a new life without our sessions.
    const isOld = state.proven !== undefined && context.now - state.proven >= SILENT_PROOF;
    return append(isOld ? proveAgain(state, context) : unchanged(state), [probe]);
  }
  // Nobody watches a learned path: without answers the relay is safer.
  const noted: PeerEffect = { kind: "note", event: "direct-lost", detail: "no answer to data" };
  return append(leaveDirect(state, noted, context), [probe]);
}

/** The ICE agent that watched the direct path is gone: it is worth no more than a learned one. */
function unwatched(state: AwakeState): AwakeState {
  return state.direct ? { ...state, direct: { ...state.direct, kind: "learned" } } : state;
}

function leaveDirect(state: AwakeState, why: PeerEffect, context: PeerContext): Step {
  const effects: PeerEffect[] = [why, { kind: "forget-direct" }];
  return chain({ state: { ...state, direct: undefined }, effects }, (awake) => afterPathLoss(awake, context));
}

/** A new negotiation: the remote is told at once, and packets take the relay until ICE has found a way again. */
export function restart(state: AwakeState, reason: string, context: PeerContext): Step {
  if (state.ice === 0) {
    const noted: Step = { state, effects: [{ kind: "note", event: "restart", detail: reason }] };
    const offered = chain(noted, (awake) => offer({ ...awake, offers: 0 }, context));
    return chain(offered, (awake) => initiate({ ...awake, initiations: 0 }, context));
  }
  const ice = state.ice + 1;
  const restarted: Step = {
    state: searching({ ...state, local: context.freshSession(), ice, iceChecking: false, offers: 0 }),
    effects: [
      { kind: "note", event: "restart", detail: reason },
      { kind: "open-ice", ice },
    ],
  };
  const offered = chain(restarted, (awake) => offer(awake, context));
  // Nobody watches the direct path of the old life, and it probably went with the old network.
  if (!state.relay || state.direct === undefined) return chain(offered, (awake) => unchanged(unwatched(awake)));
  return chain(offered, (awake) => afterPathLoss({ ...awake, direct: undefined }, context));
}

/**
 * A GO_IDLE may have been missed. On a direct path ICE tells within a second; on a relay nothing does but a handshake, which
 * wakes the remote if it sleeps. A negotiation that nobody answered is tried again at once.
 */
export function regainSignal(state: AwakeState, context: PeerContext): Step {
  if (state.proven === undefined)
    return state.offers > 1 ? offerOrSearch({ ...state, offers: 0 }, context) : unchanged(state);
  if (state.direct?.kind === "ice") return { state, effects: [{ kind: "suspect-ice", heardFrom: undefined }] };
  return proveAgain(state, context);
}

export function tick(state: AwakeState, context: PeerContext): Step {
  let result: Step = { state, effects: [] };
  const { initiate: initiateAt, offer: offerAt, prove: proveAt, look: lookAt } = state.deadlines;
  if (initiateAt !== undefined && initiateAt <= context.now) {
    result = chain(result, (awake) =>
      awake.proven === undefined || proveAt !== undefined
        ? initiate({ ...awake, initiator: true }, context)
        : { state: { ...awake, deadlines: { ...awake.deadlines, initiate: undefined } }, effects: [] },
    );
  }
  if (offerAt !== undefined && offerAt <= context.now) result = chain(result, (awake) => offerOrSearch(awake, context));
  if (lookAt !== undefined && lookAt <= context.now) {
    result = chain(result, (awake) => {
      const looked = look(awake, context);
      return looked === "search" ? restart(awake, "time for another search for a direct way", context) : looked;
    });
  }
  if (proveAt !== undefined && proveAt <= context.now) {
    result = chain(result, (awake) => ({
      state: { ...awake, proven: undefined, deadlines: { ...awake.deadlines, prove: undefined, offer: context.now } },
      effects: [{ kind: "note", event: "unproven", detail: "no handshake since the path was lost" }],
    }));
  }
  return result;
}
