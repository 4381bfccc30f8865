import type { Command } from "commander";
import { DEFAULT_DAEMON_ADDRESS, parseDaemonAddress } from "#agent/daemon/daemon-address.ts";
import type { DaemonClient } from "#agent/daemon/daemon-client.ts";
import { DaemonError } from "#agent/daemon/daemon-error.ts";
import { probeSocket } from "#agent/daemon/unix-listener.ts";
import { messageOf } from "#base/errors.ts";
import { Interrupted } from "./exit-codes.ts";

export interface DaemonOptions {
  readonly daemonAddr?: string;
}

/** Adds `--daemon-addr`. */
export function withDaemonOption(command: Command): Command {
  return command.option("--daemon-addr <ADDR>", `socket of the daemon (default: ${DEFAULT_DAEMON_ADDRESS})`);
}

/** Path of the daemon's socket. Throws DaemonError `value-invalid`. */
export function daemonSocket(options: DaemonOptions): string {
  return parseDaemonAddress(options.daemonAddr ?? DEFAULT_DAEMON_ADDRESS);
}

/**
 * Runs `use` with a client of a daemon that answers. Its errors become ours: DaemonError `daemon-absent` or
 * `daemon-forbidden` at once, what the daemon reported as RemoteError. Ctrl-C aborts the signal and ends in Interrupted.
 */
export async function withDaemon<Result>(
  options: DaemonOptions,
  use: (client: DaemonClient, signal: AbortSignal) => Promise<Result>,
): Promise<Result> {
  const socketPath = daemonSocket(options);
  await requireDaemon(socketPath);
  const { createDaemonClient } = await import("#agent/daemon/daemon-client.ts");
  const controller = new AbortController();
  const interrupt = (): void => controller.abort(new Interrupted());
  process.once("SIGINT", interrupt).once("SIGTERM", interrupt);
  try {
    return await use(createDaemonClient(socketPath), controller.signal);
  } catch (error) {
    if (controller.signal.aborted) throw new Interrupted();
    throw error;
  } finally {
    process.off("SIGINT", interrupt).off("SIGTERM", interrupt);
  }
}

/** Throws DaemonError `daemon-absent` or `daemon-forbidden`; cheap, and before anything heavy is loaded. */
async function requireDaemon(socketPath: string): Promise<void> {
  let answers: boolean;
  try {
    answers = await probeSocket(socketPath);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "EACCES" || (cause as NodeJS.ErrnoException).code === "EPERM") {
      throw new DaemonError(
        "daemon-forbidden",
        `may not talk to the daemon on ${socketPath}: be root or a member of the group perch`,
        { cause },
      );
    }
    throw new DaemonError("daemon-lost", `cannot talk to the daemon on ${socketPath}: ${messageOf(cause)}`, { cause });
  }
  if (answers) return;
  const elsewhere = `unix://${socketPath}` === DEFAULT_DAEMON_ADDRESS ? "" : ` --daemon-addr unix://${socketPath}`;
  throw new DaemonError(
    "daemon-absent",
    `no daemon runs on ${socketPath}: start it with "perch service run${elsewhere}", or connect without one with "perch up -F${elsewhere}"`,
  );
}
