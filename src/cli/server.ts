import { Command } from "commander";
import { peersCommand, settingsCommand, setupKeyCommand, tokenCommand } from "./server-admin.ts";
import { DEFAULT_SERVER_DATA_DIR, type ServerFlags } from "./server-flags.ts";

export function serverCommand(): Command {
  return (
    new Command("server")
      .description(
        "Runs a network's server: management, signal, relay and STUN in one process, on one TCP port and one UDP port. " +
          "The first start prints an admin token and a reusable setup key, valid for 24 hours; every start prints `ready` " +
          "when it serves. SIGTERM and SIGINT end it with exit code 0, SIGHUP reads the certificate again.",
      )
      // `--data-dir` belongs to the server before a subcommand, and to the subcommand after it.
      .enablePositionalOptions()
      .option("--listen <ADDRESS:PORT>", "TCP port for everything (default: 0.0.0.0:33073)")
      .option("--public-url <URL>", "how agents reach this server, e.g. https://perch.example.org")
      .option("--stun-listen <ADDRESS:PORT>", "UDP port of STUN (default: 0.0.0.0:3478)")
      .option("--data-dir <DIR>", `where keys, peers and settings are kept (default: ${DEFAULT_SERVER_DATA_DIR})`)
      .option("--database <URL>", "sqlite:PATH (default: in the data directory)")
      .option("--bus <URL>", "local; how several servers of one network talk (default: local)")
      .option("--roles <LIST>", "of management,signal,relay,stun (default: all)")
      .option("--tls-cert <FILE>", "certificate chain, PEM; TLS is then served beside plaintext on the same port")
      .option("--tls-key <FILE>", "private key of the certificate, PEM")
      .option("--setup-key-file <FILE>", "write the first start's setup key here (0600)")
      .option("--domain <NAME>", "domain of the peers' names (default: perch.internal)")
      .option("--log-level <LEVEL>", "trace, debug, info, warn or error (default: info)")
      .option("--log-file <FILE>", "append JSON lines to a file instead of text on stderr; SIGHUP opens it again")
      .addHelpText(
        "after",
        [
          "",
          "Examples:",
          "  perch server --public-url http://203.0.113.5:33073",
          "  perch server --public-url https://perch.example.org --listen 0.0.0.0:443 --tls-cert chain.pem --tls-key key.pem",
          "  perch server setup-key create --reusable --expires 7d --name laptops",
          "  perch server settings --lazy off",
        ].join("\n"),
      )
      .action(async (flags: ServerFlags) => {
        const { runServer } = await import("./server-run.ts");
        await runServer(flags);
      })
      .addCommand(setupKeyCommand())
      .addCommand(tokenCommand())
      .addCommand(peersCommand())
      .addCommand(settingsCommand())
  );
}
