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

/** The exit code for what a command threw. */
export function exitCodeOf(error: unknown): number {
  if (error instanceof Interrupted) return EXIT.interrupted;
  if (error instanceof UsageError) return EXIT.usage;
  if (!(error instanceof PerchError)) return EXIT.failure;
  const known: Readonly<Record<string, number>> = DAEMON_ERROR_CODES;
  return known[error.code] ?? EXIT.failure;
}
