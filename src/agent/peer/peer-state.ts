import { unreachable } from "#base/errors.ts";
import type { Endpoint } from "#base/ip.ts";
import type { Millis } from "#base/time.ts";
import type { IceCredentials, Offer, RelayAddress, SessionId } from "#signal/protocol/offer.ts";
import type { DevicePath, PacketSource } from "#wireguard/device.ts";
import { append, chain, unchanged } from "./peer-steps.ts";
import {
  ANSWERER_PATIENCE,
  changeRelay,
  hearElsewhere,
  hearNothing,
  initiate,
  loseIce,
  negotiate,
  pathError,
  prove,
  regainSignal,
  restart,
  sleep,
  tick,
  useDirect,
  wake,
} from "./peer-transitions.ts";
import type { SearchHold } from "./search-memory.ts";

/**
 * Connection state of one remote peer, and the only place that decides what comes next.
 *
 *          wake, offer                      established
 *   idle -------------> awake (Connecting) -------------> awake (Connected)
 *     ^                      |      ^                        |      |
 *     |                      |      '-- no path, no proof ---'      |
 *     '------- sleep --------+--------------------------------------'
 *
 * An awake peer runs its two ways side by side: the relay carries packets from the first moment, ICE looks for a direct
 * way, and the better one is used. Connected means that a WireGuard handshake proved the peer, not that a path was chosen.
 *
 * Pure: no IO and no clock. The caller passes `now` and runs the returned effects in order. Deadlines are part of the
 * state; the shell keeps one timer at the earliest and sends `tick`. `ice` numbers the lives of the ICE agent: what an
 * older life reports late is dropped.
 */
export type PeerConnectionState = IdleState | AwakeState;

export interface IdleState {
  readonly kind: "idle";
  /** Rises with every wake. */
  readonly generation: number;
  readonly reason: string;
}

export interface AwakeState {
  readonly kind: "awake";
  readonly generation: number;
  readonly since: Millis;
  readonly initiator: boolean;
  readonly local: LocalSession;
  /** Set by the first OFFER or ANSWER of the remote. */
  readonly remote: RemoteSession | undefined;
  /** Life number of the ICE agent that answers with `local`; 0 when ICE is not allowed. */
  readonly ice: number;
  /** That agent has the remote's credentials and checks. */
  readonly iceChecking: boolean;
  readonly iceFailures: number;
  /** A direct way carried packets since the wake, or since the network changed: it is worth looking for again. */
  readonly hadDirect: boolean;
  /** No direct way was found, or the search was put off; undefined while one is searched for or used. */
  readonly rest: SearchRest | undefined;
  readonly direct: DirectPath | undefined;
  readonly relay: boolean;
  /** When a handshake last proved the peer; undefined = Connecting. */
  readonly proven: Millis | undefined;
  readonly initiations: number;
  /** When the last initiation left; undefined when there was no way for it yet, or once a handshake is done. */
  readonly initiatedAt: Millis | undefined;
  readonly offers: number;
  readonly deadlines: Deadlines;
}

/** While a direct way is not searched for: what was done since, and when the next search is due. */
export interface SearchRest {
  /** Probes for a way that may be there again; only while user traffic takes the relay. */
  readonly probes: number;
  /** Looks in a row that found no user traffic. */
  readonly quietLooks: number;
  /** User traffic later than this is new. */
  readonly lookedAt: Millis;
  /** A whole search, with new credentials and an OFFER, is due when there is user traffic after this. */
  readonly searchAt: Millis;
}

interface Deadlines {
  /** Send a new handshake initiation when no session came up by then. */
  readonly initiate?: Millis | undefined;
  /** Send a new OFFER when the negotiation is not complete by then. */
  readonly offer?: Millis | undefined;
  /** Without a fresh handshake by then the peer is no longer proven. */
  readonly prove?: Millis | undefined;
  /** Without a direct way: see whether user traffic takes the relay. */
  readonly look?: Millis | undefined;
}

/** Our half of a negotiation: one life of credentials (signal document, sections 2.2 and 2.4). */
export interface LocalSession {
  readonly id: SessionId;
  readonly credentials: IceCredentials;
}

/** The remote's half: its OFFER or ANSWER. Without credentials the remote is relay-only. */
export type RemoteSession = Offer;

/** A direct way: found by ICE, or (`kind: "learned"`) proven by an authenticated packet before ICE was done. */
export interface DirectPath {
  readonly kind: "ice" | "learned";
  readonly endpoint: Endpoint;
  readonly localKind: string;
  readonly remoteKind: string;
  readonly local: Endpoint | undefined;
  readonly rtt: Millis | undefined;
}

/** What the step may know of the world besides the state. */
export interface PeerContext {
  readonly now: Millis;
  /** We can send to this peer over a relay right now. */
  readonly relayUp: boolean;
  /** Round trip to our relay, for the pace of retries; undefined when not measured. */
  readonly relayRtt: Millis | undefined;
  /** ICE is allowed (not forced to the relay). */
  readonly iceAllowed: boolean;
  /** A direct endpoint that worked before and is worth one handshake message. */
  readonly knownDirect: Endpoint | undefined;
  /** When user data last went or came, on the clock. */
  readonly lastUserData: () => Millis;
  /** Searches for a direct way to the remote in that network (`remoteNetwork`) failed so often that this one is put off. */
  readonly holdOf: (network: string) => SearchHold | undefined;
  /** Fresh credentials; the one source of randomness. */
  readonly freshSession: () => LocalSession;
}

export type PeerEvent =
  /** `offer`: the other side has to be told at once, also where the handshake is left to it. */
  | { readonly kind: "wake"; readonly cause: string; readonly initiate: boolean; readonly offer?: boolean }
  | { readonly kind: "sleep"; readonly reason: string }
  | { readonly kind: "offer"; readonly remote: RemoteSession }
  | { readonly kind: "answer"; readonly remote: RemoteSession }
  | { readonly kind: "ice-selected"; readonly ice: number; readonly direct: DirectPath }
  | { readonly kind: "ice-lost"; readonly ice: number; readonly reason: string; readonly failed: boolean }
  | { readonly kind: "relay"; readonly up: boolean }
  | { readonly kind: "established"; readonly source: PacketSource }
  | { readonly kind: "path-hint"; readonly source: PacketSource }
  /** Data goes out and nothing comes back. */
  | { readonly kind: "silent" }
  | { readonly kind: "path-error"; readonly endpoint: Endpoint; readonly code: string }
  | { readonly kind: "network-changed" }
  /** Our packets may leave from another address now. */
  | { readonly kind: "check-path" }
  /** Something of our side is better than when searches failed: UDP passes again, another address. */
  | { readonly kind: "search-again"; readonly reason: string }
  /** The remote went to sleep and we did not follow: it closed its ICE agent and gave its paths up. */
  | { readonly kind: "remote-idle" }
  /** Our connection to signal is there again: what the remote said meanwhile is lost. */
  | { readonly kind: "signal-back" }
  | { readonly kind: "tick" };

export type PeerEffect =
  | { readonly kind: "device-awake" }
  | { readonly kind: "device-asleep" }
  | { readonly kind: "use-path"; readonly path: DevicePath }
  /** The direct way that worked so far is dead: no wake begins with it any more. */
  | { readonly kind: "forget-direct" }
  | { readonly kind: "initiate"; readonly paths: readonly DevicePath[] }
  | { readonly kind: "send-offer" }
  | { readonly kind: "send-answer" }
  | { readonly kind: "use-relay-server"; readonly relay: RelayAddress | undefined }
  /** A new ICE agent with the state's `local` half replaces the one before; it answers checks from the start. */
  | { readonly kind: "open-ice"; readonly ice: number }
  /** The remote's half for the open agent. `quiet`: it only answers checks, and probes when told. */
  | {
      readonly kind: "check-ice";
      readonly credentials: IceCredentials;
      readonly stock: boolean;
      readonly network: string;
      readonly quiet: boolean;
    }
  | { readonly kind: "close-ice" }
  /** The direct way may be dead. `heardFrom`: the remote sends from there instead. */
  | { readonly kind: "suspect-ice"; readonly heardFrom: Endpoint | undefined }
  /** The search failed, but a way may be there again: a few checks. `heardFrom` as above. */
  | { readonly kind: "probe-ice"; readonly heardFrom: Endpoint | undefined }
  /** So may be the connections to relay and signal, which a broken direct way will need. */
  | { readonly kind: "probe-servers" }
  | { readonly kind: "note"; readonly event: string; readonly detail: string };

export interface Step {
  readonly state: PeerConnectionState;
  readonly effects: readonly PeerEffect[];
}

/** The state a peer has when it enters the network map. */
/** The one state of all peers that were never awake. */
const ASLEEP: IdleState = { kind: "idle", generation: 0, reason: "asleep" };

export function createPeerState(reason: string): IdleState {
  return reason === ASLEEP.reason ? ASLEEP : { kind: "idle", generation: 0, reason };
}

/** Decides what follows from an event. Events that make no sense in a state leave it as it is. */
export function step(state: PeerConnectionState, event: PeerEvent, context: PeerContext): Step {
  if (state.kind === "idle") return stepIdle(state, event, context);
  switch (event.kind) {
    case "wake":
      return event.initiate && state.proven === undefined && !state.initiator
        ? initiate({ ...state, initiator: true }, context)
        : unchanged(state);
    case "sleep":
      return sleep(state, event.reason);
    case "offer":
      return append(negotiate(state, event.remote, context), [{ kind: "send-answer" }]);
    case "answer":
      return negotiate(state, event.remote, context);
    case "ice-selected":
      return event.ice === state.ice ? useDirect(state, event.direct, context) : unchanged(state);
    case "ice-lost":
      return event.ice === state.ice ? loseIce(state, event.reason, event.failed, context) : unchanged(state);
    case "relay":
      return changeRelay(state, event.up, context);
    case "established":
      return prove(state, event.source, context);
    case "path-hint":
      return hearElsewhere(state, event.source, context);
    case "silent":
      return hearNothing(state, context);
    case "path-error":
      return pathError(state, event.endpoint, event.code, context);
    case "network-changed":
      return restart({ ...state, iceFailures: 0, hadDirect: false }, "the local network changed", context);
    case "check-path":
      return state.direct?.kind === "ice"
        ? { state, effects: [{ kind: "suspect-ice", heardFrom: undefined }] }
        : unchanged(state);
    case "search-again":
      return state.rest ? restart(state, event.reason, context) : unchanged(state);
    case "remote-idle":
      return restart(state, "the other side went idle, this one has reasons not to", context);
    case "signal-back":
      return regainSignal(state, context);
    case "tick":
      return tick(state, context);
    default:
      return unreachable(event);
  }
}

/** Earliest deadline of the state, if any: when the shell has to send `tick`. */
export function nextDeadline(state: PeerConnectionState): Millis | undefined {
  if (state.kind === "idle") return undefined;
  let next: Millis | undefined;
  const { initiate: initiateAt, offer, prove: proveBy, look } = state.deadlines;
  for (const at of [initiateAt, offer, proveBy, look]) {
    if (at !== undefined && (next === undefined || at < next)) next = at;
  }
  return next;
}

function stepIdle(state: IdleState, event: PeerEvent, context: PeerContext): Step {
  switch (event.kind) {
    case "wake":
      // Somebody else's handshake or data comes with that side's OFFER: ours would only cross it.
      return wake(
        state,
        event.cause,
        event.initiate,
        context,
        event.initiate || event.offer === true ? 0 : ANSWERER_PATIENCE,
      );
    case "offer": {
      const woken = wake(state, "its offer", false, context, ANSWERER_PATIENCE);
      return append(
        chain(woken, (awake) => negotiate(awake, event.remote, context)),
        [{ kind: "send-answer" }],
      );
    }
    // An ANSWER or a CANDIDATE that comes late must not undo a sleep (W7); a repeated sleep changes nothing.
    case "sleep":
    case "answer":
    case "ice-selected":
    case "ice-lost":
    case "relay":
    case "established":
    case "path-hint":
    case "silent":
    case "path-error":
    case "network-changed":
    case "check-path":
    case "search-again":
    case "remote-idle":
    case "signal-back":
    case "tick":
      return { state, effects: [] };
    default:
      return unreachable(event);
  }
}
