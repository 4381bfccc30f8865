import { PublicKey } from "#base/keys.ts";
import { AgentState, type Peer, PeerState, type Setting, type StatusHead } from "#gen/daemon_pb.ts";
import { clean, formatBytes, formatSpan, type Paint, type Style } from "./terminal.ts";

/** A status as commands print it: the head and the peers that passed the filters, in order of address. */
export interface StatusView {
  readonly head: StatusHead;
  readonly peers: readonly Peer[];
  /** Wall clock ms; ages are counted from here. */
  readonly now: number;
}

const STATES: Readonly<Record<number, { readonly name: string; readonly style: Style }>> = {
  [PeerState.IDLE]: { name: "Idle", style: "dim" },
  [PeerState.CONNECTING]: { name: "Connecting", style: "yellow" },
  [PeerState.CONNECTED]: { name: "Connected", style: "green" },
};

/** `Idle`, `Connecting`, `Connected`. */
export function stateName(state: PeerState): string {
  return STATES[state]?.name ?? "Unknown";
}

function stateStyle(state: PeerState): Style {
  return STATES[state]?.style ?? "dim";
}

const AGENT_STATES: Readonly<Record<number, string>> = {
  [AgentState.DOWN]: "down",
  [AgentState.STARTING]: "connecting",
  [AgentState.UP]: "up",
  [AgentState.NEEDS_LOGIN]: "needs login",
  [AgentState.STOPPING]: "stopping",
};

export function agentStateName(state: AgentState): string {
  return AGENT_STATES[state] ?? "unknown";
}

/** How each source is told in a sentence. */
const SOURCE_WORDS: Readonly<Record<string, string>> = {
  flag: "the flag of perch up",
  environment: "the environment",
  setting: "the stored setting",
  network: "the network",
  default: "the default",
};

export function sourceWords(source: string): string {
  return SOURCE_WORDS[source] ?? source;
}

/** Width of the labels of the summary. */
const LABEL = 16;

/** The short status: one fact a line. */
export function renderSummary({ head, now }: StatusView, paint: Paint): string {
  const lines: string[] = [];
  const line = (label: string, text: string): void => void lines.push(`${`${label}:`.padEnd(LABEL)} ${text}`);
  line("Agent", agentWords(head, now, paint));
  if (head.state === AgentState.DOWN && head.address === "") return lines.join("\n");
  line("Management", serviceWords(head.management, now, paint));
  line("Signal", serviceWords(head.signal, now, paint));
  line("Relays", `${head.relays.filter((relay) => relay.available).length}/${head.relays.length} available`);
  if (head.fqdn) line("Name", clean(head.fqdn));
  if (head.address) line("Address", [head.address, head.address6].filter(Boolean).map(clean).join(", "));
  if (head.interfaceName) {
    line(
      "Interface",
      `${clean(head.interfaceName)}, ${clean(head.device) || "no device"}, UDP port ${head.wireguardPort}, MTU ${head.mtu}`,
    );
  }
  if (head.lazy) line("Lazy connection", lazyWords(head.lazy));
  if (head.firewall) line("Firewall", firewallWords(head.firewall));
  if (head.dns) line("Names", dnsWords(head.dns));
  line("Peers", countWords(head));
  const wakes = wakeWords(head.wakes);
  if (wakes) line("Wakes", wakes);
  return lines.join("\n");
}

/** `status -d`: the peers, then services, settings and counters, then the summary. */
export function renderDetail(view: StatusView, paint: Paint): string {
  const { head, peers, now } = view;
  const out: string[] = [];
  if (peers.length > 0) out.push(paint("bold", "Peers"));
  for (const peer of peers) out.push(renderPeer(peer, now, paint));
  const shown = head.peers?.total ?? 0;
  if (peers.length < shown) out.push(`(${peers.length} of ${shown} peers pass the filters)\n`);
  if (head.relays.length + head.stuns.length > 0) {
    out.push(paint("bold", "Relays and STUN servers"));
    for (const relay of head.relays) out.push(`  ${serverWords(relay, now, paint)}`);
    for (const stun of head.stuns) {
      const answered = stun.since > 0 ? `, answered ${ago(stun.since, now)}` : "";
      out.push(`  ${serverWords({ ...stun, since: 0 }, now, paint)}${answered}`);
    }
    out.push("");
  }
  out.push(paint("bold", "Settings"), ...renderSettings(head.settings), "");
  const counters = Object.entries(head.counters).filter(([, value]) => value !== 0);
  if (counters.length > 0) {
    out.push(paint("bold", "Counters"));
    for (const [name, value] of counters.sort()) out.push(`  ${clean(name).padEnd(24)} ${value}`);
    out.push("");
  }
  out.push(paint("bold", "Summary"));
  if (head.publicKey.length > 0) out.push(`${"Public key:".padEnd(LABEL)} ${keyText(head.publicKey)}`);
  out.push(
    `${"Versions:".padEnd(LABEL)} agent ${clean(head.agentVersion)}, daemon ${clean(head.daemonVersion)} (pid ${head.pid}, log level ${clean(head.logLevel)})`,
    `${"Network map:".padEnd(LABEL)} serial ${head.serial}`,
  );
  if (head.deviceFeatures.length > 0)
    out.push(`${"Device:".padEnd(LABEL)} ${head.deviceFeatures.map(clean).join(", ")}`);
  out.push(renderSummary(view, paint));
  return out.join("\n");
}

function renderSettings(settings: readonly Setting[]): string[] {
  return settings.map(
    ({ name, value, source }) => `  ${clean(name).padEnd(24)} ${clean(value).padEnd(24)} from ${sourceWords(source)}`,
  );
}

/** One peer in several lines, ending with an empty one. */
export function renderPeer(peer: Peer, now: number, paint: Paint): string {
  const state = paint(stateStyle(peer.state), stateName(peer.state));
  const since = peer.since > 0 ? ` for ${formatSpan(now - peer.since)}` : "";
  const lines = [
    ` ${clean(peer.fqdn) || keyText(peer.key)}`,
    `   Address:        ${peer.addresses.join(", ") || "-"}`,
    `   Public key:     ${keyText(peer.key)}`,
    `   Status:         ${state}${since}${peer.reason ? `: ${clean(peer.reason)}` : ""}`,
    `   Connection:     ${pathWords(peer)}${peer.pathSince > 0 ? ` for ${formatSpan(now - peer.pathSince)}` : ""}`,
  ];
  if (peer.relayServer && peer.path?.path.case !== "relay")
    lines.push(`   Relay:          ${clean(peer.relayServer)} on standby`);
  if (peer.latencyMs !== undefined) {
    const measured = peer.pathSince > 0 ? `, measured ${ago(peer.pathSince, now)}` : "";
    lines.push(`   Latency:        ${formatLatency(peer.latencyMs)}${measured}`);
  }
  lines.push(
    `   Last handshake: ${ago(peer.lastHandshake, now)}`,
    `   Transferred:    ${formatBytes(peer.rxBytes)} received, ${formatBytes(peer.txBytes)} sent`,
    `   Networks:       ${peer.routes.join(", ") || "-"}`,
    `   May sleep:      ${mayAndWhy(peer)}`,
    "",
  );
  return lines.join("\n");
}

/** One row per peer: name, address, state, path, and why. */
export function renderTable(
  peers: readonly Peer[],
  now: number,
  paint: Paint,
  width = Number.POSITIVE_INFINITY,
): string {
  const rows = peers.map((peer) => [
    clean(peer.fqdn) || PublicKey.short(keyText(peer.key) as PublicKey),
    peer.addresses[0] ?? "-",
    stateName(peer.state),
    peer.since > 0 ? formatSpan(now - peer.since) : "-",
    pathKind(peer),
    peer.latencyMs === undefined ? "-" : formatLatency(peer.latencyMs),
    clean(peer.reason),
  ]);
  const head = ["PEER", "ADDRESS", "STATE", "FOR", "PATH", "LATENCY", "WHY"];
  const widths = head.map((title, column) =>
    rows.reduce((most, row) => Math.max(most, row[column]!.length), title.length),
  );
  const format = (cells: readonly string[]): string => {
    const text = cells
      .map((cell, column) => (column === cells.length - 1 ? cell : cell.padEnd(widths[column]!)))
      .join("  ");
    return text.length > width ? `${text.slice(0, width - 1)}…` : text;
  };
  const lines = [paint("bold", format(head))];
  rows.forEach((row, index) => {
    const text = format(row);
    const { state } = peers[index]!;
    lines.push(
      state === PeerState.IDLE ? paint("dim", text) : text.replace(row[2]!, paint(stateStyle(state), row[2]!)),
    );
  });
  return lines.join("\n");
}

export function keyText(key: Uint8Array): string {
  return Buffer.from(key.buffer, key.byteOffset, key.length).toString("base64");
}

/** `21.3 ms`, `0.42 ms`. */
export function formatLatency(ms: number): string {
  return `${ms < 1 ? ms.toFixed(2) : ms < 100 ? ms.toFixed(1) : Math.round(ms)} ms`;
}

/** `direct` or `relay`, for a column. */
function pathKind(peer: Peer): string {
  const kind = peer.path?.path.case;
  return kind === "direct" ? "direct" : kind === "relay" ? "relay" : "-";
}

export function pathWords(peer: Peer): string {
  const path = peer.path?.path;
  switch (path?.case) {
    case "relay":
      return `relayed by ${clean(path.value)}`;
    case "direct": {
      const { local, localKind, remote, remoteKind } = path.value;
      return `direct, ${localKind || "?"} to ${remoteKind || "?"} (${local ? `${local} to ` : ""}${remote})`;
    }
    default:
      return "-";
  }
}

function mayAndWhy(peer: Peer): string {
  const pinned = peer.pinned && !/pin/i.test(peer.lazyReason) ? "pinned; " : "";
  return `${peer.lazy ? "yes" : "no"}${peer.lazyReason ? `, ${pinned}${clean(peer.lazyReason)}` : ""}`;
}

function ago(at: number, now: number): string {
  return at > 0 ? `${formatSpan(now - at)} ago` : "never";
}

function agentWords(head: StatusHead, now: number, paint: Paint): string {
  const name = agentStateName(head.state);
  const style: Style = head.state === AgentState.UP ? "green" : head.state === AgentState.DOWN ? "dim" : "yellow";
  const reason = head.reason ? `: ${clean(head.reason)}` : "";
  const hint = reason === "" && head.state === AgentState.DOWN ? " (connect with: perch up)" : "";
  const login = head.state === AgentState.NEEDS_LOGIN ? " (register with: perch up --setup-key-file FILE)" : "";
  return `${paint(style, name)}${reason}${hint}${login}, daemon running for ${formatSpan(now - head.startedAt)}`;
}

function serviceWords(service: StatusHead["management"], now: number, paint: Paint): string {
  if (!service || service.url === "") return "-";
  const since = service.since > 0 ? ` for ${formatSpan(now - service.since)}` : "";
  if (service.connected) return `${paint("green", "Connected")} to ${clean(service.url)}${since}`;
  return `${paint("red", "Disconnected")} from ${clean(service.url)}${since}${service.error ? `: ${clean(service.error)}` : ""}`;
}

function serverWords(relay: StatusHead["relays"][number], now: number, paint: Paint): string {
  const state = relay.available ? paint("green", "available") : paint("red", "not available");
  const since = relay.since > 0 ? ` for ${formatSpan(now - relay.since)}` : "";
  return `${clean(relay.uri)} is ${state}${since}${relay.error ? `: ${clean(relay.error)}` : ""}`;
}

/** `true, decided by …`: the first word is the one NetBird prints. */
export function lazyWords(lazy: NonNullable<StatusHead["lazy"]>): string {
  const sleep = lazy.enabled ? `; peers sleep after ${formatSpan(lazy.thresholdMs)} without traffic` : "";
  return `${lazy.enabled}, decided by ${sourceWords(lazy.source)}${sleep}`;
}

function firewallWords({ enforced, rules }: NonNullable<StatusHead["firewall"]>): string {
  if (!enforced) return "allows everything (legacy network)";
  return rules === 1 ? "1 rule" : `${rules} rules`;
}

function dnsWords({ enabled, domain, server, host, problem, wakes }: NonNullable<StatusHead["dns"]>): string {
  if (!enabled) return "off";
  const parts = [
    ...(domain ? [clean(domain)] : []),
    server ? `answered at ${clean(server)}` : "not answered",
    ...(host ? [`asked for through ${clean(host)}`] : []),
    ...(wakes ? [] : ["wake nobody"]),
    ...(problem ? [clean(problem)] : []),
  ];
  return parts.join(", ");
}

/** Only what is out of the ordinary: one wake at a time is not. */
function wakeWords(wakes: StatusHead["wakes"]): string {
  const { waiting = 0, held = 0, kept = 0 } = wakes ?? {};
  const words: string[] = [];
  if (waiting > 0) words.push(`${waiting} waiting for their turn`);
  if (held > 0) words.push(`${held} held back as part of a sweep`);
  if (kept > 0) words.push(`${kept} ${kept === 1 ? "peer" : "peers"} kept connected because waking failed`);
  return words.join(", ");
}

function countWords(head: StatusHead): string {
  const { total = 0, connected = 0, connecting = 0, idle = 0 } = head.peers ?? {};
  return `${connected}/${total} connected, ${connecting} connecting, ${idle} idle`;
}
