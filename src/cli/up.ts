import { Command } from "commander";
import { DEFAULT_STATE_DIR } from "#agent/daemon/daemon-address.ts";
import { DaemonError } from "#agent/daemon/daemon-error.ts";
import type { SettingValues } from "#agent/daemon/settings.ts";
import type { StatusHead, UpRequest } from "#gen/daemon_pb.ts";
import { withDaemon, withDaemonOption } from "./daemon-connection.ts";
import { Interrupted } from "./exit-codes.ts";
import { settingsFromFlags, settingsFromVariables, setupKeyFrom, withSettingFlags } from "./setting-flags.ts";
import { clean, Progress, print } from "./terminal.ts";

interface UpOptions extends Readonly<Record<string, unknown>> {
  readonly daemonAddr?: string;
  readonly setupKey?: string;
  readonly setupKeyFile?: string;
  readonly foreground?: boolean;
  readonly stateDir?: string;
  readonly logLevel?: string;
  readonly logFile?: string;
}

export function upCommand(): Command {
  const command = new Command("up").description(
    "Joins the network and connects. The first time it needs the server and a setup key; from then on `perch up` alone is " +
      "enough, and settings that were given are kept until they are given again.",
  );
  withDaemonOption(withSettingFlags(command))
    .option("-F, --foreground", "run the daemon in this process until Ctrl-C")
    .option("--state-dir <DIR>", `with -F: where identity and settings are kept (default: ${DEFAULT_STATE_DIR})`)
    .option("--log-level <LEVEL>", "with -F: trace, debug, info, warn or error (default: info)")
    .option("--log-file <FILE>", "with -F: append JSON lines to a file instead of text on stderr")
    .addHelpText(
      "after",
      [
        "",
        "Examples:",
        "  perch up --management-url https://vpn.example.com --setup-key-file key.txt",
        "  perch up                                      again, with the stored settings",
        "  perch up --enable-lazy-connection=false       keep every peer connected",
        "  perch up -F --daemon-addr unix:///tmp/a.sock --state-dir /tmp/a --interface-name perch1",
      ].join("\n"),
    )
    .action(async (options: UpOptions) => {
      const flags = settingsFromFlags(options);
      const environment = settingsFromVariables();
      const setupKey = setupKeyFrom(options);
      if (options.foreground) {
        const { runForeground } = await import("./foreground.ts");
        await runForeground(options, { flags, environment, setupKey });
      } else await callDaemon(options, "up", { flags, environment, setupKey });
    });
  return command;
}

export function loginCommand(): Command {
  const command = new Command("login").description(
    "Registers this machine and stores the settings, without connecting.",
  );
  return withDaemonOption(withSettingFlags(command))
    .addHelpText("after", "\nExample:\n  perch login --management-url https://vpn.example.com --setup-key-file key.txt")
    .action(async (options: UpOptions) => {
      const flags = settingsFromFlags(options);
      await callDaemon(options, "login", {
        flags,
        environment: settingsFromVariables(),
        setupKey: setupKeyFrom(options),
      });
    });
}

/** What `perch up` asks for. */
export interface UpCall {
  readonly flags: SettingValues;
  readonly environment: SettingValues;
  readonly setupKey: string | undefined;
}

async function callDaemon(options: UpOptions, verb: "up" | "login", call: UpCall): Promise<void> {
  await withDaemon(options, async (client, signal) => {
    using progress = new Progress();
    const request: Partial<UpRequest> = {
      flags: encodeValues(call.flags),
      environment: encodeValues(call.environment),
      setupKey: call.setupKey ?? "",
    };
    let ended = false;
    for await (const { event } of client[verb](request as UpRequest, { signal })) {
      if (event.case === "progress") progress.step(event.value);
      if (event.case !== "result") continue;
      ended = true;
      progress.end();
      const { already, head } = event.value;
      print(
        verb === "up"
          ? describeUp(already, head)
          : already
            ? "already registered and up"
            : "registered; connect with: perch up",
      );
    }
    if (signal.aborted) throw new Interrupted();
    if (!ended) throw new DaemonError("daemon-lost", "the daemon ended before it was done");
  });
}

/** The last line of a successful `perch up`. */
export function describeUp(already: boolean, head: StatusHead | undefined): string {
  if (!head) return already ? "already up" : "up";
  const name = head.fqdn || head.hostname;
  const parts = [
    `${already ? "already up" : "up"} as ${clean(name)}, ${clean(head.address)} on ${clean(head.interfaceName)}`,
    `${head.peers?.total ?? 0} ${head.peers?.total === 1 ? "peer" : "peers"}`,
    `lazy connections ${head.lazy?.enabled ? "on" : "off"}`,
  ];
  return parts.join(", ");
}

/** The message type with absent fields, as the generated code wants it. */
function encodeValues(values: SettingValues): NonNullable<UpRequest["flags"]> {
  const { inactivityThreshold, ...rest } = values;
  return {
    ...rest,
    ...(inactivityThreshold === undefined ? {} : { inactivityThresholdMs: inactivityThreshold }),
  } as NonNullable<UpRequest["flags"]>;
}
