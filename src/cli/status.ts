import { Command } from "commander";
import { parseIp } from "#base/ip.ts";
import { AgentState, type Peer, PeerState, type StatusHead, type StatusRequest } from "#gen/daemon_pb.ts";
import { type DaemonOptions, withDaemon, withDaemonOption } from "./daemon-connection.ts";
import { EXIT, UsageError } from "./exit-codes.ts";
import { statusDocument } from "./status-json.ts";
import { renderDetail, renderSummary, type StatusView } from "./status-view.ts";
import { paintFor, print, say } from "./terminal.ts";
import { perchVersion } from "./version.ts";
import { toYaml } from "./yaml.ts";

export interface StatusOptions extends DaemonOptions {
  readonly detail?: boolean;
  readonly json?: boolean;
  readonly yaml?: boolean;
  readonly ipv4?: boolean;
  readonly watch?: boolean;
  readonly filterByStatus?: readonly PeerState[];
  readonly filterByNames?: readonly string[];
  readonly filterByIps?: readonly string[];
  readonly check?: "live" | "ready";
}

const STATES: Readonly<Record<string, PeerState>> = {
  idle: PeerState.IDLE,
  connecting: PeerState.CONNECTING,
  connected: PeerState.CONNECTED,
};

export function statusCommand(): Command {
  return withDaemonOption(new Command("status"))
    .description("Shows the agent and, with -d, --json or --yaml, its peers. Never waits for the network.")
    .option("-d, --detail", "every peer: state and why, path, handshake, bytes; settings and who decided them")
    .option("--json", "one line of JSON, with NetBird's field names and ours under `perch`")
    .option("--yaml", "the same as YAML")
    .option("-4, --ipv4", "only the overlay IPv4 address of this machine")
    .option("--watch", "keep showing what changes; with --json a line per change")
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
    if (options.watch) {
      const { watchStatus } = await import("./status-watch.ts");
      return watchStatus(client, signal, filterOf(options, true), options.json ?? false);
    }
    const withPeers = Boolean(options.detail || options.json || options.yaml);
    const peers: Peer[] = [];
    let head: StatusHead | undefined;
    for await (const part of client.getStatus(filterOf(options, withPeers), { signal })) {
      head ??= part.head;
      for (const peer of part.peers) peers.push(peer);
    }
    if (!head) throw new Error("the daemon sent no status");
    show(options, { head, peers: sortByAddress(peers), now: Date.now() });
  });
}

function show(options: StatusOptions, view: StatusView): void {
  const { head } = view;
  if (options.check) check(options.check, head);
  else if (options.ipv4) {
    if (head.address) print(head.address.split("/")[0]!);
    else {
      say("perch: this machine has no overlay address, the agent is not up");
      process.exitCode = EXIT.failure;
    }
  } else if (options.json) print(JSON.stringify(statusDocument(view, perchVersion())));
  else if (options.yaml) print(toYaml(statusDocument(view, perchVersion())));
  else print((options.detail ? renderDetail : renderSummary)(view, paintFor(process.stdout)));
}

/** `live` passed by getting here. */
function check(what: "live" | "ready", head: StatusHead): void {
  if (what === "live") return print("live");
  const problem = notReady(head);
  if (!problem) return print("ready");
  say(`perch: not ready: ${problem}`);
  process.exitCode = head.state === AgentState.NEEDS_LOGIN ? EXIT.needsLogin : EXIT.failure;
}

function notReady(head: StatusHead): string | undefined {
  if (head.state === AgentState.NEEDS_LOGIN) return "this machine is not registered; give perch up a setup key";
  if (head.state !== AgentState.UP) return `the agent is not up${head.reason ? `: ${head.reason}` : ""}`;
  if (!head.management?.connected) return `no connection to management ${head.management?.url ?? ""}`.trimEnd();
  if (!head.signal?.connected) return `no connection to signal ${head.signal?.url ?? ""}`.trimEnd();
  return undefined;
}

function filterOf(options: StatusOptions, withPeers: boolean): StatusRequest {
  return {
    states: [...(options.filterByStatus ?? [])],
    names: [...(options.filterByNames ?? [])],
    addresses: [...(options.filterByIps ?? [])],
    withPeers,
    withTimeline: false,
  } as unknown as StatusRequest;
}

/** Peers in order of their first address, IPv4 before IPv6. */
export function sortByAddress(peers: readonly Peer[]): readonly Peer[] {
  return peers
    .map((peer) => ({ peer, order: addressOrder(peer.addresses[0]) }))
    .sort((a, b) => a.order - b.order || (a.peer.fqdn < b.peer.fqdn ? -1 : 1))
    .map(({ peer }) => peer);
}

function addressOrder(address: string | undefined): number {
  if (address === undefined || address.includes(":")) return Number.MAX_SAFE_INTEGER;
  return address.split(".").reduce((sum, part) => sum * 256 + Number(part), 0);
}

/** Commas and repetition both make a list. */
function parseList(text: string, before: readonly string[] | undefined): readonly string[] {
  const words = text
    .split(",")
    .map((word) => word.trim())
    .filter(Boolean);
  return [...(before ?? []), ...words];
}

function parseStates(text: string, before: readonly PeerState[] | undefined): readonly PeerState[] {
  const states = parseList(text, []).map((word) => {
    const state = STATES[word.toLowerCase()];
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
