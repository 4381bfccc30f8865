import { Command } from "commander";
import { type DaemonOptions, withDaemon, withDaemonOption } from "./daemon-connection.ts";
import { paintFor, print } from "./terminal.ts";

export function whyCommand(): Command {
  return withDaemonOption(new Command("why"))
    .description(
      "Tells a peer's story: what woke it, which paths were tried, what took how long, why it sleeps or stays awake.",
    )
    .argument("<PEER>", "name, overlay address or public key")
    .option("--json", "one line of JSON")
    .addHelpText("after", "\nExample:\n  perch why bob")
    .action(async (wanted: string, options: DaemonOptions & { readonly json?: boolean }) => {
      await withDaemon(options, async (client) => {
        const { peerDocument } = await import("./status-json.ts");
        const { renderStory } = await import("./peer-story.ts");
        const peer = await client.explainPeer({ peer: wanted });
        if (options.json) print(JSON.stringify(peerDocument(peer)));
        else print(renderStory(peer, Date.now(), paintFor(process.stdout)));
      });
    });
}
