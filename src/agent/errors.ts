import { PerchError } from "#base/errors.ts";

/** What can go wrong for a user of the agent; exit codes are in docs/errors.md. */
export type AgentErrorCode =
  | "peer-unknown"
  | "already-up"
  | "needs-login"
  | "state-dir"
  | "interface"
  | "unsupported-device"
  | "setting-invalid"
  | "map-invalid"
  | "aborted";

export class AgentError extends PerchError<AgentErrorCode> {}
