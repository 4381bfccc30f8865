import { PerchError } from "#base/errors.ts";

export type ManagementErrorCode =
  /** The URL cannot be used; the message says why. */
  | "url-malformed"
  /** No answer from a management server; the message names the URL and the cause. */
  | "unreachable"
  /** The server does not know this peer, or no longer. */
  | "permission-denied"
  /** The peer's login has run out; its user must log in again. */
  | "login-expired"
  /** The setup key is unknown, used up, expired or revoked. */
  | "setup-key-invalid"
  /** The server answered with something that cannot be read. */
  | "protocol"
  /** The server does not have this call. */
  | "unsupported"
  /** The server reports a fault of its own. */
  | "server-error"
  /** The caller's signal was aborted, or the client closed, before an answer came. */
  | "call-aborted";

/** Thrown by ManagementClient. The client stays usable after every one of them. */
export class ManagementError extends PerchError<ManagementErrorCode> {}
