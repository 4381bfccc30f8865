import type { Endpoint } from "#base/ip.ts";
import type { Millis } from "#base/time.ts";
import type { Candidate } from "./candidate.ts";
import type { TransactionId } from "./stun-message.ts";

/** What the owner has to do, in this order. */
export type CheckEffect =
  | {
      readonly kind: "check";
      readonly transactionId: TransactionId;
      readonly local: Candidate | undefined;
      readonly remote: Candidate;
      readonly nominate: boolean;
    }
  | {
      readonly kind: "selected";
      readonly local: Candidate;
      readonly remote: Candidate;
      readonly rtt: Millis;
      readonly nominated: boolean;
    }
  | { readonly kind: "lost"; readonly reason: LostReason }
  | { readonly kind: "failed"; readonly reason: FailedReason };

export type LostReason = "consent-expired" | "suspicion-confirmed";
/** `no-nomination`: pairs work, but the controlling remote chose none. */
export type FailedReason = "no-remote-candidate" | "no-answer" | "no-nomination";

/** An authenticated Binding request. */
export interface InboundCheck {
  readonly from: Endpoint;
  /** PRIORITY of the request: what the remote's candidate is worth if it is new to us. */
  readonly priority: number;
  readonly useCandidate: boolean;
  readonly senderCid: string | undefined;
}
