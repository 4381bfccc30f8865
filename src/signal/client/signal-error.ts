import { PerchError } from "#base/errors.ts";

export type SignalErrorCode =
  /** The address is not `host:port`. */
  | "signal-uri-malformed"
  /** No connection, or it broke. */
  | "signal-unreachable"
  /** The server answered with a status other than OK, or did not register us. */
  | "signal-refused"
  /** The connection lives but delivers nothing, or an answer did not come in time. */
  | "signal-silent"
  /** A message was not passed on before its deadline. */
  | "signal-send-timeout"
  /** Too much waits to be sent. */
  | "signal-queue-full"
  /** A message is longer than the protocol allows. */
  | "signal-message-too-large"
  /** The recipient's key cannot be used to seal a message. */
  | "signal-recipient-unusable"
  /** The client was closed. */
  | "signal-closed";

export class SignalError extends PerchError<SignalErrorCode> {}
