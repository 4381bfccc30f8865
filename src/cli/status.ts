import { Command } from "commander";
import { parseIp } from "#base/ip.ts";
import { type DaemonOptions, withDaemon, withDaemonOption } from "./daemon-connection.ts";
import { UsageError } from "./exit-codes.ts";

export interface StatusOptions extends DaemonOptions {
  readonly detail?: boolean;
  readonly json?: boolean;
  readonly yaml?: boolean;
  readonly ipv4?: boolean;
  readonly watch?: boolean;
  readonly filterByStatus?: readonly StateWord[];
  readonly filterByNames?: readonly string[];
  readonly filterByIps?: readonly string[];
  readonly check?: "live" | "ready";
}

const STATES = ["idle", "connecting", "connected"] as const;
export type StateWord = (typeof STATES)[number];

export function statusCommand(): Command {
  return withDaemonOption(new Command("status"))
    .description("Shows the agent and, with -d, --json or --yaml, its peers. Never waits for the network.")
    .option("-d, --detail", "every peer: state and why, path, handshake, bytes; settings and who decided them")
    .option("--json", "one line of JSON, with NetBird's field names and ours under `perch`")
    .option("--yaml", "the same as YAML")
    .option("-4, --ipv4", "only the overlay IPv4 address of this machine")
    .option("--watch", "keep showing what changes, also after a restart of the daemon; with --json a line per change")
    .option("--filter-by-status <STATES>", "peers that are idle, connecting or connected", parseStates)
    .option("--filter-by-names <NAMES>", "peers whose name begins so", parseList)
    .option("--filter-by-ips <ADDRESSES>", "peers with one of these overlay addresses", parseAddresses)
    .option("--check <WHAT>", "live: the daemon answers; ready: connected to management and signal", parseCheck)
    .addHelpText(
      "after",
      [
        "",
        "Examples:",
        "  perch status                                  the summary",
        "  perch status -d --filter-by-status connecting,connected",
        "  perch status --json | jq '.peers.details[].fqdn'",
        "  perch status --watch                          a live table",
        "  perch status --check ready && echo connected",
        "",
        "Exit codes: 0 shown (or the check passed), 1 the check failed, 2 wrong flags, 3 no daemon, 4 the check needs a login.",
      ].join("\n"),
    )
    .action(showStatus);
}

async function showStatus(options: StatusOptions): Promise<void> {
  const forms = (["detail", "json", "yaml", "ipv4", "check"] as const).filter((form) => options[form]);
  if (forms.length > 1) throw new UsageError(`--${forms[0]} and --${forms[1]} exclude each other`);
  if (options.watch && (options.yaml || options.ipv4 || options.check)) {
    throw new UsageError(`--watch and --${forms[0]} exclude each other`);
  }
  await withDaemon(options, async (client, signal) => {
    const { showOnce } = await import("./status-show.ts");
    if (!options.watch) return showOnce(client, signal, options);
    const { watchStatus } = await import("./status-watch.ts");
    return watchStatus(client, signal, options);
  });
}

/** Commas and repetition both make a list. */
function parseList(text: string, before: readonly string[] | undefined): readonly string[] {
  const words = text
    .split(",")
    .map((word) => word.trim())
    .filter(Boolean);
  return [...(before ?? []), ...words];
}

function parseStates(text: string, before: readonly StateWord[] | undefined): readonly StateWord[] {
  const states = parseList(text, []).map((word) => {
    const state = STATES.find((known) => known === word.toLowerCase());
    if (state === undefined) {
      throw new UsageError(`--filter-by-status must be idle, connecting or connected, got ${JSON.stringify(word)}`);
    }
    return state;
  });
  if (states.length === 0)
    throw new UsageError("--filter-by-status must be idle, connecting or connected, got nothing");
  return [...(before ?? []), ...states];
}

function parseAddresses(text: string, before: readonly string[] | undefined): readonly string[] {
  return [
    ...(before ?? []),
    ...parseList(text, []).map((word) => {
      try {
        return parseIp(word);
      } catch {
        throw new UsageError(`--filter-by-ips must be overlay addresses, got ${JSON.stringify(word)}`);
      }
    }),
  ];
}

function parseCheck(text: string): "live" | "ready" {
  if (text === "live" || text === "ready") return text;
  throw new UsageError(`--check must be live or ready, got ${JSON.stringify(text)}`);
}
