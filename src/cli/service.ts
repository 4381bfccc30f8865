import { Command } from "commander";
import { DEFAULT_STATE_DIR } from "#agent/daemon/daemon-address.ts";
import { parseLogLevel } from "#agent/daemon/daemon-log.ts";
import { type DaemonOptions, daemonSocket, withDaemon, withDaemonOption } from "./daemon-connection.ts";
import { print } from "./terminal.ts";

interface ServiceOptions extends DaemonOptions {
  readonly stateDir?: string;
  readonly logLevel?: string;
  readonly logFile?: string;
}

interface UnitOptions extends ServiceOptions {
  readonly service: string;
}

export function serviceCommand(): Command {
  return new Command("service")
    .description("Runs the agent's daemon, or has systemd run it.")
    .addCommand(runCommand())
    .addCommand(installCommand())
    .addCommand(unitCommand("uninstall", "stop the service and remove its unit; state and registration stay"))
    .addCommand(unitCommand("start", "start the installed service"))
    .addCommand(unitCommand("stop", "stop the installed service"))
    .addCommand(unitCommand("status", "say whether the service runs (exit code 0: yes, 1: no)"))
    .addCommand(logLevelCommand());
}

function withRunOptions(command: Command): Command {
  return withDaemonOption(command)
    .option("--state-dir <DIR>", `where identity and settings are kept (default: ${DEFAULT_STATE_DIR})`)
    .option("--log-level <LEVEL>", "trace, debug, info, warn or error (default: info)")
    .option(
      "--log-file <FILE>",
      "append JSON lines to a file instead of text on stderr; at 16 MiB it becomes FILE.1, four are kept; SIGHUP opens it again",
    );
}

function runCommand(): Command {
  return withRunOptions(new Command("run"))
    .summary("run the daemon in the foreground")
    .description(
      "Runs the daemon in the foreground. It connects when it was connected before; SIGTERM and SIGINT take the tunnel down " +
        "and end with exit code 0.",
    )
    .addHelpText(
      "after",
      [
        "",
        "Examples:",
        "  perch service run",
        "  perch service run --daemon-addr unix:///run/perch-b.sock --state-dir /var/lib/perch-b",
      ].join("\n"),
    )
    .action(async (options: ServiceOptions) => {
      const { runForeground } = await import("./foreground.ts");
      await runForeground(options);
    });
}

function installCommand(): Command {
  return withRunOptions(new Command("install"))
    .summary("install and start a systemd service")
    .description("Writes a systemd unit that runs `perch service run` with these flags, enables it and starts it.")
    .option("--service <NAME>", "name of the unit, for several daemons on one machine", "perch")
    .action(async (options: UnitOptions) => {
      const { installUnit } = await import("./systemd-unit.ts");
      daemonSocket(options);
      if (options.logLevel !== undefined) parseLogLevel(options.logLevel, "--log-level");
      print(await installUnit(options.service, options));
    });
}

function unitCommand(verb: "uninstall" | "start" | "stop" | "status", summary: string): Command {
  return new Command(verb)
    .description(summary[0]!.toUpperCase() + summary.slice(1))
    .summary(summary)
    .option("--service <NAME>", "name of the unit", "perch")
    .action(async ({ service }: UnitOptions) => {
      const units = await import("./systemd-unit.ts");
      if (verb === "uninstall") print(await units.uninstallUnit(service));
      else if (verb === "status") {
        const { text, active } = await units.unitStatus(service);
        print(text);
        if (!active) process.exitCode = 1;
      } else print(await units.controlUnit(verb, service));
    });
}

function logLevelCommand(): Command {
  return withDaemonOption(new Command("log-level"))
    .description("Changes the log level of the running daemon until it ends.")
    .argument("<LEVEL>", "trace, debug, info, warn or error")
    .action(async (given: string, options: DaemonOptions) => {
      const level = parseLogLevel(given, "LEVEL");
      await withDaemon(options, async (client) => {
        const { before } = await client.setLogLevel({ level });
        print(`log level is ${level}, was ${before}`);
      });
    });
}
