import { type DaemonLog, openDaemonLog } from "#agent/daemon/daemon-log.ts";
import { messageOf } from "#base/errors.ts";
import { paintFor } from "./terminal.ts";

/** The log of a process that stays: to `file`, or for people on stderr. Throws what `failed` makes. */
export async function openLog(
  level: DaemonLog["level"],
  file: string | undefined,
  failed: (message: string, cause: unknown) => Error,
): Promise<DaemonLog> {
  try {
    return await openDaemonLog({
      level,
      file,
      colour: paintFor(process.stderr)("bold", "x") !== "x",
      // journald writes the time beside each line.
      timestamps: process.stderr.isTTY === true || process.env.JOURNAL_STREAM === undefined,
    });
  } catch (cause) {
    throw failed(`--log-file ${file} cannot be opened: ${messageOf(cause)}`, cause);
  }
}
