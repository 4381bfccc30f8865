import { PerchError } from "#base/errors.ts";

/** Every code of the daemon and its client, with the exit code of the command that meets it; listed in docs/errors.md. */
export const DAEMON_ERROR_CODES = {
  /** A value that a person gave is outside its limits. */
  "value-invalid": 2,
  /** A setting without a default was given nowhere. */
  "setting-missing": 2,
  /** Nobody listens on the daemon's socket. */
  "daemon-absent": 3,
  /** The socket exists and this user may not open it. */
  "daemon-forbidden": 5,
  /** Another daemon has the socket or the state directory. */
  "daemon-running": 1,
  /** The daemon went away, or does not speak our protocol. */
  "daemon-lost": 1,
  /** The socket, its directory or the state directory cannot be made or read. */
  "daemon-path": 1,
  /** The registration is missing, refused or expired. */
  "needs-login": 4,
  /** No peer has that name, address or key. */
  "peer-unknown": 1,
  /** Several peers have that name. */
  "peer-ambiguous": 1,
  /** The operation needs a tunnel that is up. */
  "agent-down": 1,
  /** Another command, or the end of the daemon, overtook this one. */
  superseded: 1,
  /** The systemd that the command needs is not there, or refused. */
  "service-manager": 1,
  /** A program error: please report it. */
  internal: 1,
} as const satisfies Readonly<Record<string, number>>;

export type DaemonErrorCode = keyof typeof DAEMON_ERROR_CODES;

/** Failures of the daemon and of talking to it; the object that threw stays usable. */
export class DaemonError extends PerchError<DaemonErrorCode> {}
