import { Command } from "commander";
import { DEFAULT_STATE_DIR } from "#agent/daemon/daemon-address.ts";
import { assertRestored, cleanState } from "#agent/daemon/state-clean.ts";
import { type DaemonOptions, daemonSocket, withDaemonOption } from "./daemon-connection.ts";
import { print } from "./terminal.ts";

export function stateCommand(): Command {
  return new Command("state")
    .description("Looks after what the agent changed on this machine.")
    .addCommand(cleanCommand());
}

interface CleanOptions extends DaemonOptions {
  readonly stateDir?: string;
}

function cleanCommand(): Command {
  return withDaemonOption(new Command("clean"))
    .summary("put back what a daemon that died left changed")
    .description(
      "Puts back what a daemon changed on this machine and, killed, could not put back itself: the resolver file. Takes away its " +
        "socket, its locks and what it left half written. Says what it did; nothing to do is fine. The next start of the daemon " +
        "does the same.",
    )
    .option("--state-dir <DIR>", `where the daemon keeps its state (default: ${DEFAULT_STATE_DIR})`)
    .addHelpText("after", "\nExample:\n  perch state clean")
    .action(async (options: CleanOptions) => {
      const stateDir = options.stateDir ?? DEFAULT_STATE_DIR;
      const restoration = await cleanState({ stateDir, socketPath: daemonSocket(options) });
      for (const line of restoration.done) print(line);
      assertRestored(restoration);
      if (restoration.done.length === 0) print("nothing to put back");
    });
}
