import { DAEMON_ERROR_CODES } from "#agent/daemon/daemon-error.ts";
import { PerchError } from "#base/errors.ts";

/** Exit codes of every command, as docs/errors.md lists them. */
export const EXIT = {
  ok: 0,
  failure: 1,
  usage: 2,
  noDaemon: 3,
  needsLogin: 4,
  forbidden: 5,
  /** 128 + SIGINT, as shells count. */
  interrupted: 130,
} as const;

/** Stopped by the person at the keyboard: nothing more is said. */
export class Interrupted extends Error {}

/** A combination of arguments that cannot be meant; exit code 2. */
export class UsageError extends PerchError<"usage"> {
  constructor(message: string) {
    super("usage", message);
  }
}

/** Codes of other parts that a script wants to tell apart; every code that is nowhere listed ends in 1. */
const OTHER_CODES = {
  "setup-key-invalid": EXIT.needsLogin,
  "permission-denied": EXIT.needsLogin,
  "login-expired": EXIT.needsLogin,
  "setting-invalid": EXIT.usage,
  "url-malformed": EXIT.usage,
  "option-invalid": EXIT.usage,
  "option-unsupported": EXIT.usage,
} as const;

/** Exit codes by error code. */
export const EXIT_OF_CODE: Readonly<Record<string, number>> = { ...DAEMON_ERROR_CODES, ...OTHER_CODES };

/** The exit code for what a command threw. */
export function exitCodeOf(error: unknown): number {
  if (error instanceof Interrupted) return EXIT.interrupted;
  if (error instanceof UsageError) return EXIT.usage;
  if (!(error instanceof PerchError)) return EXIT.failure;
  return EXIT_OF_CODE[error.code] ?? EXIT.failure;
}
