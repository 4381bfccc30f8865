import type { Endpoint } from "#base/ip.ts";
import type { Millis, Timer } from "#base/time.ts";
import type { RemoteHalf } from "./negotiation-view.ts";
import type { IceSession } from "./peer-connection.ts";
import type { Timeline } from "./timeline.ts";

/** What a connection keeps of a peer that was awake, or that there was something to tell about. Most peers never are. */
export class PeerRecord {
  timeline: Timeline | undefined;
  timer: Timer | undefined;
  timerAt: Millis | undefined;
  ice: IceSession | undefined;
  /** Local candidates of the open ICE agent; sent in OFFER and ANSWER, later ones as CANDIDATE. */
  candidates: string[] = [];
  /** How many of them the remote was told; undefined before the first OFFER or ANSWER of the ICE agent's life. */
  told: number | undefined;
  remoteIsPerch = false;
  agreesOnSleep = false;
  offeredAt: Millis | undefined;
  remoteHalf: RemoteHalf | undefined;
  delivered: boolean | undefined;
  knownDirect: { readonly endpoint: Endpoint; readonly until: Millis } | undefined;
  answeredAt: Millis | undefined;
  answerTimer: Timer | undefined;
}

/** Stands for the record of all peers that have none. */
export const NO_RECORD: Readonly<PeerRecord> = Object.freeze(new PeerRecord());
