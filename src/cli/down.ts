import { Command } from "commander";
import { type DaemonOptions, withDaemon, withDaemonOption } from "./daemon-connection.ts";
import { EXIT, Interrupted } from "./exit-codes.ts";
import { Progress, print, say } from "./terminal.ts";

export function downCommand(): Command {
  return withDaemonOption(new Command("down"))
    .description("Disconnects and takes the interface away. The registration stays: `perch up` connects again.")
    .action(async (options: DaemonOptions) => {
      await withDaemon(options, async (client, signal) => {
        using progress = slowly("taking the tunnel down");
        const { already } = await client.down({}, { signal });
        progress.end();
        print(already ? "already down" : "down");
      });
    });
}

export function deregisterCommand(): Command {
  return withDaemonOption(new Command("deregister"))
    .description("Removes this machine from the network: the server forgets it, and joining again needs a setup key.")
    .option("-y, --yes", "do not ask")
    .action(async (options: DaemonOptions & { readonly yes?: boolean }) => {
      if (!options.yes && !(await confirmed())) return;
      await withDaemon(options, async (client, signal) => {
        using progress = slowly("deregistering");
        await client.deregister({}, { signal });
        progress.end();
        print("deregistered");
      });
    });
}

/** Asks on a terminal; without one the flag must be given. */
async function confirmed(): Promise<boolean> {
  if (!process.stdin.isTTY || !process.stderr.isTTY) {
    say("perch: deregister asks before it removes this machine from its network; without a terminal add --yes");
    process.exitCode = EXIT.usage;
    return false;
  }
  const { createInterface } = await import("node:readline/promises");
  const lines = createInterface({ input: process.stdin, output: process.stderr });
  lines.on("SIGINT", () => lines.close());
  try {
    const answer = await lines.question(
      "Remove this machine from its network? Joining again needs a setup key. [y/N] ",
    );
    if (/^y(es)?$/i.test(answer.trim())) return true;
    say("nothing was changed");
    return false;
  } catch {
    throw new Interrupted();
  } finally {
    lines.close();
  }
}

/** Says what is going on once it takes longer than a second. */
function slowly(step: string): { end(): void } & Disposable {
  const progress = new Progress();
  const timer = setTimeout(() => progress.step(step), 1000);
  const end = (): void => {
    clearTimeout(timer);
    progress.end();
  };
  return { end, [Symbol.dispose]: end };
}
