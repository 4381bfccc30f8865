import { PerchError } from "#base/errors.ts";

export type DaemonErrorCode =
  /** A value that a person gave is outside its limits. */
  | "value-invalid"
  /** A setting without a default was given nowhere. */
  | "setting-missing"
  /** Nobody listens on the daemon's socket. */
  | "daemon-absent"
  /** The socket exists and this user may not open it. */
  | "daemon-forbidden"
  /** Another daemon has the socket or the state directory. */
  | "daemon-running"
  /** The daemon went away, does not speak our protocol, or is of another version. */
  | "daemon-lost"
  /** The socket, its directory or the state directory cannot be made or read. */
  | "daemon-path"
  /** The registration is missing, refused or expired. */
  | "needs-login"
  /** No peer has that name, address or key. */
  | "peer-unknown"
  /** Several peers have that name. */
  | "peer-ambiguous"
  /** The operation needs a tunnel that is up. */
  | "agent-down"
  /** Another command, or the end of the daemon, overtook this one. */
  | "superseded"
  /** The systemd that the command needs is not there, or refused. */
  | "service-manager"
  /** What a killed daemon left changed on this machine cannot be put back. */
  | "state-dirty"
  /** The metrics' address and port cannot be listened on. */
  | "metrics-listen"
  /** The web page's address and port cannot be listened on. */
  | "ui-listen"
  /** A program error: please report it. */
  | "internal";

/** The exit code of the command that meets the error; both are listed in docs/errors.md. */
export const DAEMON_ERROR_CODES: Readonly<Record<DaemonErrorCode, number>> = {
  "value-invalid": 2,
  "setting-missing": 2,
  "daemon-absent": 3,
  "daemon-forbidden": 5,
  "daemon-running": 1,
  "daemon-lost": 1,
  "daemon-path": 1,
  "needs-login": 4,
  "peer-unknown": 1,
  "peer-ambiguous": 1,
  "agent-down": 1,
  superseded: 1,
  "service-manager": 1,
  "state-dirty": 1,
  "metrics-listen": 1,
  "ui-listen": 1,
  internal: 1,
};

/** Failures of the daemon and of talking to it; the object that threw stays usable. */
export class DaemonError extends PerchError<DaemonErrorCode> {}
