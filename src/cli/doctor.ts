import { Command } from "commander";
import { type DaemonOptions, withDaemon, withDaemonOption } from "./daemon-connection.ts";
import { EXIT } from "./exit-codes.ts";
import { paintFor, print } from "./terminal.ts";

export function doctorCommand(): Command {
  return withDaemonOption(new Command("doctor"))
    .description(
      "Says what is wrong and what to do about it. Without PEER: this agent, its servers, its NAT, its interface. With PEER: why the two are relayed or not connected. Changes nothing and wakes nobody; asks the STUN servers anew.",
    )
    .argument("[PEER]", "name, overlay address or public key")
    .option("--json", "one line of JSON")
    .addHelpText(
      "after",
      [
        "",
        "Examples:",
        "  perch doctor                          everything about this machine",
        "  perch doctor bob                      why bob is relayed, or cannot be reached",
        "  perch doctor bob --json | jq -r .cause",
        "  perch doctor || mail -s 'perch is ill' admin < /dev/null",
        "",
        "Exit codes: 0 nothing has to be mended (notes do not count), 1 something has, 2 wrong arguments, 3 no daemon.",
      ].join("\n"),
    )
    .action(async (wanted: string | undefined, options: DaemonOptions & { readonly json?: boolean }) => {
      await withDaemon(options, async (client, signal) => {
        const { doctorDocument } = await import("./doctor-json.ts");
        const { renderAgent, renderPair } = await import("./doctor-view.ts");
        const { perchVersion } = await import("./version.ts");
        const report = await client.diagnose({ peer: wanted ?? "" }, { signal });
        const view = { report, now: Date.now(), cliVersion: perchVersion(), width: process.stdout.columns ?? 100 };
        const paint = paintFor(process.stdout);
        if (options.json) print(JSON.stringify(doctorDocument(view)));
        else if (report.pair) print(renderPair(view, report.pair, paint));
        else print(renderAgent(view, paint));
        if (!report.healthy) process.exitCode = EXIT.failure;
      });
    });
}
