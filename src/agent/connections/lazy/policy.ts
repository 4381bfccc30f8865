import { supportsLazy } from "#base/agent-version.ts";

/** What decides whether one peer may sleep. */
export interface LazyFacts {
  /** Lazy connections are on for this agent. */
  readonly enabled: boolean;
  /** Version that management reports for the peer. */
  readonly agentVersion: string;
  readonly pinned: boolean;
  /** Target of an ingress forward: traffic that it starts itself could not wake it (signal document, section 5.6). */
  readonly forwardTarget: boolean;
  /** Why it is kept connected after wakes that failed; undefined when it is not. */
  readonly kept: string | undefined;
}

export interface LazyDecision {
  readonly lazy: boolean;
  /** In words, for `perch status -d` and `perch why`. */
  readonly why: string;
  /** It is permanent because waking it failed. */
  readonly kept?: true;
}

/** The same object for all of them: most peers of a large network are lazy. */
export const LAZY: LazyDecision = { lazy: true, why: "lazy connections are on" };

/** Decides; the first reason that holds is given. */
export function decideLazy(facts: LazyFacts): LazyDecision {
  if (!facts.enabled) return { lazy: false, why: "lazy connections are off" };
  if (facts.pinned) return { lazy: false, why: "pinned" };
  if (facts.forwardTarget) return { lazy: false, why: "target of a forwarded port" };
  if (!supportsLazy(facts.agentVersion)) {
    return {
      lazy: false,
      why: `its agent ${facts.agentVersion || "of unknown version"} does not support lazy connections`,
    };
  }
  if (facts.kept !== undefined) return { lazy: false, why: facts.kept, kept: true };
  return LAZY;
}
