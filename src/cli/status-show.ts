import type { DaemonClient } from "#agent/daemon/daemon-client.ts";
import { AgentState, type Peer, PeerState, type StatusHead, type StatusRequest } from "#gen/daemon_pb.ts";
import { EXIT } from "./exit-codes.ts";
import type { StateWord, StatusOptions } from "./status.ts";
import { statusDocument } from "./status-json.ts";
import { renderDetail, renderSummary, type StatusView } from "./status-view.ts";
import { paintFor, print, say } from "./terminal.ts";
import { perchVersion } from "./version.ts";
import { toYaml } from "./yaml.ts";

const STATES: Readonly<Record<StateWord, PeerState>> = {
  idle: PeerState.IDLE,
  connecting: PeerState.CONNECTING,
  connected: PeerState.CONNECTED,
};

const [DOT, ZERO, COLON] = [0x2e, 0x30, 0x3a];

/** Reads one snapshot and prints it in the form that the options ask for. */
export async function showOnce(client: DaemonClient, signal: AbortSignal, options: StatusOptions): Promise<void> {
  const withPeers = Boolean(options.detail || options.json || options.yaml);
  const peers: Peer[] = [];
  let head: StatusHead | undefined;
  for await (const part of client.getStatus(filterOf(options, withPeers), { signal })) {
    head ??= part.head;
    for (const peer of part.peers) peers.push(peer);
  }
  if (!head) throw new Error("the daemon sent no status");
  show(options, { head, peers: sortByAddress(peers), now: Date.now() });
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

/** The filters of the command line as the API has them. */
export function filterOf(options: StatusOptions, withPeers: boolean): StatusRequest {
  return {
    states: (options.filterByStatus ?? []).map((word) => STATES[word]),
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

/** The number that an IPv4 address is; read by hand, for there are as many as peers. */
function addressOrder(address: string | undefined): number {
  let order = 0;
  let part = 0;
  for (let at = 0; at < (address?.length ?? 0); at++) {
    const code = address!.charCodeAt(at);
    if (code === COLON) return Number.MAX_SAFE_INTEGER;
    if (code !== DOT) part = part * 10 + code - ZERO;
    else {
      order = order * 256 + part;
      part = 0;
    }
  }
  return address ? order * 256 + part : Number.MAX_SAFE_INTEGER;
}
