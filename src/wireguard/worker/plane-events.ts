import type { Endpoint, IpAddress } from "#base/ip.ts";
import type { Millis } from "#base/time.ts";
import type { PacketSummary } from "../device.ts";
import type { HandshakeReason } from "./records.ts";

/** Where an encrypted datagram came from; `slot` is the peer that the relay named. */
export type PlaneSource =
  | { readonly kind: "udp"; readonly endpoint: Endpoint }
  | { readonly kind: "relay"; readonly slot: number };

/**
 * Facts from the worker. Buffers belong to the listener, but for `relayOut`. Events of one kind come in order; different
 * kinds may overtake.
 */
export interface DataPlaneEvents {
  /**
   * Once per sleep of a peer: the first inner packet towards it was staged, or authenticated data came on an old session.
   */
  wake: {
    readonly slot: number;
    readonly cause:
      | { readonly kind: "packet"; readonly packet: PacketSummary }
      | { readonly kind: "data"; readonly source: PlaneSource };
  };
  /** A message of type 1, 2 or 3 with the right length; nothing else was checked. `local`: address it arrived at. */
  handshake: {
    readonly datagram: Uint8Array;
    readonly source: PlaneSource;
    readonly local: IpAddress | undefined;
    readonly receivedAt: Millis;
  };
  stun: {
    readonly datagram: Uint8Array;
    readonly from: Endpoint;
    readonly to: Endpoint | undefined;
    readonly receivedAt: Millis;
  };
  /** An encrypted datagram of a peer whose path is the relay; the memory is used again when the listener returns. */
  relayOut: { readonly slot: number; readonly datagram: Uint8Array };
  /** An awake peer needs a handshake. Repeated at most every second while the reason lasts; main applies the 5 s rule. */
  needHandshake: { readonly slot: number; readonly reason: HandshakeReason };
  /** The first authenticated packet on a responder's session: the session is usable for sending now. */
  confirmed: { readonly slot: number; readonly localIndex: number; readonly source: PlaneSource };
  /** The worker dropped a session (replaced, expired, peer removed): its index is free again. */
  sessionEnded: { readonly slot: number; readonly localIndex: number };
  /**
   * An authenticated packet of an awake peer came from elsewhere than its path; at most once a second per source. When the
   * peer had no path, the source is the path now.
   */
  pathHint: { readonly slot: number; readonly source: PlaneSource; readonly adopted: boolean };
  /** An inner packet was sent and nothing authenticated came for 400 ms; repeated while that goes on. */
  silent: { readonly slot: number };
  /** Sending failed hard; `code` such as `ENETUNREACH`. At most once a second per peer. */
  pathError: { readonly slot: number; readonly endpoint: Endpoint; readonly code: string };
  /**
   * The worker died of a fault and another takes over, with the same interface, sockets and counters. Sessions, staged
   * packets and known flows are gone, as is every command about peers: the listener gives all of them anew (`restorePeer`).
   */
  restarted: { readonly reason: string };
  /**
   * The interface was deleted, or the worker died again and again. No event follows; `close` still has to be called.
   */
  gone: { readonly reason: string };
}
