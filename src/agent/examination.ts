import type { Millis } from "#base/time.ts";
import type { PeerStatus } from "./control.ts";
import type { Diagnosis, PairFacts } from "./peer/diagnosis.ts";
import type { DirectAttempt } from "./peer/direct-attempts.ts";
import type { NatView } from "./peer/direct-paths.ts";

/** What a check of this agent looks at, in the order in which it is told. */
export const AREAS = [
  "agent",
  "rights",
  "management",
  "signal",
  "relay",
  "stun",
  "udp",
  "nat",
  "addresses",
  "clock",
  "device",
  "interface",
  "routes",
  "overlap",
  "lazy",
  "firewall",
] as const;
export type Area = (typeof AREAS)[number];

/** One thing that was looked at. */
export interface Finding {
  readonly area: Area;
  /** `note`: works, and somebody may want to know; `problem`: something has to be mended. */
  readonly level: "ok" | "note" | "problem";
  /** A sentence without a full stop. */
  readonly text: string;
  /** What to do, in the same form; empty where there is nothing. */
  readonly remedy: string;
}

/** A check of this agent. */
export interface AgentExamination {
  readonly findings: readonly Finding[];
  /** Undefined while the agent is down. */
  readonly nat: NatView | undefined;
}

/** A look at one pair. */
export interface PairExamination {
  readonly peer: PeerStatus;
  readonly facts: PairFacts;
  readonly diagnosis: Diagnosis;
  /** The search for a direct way that is under way, else the last one. */
  readonly attempt: DirectAttempt | undefined;
  readonly nat: NatView;
  /** Round trip to our relay; undefined until measured. */
  readonly relayRtt: Millis | undefined;
}
