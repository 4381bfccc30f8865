import { PerchError } from "#base/errors.ts";

export type RelayErrorCode =
  /** No connection, or it broke. */
  | "relay-unreachable"
  /** The relay ended the connection before it answered our token: wrong or expired, or it speaks something else. */
  | "relay-refused"
  /** The connection does not answer any more. */
  | "relay-silent"
  /** The relay said Close: it shuts down. */
  | "relay-closed"
  /** None of the configured relays could be reached. */
  | "relay-none-reachable";

export class RelayError extends PerchError<RelayErrorCode> {}
