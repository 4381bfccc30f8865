import { PerchError } from "#base/errors.ts";

export type ServerErrorCode =
  | "listen-taken"
  | "listen-denied"
  | "listen-address"
  | "tls-material"
  | "data-dir-unusable"
  | "data-dir-locked"
  | "admin-refused"
  | "setup-key-file"
  | "option-invalid"
  | "option-unsupported";

/**
 * What keeps a server from starting, in one line that names the value. Nothing is left running or on disk when one is
 * thrown from `createPerchServer`. `option-*` codes are the user's input (exit code 2), the rest the machine's state (1).
 */
export class ServerError extends PerchError<ServerErrorCode> {}

/** Translates the error of `listen()` on `what` (an address and port, a socket path). */
export function listenError(reason: unknown, what: string): ServerError {
  const code = reason instanceof Error && "code" in reason ? reason.code : undefined;
  switch (code) {
    case "EADDRINUSE":
      return new ServerError("listen-taken", `cannot listen on ${what}: another program has taken it`, {
        cause: reason,
        retryable: true,
      });
    case "EACCES":
    case "EPERM":
      return new ServerError("listen-denied", `cannot listen on ${what}: not permitted`, { cause: reason });
    default:
      return new ServerError("listen-address", `cannot listen on ${what}: ${code ?? String(reason)}`, {
        cause: reason,
      });
  }
}
