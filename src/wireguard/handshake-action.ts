import { type Endpoint, ipToBytes } from "#base/ip.ts";
import type { Millis } from "#base/time.ts";
import type { SessionKeys } from "./handshake.ts";

/** Where a handshake message came from, and so where its answer goes. `slot`: the peer that the relay named. */
export type HandshakeSource =
  | { readonly kind: "udp"; readonly endpoint: Endpoint }
  | { readonly kind: "relay"; readonly slot: number };

/** What the manager wants done, in order. Messages and keys belong to the receiver of the action, who wipes the keys. */
export type HandshakeAction =
  /** Send over the peer's path. `repeated`: the bytes went out before. */
  | {
      readonly kind: "send-initiation";
      readonly slot: number;
      readonly message: Uint8Array;
      readonly repeated: boolean;
    }
  /** The initiation comes in some milliseconds by `tick`: a responder would drop it so soon after the last one. */
  | { readonly kind: "initiation-delayed"; readonly slot: number }
  /** Send where the refused or accepted message came from. A cookie reply has no slot: nobody was authenticated. */
  | {
      readonly kind: "send-reply";
      readonly slot: number | undefined;
      readonly message: Uint8Array;
      readonly to: HandshakeSource;
    }
  /**
   * Install the keys; comes before the response is sent, so that the first packet finds them. `createdAt`: of the
   * initiator's session, when its initiation was sent; a responder's session made later has crossed it.
   */
  | {
      readonly kind: "session";
      readonly slot: number;
      readonly keys: SessionKeys;
      readonly createdAt: Millis;
      readonly source: HandshakeSource;
    }
  /** An authentic and fresh initiation arrived; its answer follows. */
  | { readonly kind: "initiation-accepted"; readonly slot: number; readonly source: HandshakeSource }
  /** Our initiation was answered; `rtt` when it went out once only. */
  | {
      readonly kind: "completed";
      readonly slot: number;
      readonly source: HandshakeSource;
      readonly rtt: Millis | undefined;
    }
  /** No answer for 90 s. */
  | { readonly kind: "gave-up"; readonly slot: number };

/** Why handshake messages were not acted on, and how many cookie messages there were. */
export const HANDSHAKE_COUNTERS = [
  "handshake-initiations-sent",
  "handshake-initiations-accepted",
  "handshake-completed",
  "handshake-given-up",
  "cookie-replies-sent",
  "cookie-replies-taken",
  "drop-handshake-malformed",
  "drop-handshake-mac1",
  "drop-handshake-rate-limit",
  "drop-handshake-unknown-peer",
  "drop-handshake-own-key",
  "drop-handshake-relay-mismatch",
  "drop-handshake-authentication",
  "drop-handshake-replay",
  "drop-handshake-flood",
  "drop-handshake-no-state",
  "drop-cookie-reply",
] as const;
export type HandshakeCounter = (typeof HANDSHAKE_COUNTERS)[number];

/** What a cookie is bound to: address and port, or the relay and the peer that it named. */
export function sourceBytes(source: HandshakeSource): Uint8Array {
  if (source.kind === "relay") {
    const bytes = Buffer.from("relay....");
    bytes.writeUInt32BE(source.slot, 5);
    return bytes;
  }
  const address = ipToBytes(source.endpoint.address);
  const bytes = new Uint8Array(address.length + 2);
  bytes.set(address);
  bytes[address.length] = source.endpoint.port >> 8;
  bytes[address.length + 1] = source.endpoint.port;
  return bytes;
}
