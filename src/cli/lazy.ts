import { Command } from "commander";
import { type DaemonOptions, withDaemon, withDaemonOption } from "./daemon-connection.ts";
import { UsageError } from "./exit-codes.ts";
import { print, say } from "./terminal.ts";

/** What the argument means for the stored setting; null leaves it to the network. */
const CHOICES: Readonly<Record<string, boolean | null>> = { on: true, off: false, network: null };

export function lazyCommand(): Command {
  return withDaemonOption(new Command("lazy"))
    .description("Shows whether lazy connections are on and who decided it, or switches them at once.")
    .argument("[on|off|network]", "on, off, or as the network says")
    .addHelpText("after", "\nExamples:\n  perch lazy\n  perch lazy on")
    .action(async (choice: string | undefined, options: DaemonOptions) => {
      const enabled = choice === undefined ? undefined : CHOICES[choice.toLowerCase()];
      if (choice !== undefined && enabled === undefined) {
        throw new UsageError(`lazy takes on, off or network, got ${JSON.stringify(choice)}`);
      }
      await withDaemon(options, async (client) => {
        const { lazyWords } = await import("./status-view.ts");
        if (enabled === undefined) {
          for await (const { head } of client.getStatus({}))
            if (head?.lazy) print(`Lazy connection: ${lazyWords(head.lazy)}`);
          return;
        }
        const { lazy } = await client.setLazy(enabled === null ? {} : { enabled });
        if (!lazy) return;
        print(`Lazy connection: ${lazyWords(lazy)}`);
        if (lazy.source === "environment") {
          say("perch: the environment of the daemon decides; the stored setting counts once its variable is gone");
        }
      });
    });
}
