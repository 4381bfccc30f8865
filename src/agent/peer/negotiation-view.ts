import type { NatReport } from "#signal/protocol/offer.ts";

/** What a negotiation showed so far; for diagnosis. */
export interface NegotiationView {
  /** What the last OFFER or ANSWER of the remote said, also before the last sleep; undefined when none ever came. */
  readonly remote: RemoteHalf | undefined;
  /** The last OFFER or ANSWER found the remote connected to the signal server; undefined when the server does not say. */
  readonly delivered: boolean | undefined;
  /** Handshake initiations since the last proof or path change. */
  readonly initiations: number;
}

/** What the remote told of itself. */
export interface RemoteHalf {
  readonly perch: boolean;
  /** It offers direct ways. */
  readonly ice: boolean;
  /** It is connected to a relay. */
  readonly relay: boolean;
  /** Absent from stock agents and older ones of ours. */
  readonly nat: NatReport | undefined;
}
