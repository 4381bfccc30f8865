import { Command } from "commander";
import { DEFAULT_STATE_DIR } from "#agent/daemon/daemon-address.ts";
import { assertRestored, cleanState, describeRestoration } from "#agent/daemon/state-clean.ts";
import { print } from "./terminal.ts";

export function stateCommand(): Command {
  return new Command("state")
    .description("Looks after what the agent changed on this machine.")
    .addCommand(cleanCommand());
}

function cleanCommand(): Command {
  return new Command("clean")
    .summary("put back what a daemon that died left changed")
    .description(
      "Puts back what a daemon changed on this machine and, killed, could not put back itself: the resolver file. Says what it " +
        "did; nothing to do is fine. The next start of the daemon does the same.",
    )
    .option("--state-dir <DIR>", `where the daemon keeps its state (default: ${DEFAULT_STATE_DIR})`)
    .addHelpText("after", "\nExample:\n  perch state clean")
    .action((options: { readonly stateDir?: string }) => {
      const restoration = cleanState(options.stateDir ?? DEFAULT_STATE_DIR);
      assertRestored(restoration);
      print(describeRestoration(restoration));
    });
}
