import type { PublicKey } from "#base/keys.ts";
import type { Candidate } from "#ice/candidate.ts";
import type { IceAgentState } from "#ice/ice-agent.ts";
import type { PairSnapshot } from "#ice/pair.ts";

/** One search for a direct way to a peer: one life of its ICE agent. */
export interface DirectAttempt {
  /** Wall clock ms of its beginning. */
  readonly at: number;
  /** `stopped`: ended while it searched, because a new one began or the peer went to sleep. */
  readonly outcome: "searching" | "found" | "failed" | "lost" | "stopped";
  /** Ours. Those of the remote are in the pairs: there is one for each. */
  readonly candidates: readonly Candidate[];
  readonly pairs: readonly PairSnapshot[];
}

/** Attempts kept after their end, of all peers together; for diagnosis. The oldest goes. */
export const DIRECT_ATTEMPTS_MAX = 64;

/** The last ended attempt of each of the peers that searched most recently. Bounded: a sleeping peer costs nothing here. */
export class DirectAttempts {
  readonly #kept = new Map<PublicKey, DirectAttempt>();

  keep(peer: PublicKey, attempt: DirectAttempt): void {
    this.#kept.delete(peer);
    this.#kept.set(peer, attempt);
    if (this.#kept.size > DIRECT_ATTEMPTS_MAX) this.#kept.delete(this.#kept.keys().next().value!);
  }

  find(peer: PublicKey): DirectAttempt | undefined {
    return this.#kept.get(peer);
  }

  clear(): void {
    this.#kept.clear();
  }
}

/** How an attempt stands, from the state of its ICE agent. */
export function outcomeOf(state: IceAgentState): DirectAttempt["outcome"] {
  switch (state) {
    case "selected":
      return "found";
    case "failed":
    case "lost":
      return state;
    case "closed":
      return "stopped";
    case "waiting":
    case "checking":
      return "searching";
    default:
      return state satisfies never;
  }
}
