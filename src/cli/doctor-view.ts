import {
  type DiagnoseResponse,
  type DirectSearch,
  type Finding,
  type PairReport,
  PeerState,
  type UdpSide,
} from "#gen/daemon_pb.ts";
import { formatLatency, keyText, pathWords, stateName } from "./status-view.ts";
import { clean, formatSpan, type Paint, type Style } from "./terminal.ts";

/** What the doctor found, as the command prints it. */
export interface DoctorView {
  readonly report: DiagnoseResponse;
  /** Wall clock ms; ages are counted from here. */
  readonly now: number;
  readonly cliVersion: string;
  /** Columns of the terminal. */
  readonly width: number;
}

const LEVELS: Readonly<Record<string, { readonly word: string; readonly style: Style }>> = {
  ok: { word: "ok", style: "green" },
  note: { word: "note", style: "yellow" },
  problem: { word: "wrong", style: "red" },
};

const TITLES: Readonly<Record<string, string>> = { stun: "STUN", udp: "UDP", nat: "NAT" };
/** Columns before the text of a finding: level, area and the gaps. */
const INDENT = 19;
/** Lines are never shorter than this, however narrow the terminal. */
const WIDTH_MIN = 60;

/** A line for each thing looked at, what to do under what is not in order, and a sentence at the end. */
export function renderAgent(view: DoctorView, paint: Paint): string {
  const findings = [daemonFinding(view), ...view.report.findings];
  const lines = findings.flatMap((finding) => renderFinding(finding, view.width, paint));
  const wrong = findings.filter(({ level }) => level === "problem").length;
  const notes = findings.filter(({ level }) => level === "note").length;
  const also = notes === 0 ? "" : ` ${notes === 1 ? "One thing is" : `${notes} things are`} worth knowing.`;
  const end =
    wrong === 0
      ? paint("green", "Nothing has to be mended.")
      : paint("red", wrong === 1 ? "One thing has to be mended." : `${wrong} things have to be mended.`);
  return [...lines, "", `${end}${also}`].join("\n");
}

/** The daemon that answered, against the command that asked. */
export function daemonFinding({
  report,
  now,
  cliVersion,
}: DoctorView): Pick<Finding, "area" | "level" | "text" | "remedy"> {
  const head = report.head!;
  const text = `running for ${formatSpan(now - head.startedAt)}, version ${head.daemonVersion} (pid ${head.pid})`;
  if (head.daemonVersion === cliVersion) return { area: "daemon", level: "ok", text, remedy: "" };
  return {
    area: "daemon",
    level: "note",
    text: `${text}; this command is version ${cliVersion}`,
    remedy: "restart the daemon: perch service stop, then perch service start",
  };
}

function renderFinding(
  { area, level, text, remedy }: Pick<Finding, "area" | "level" | "text" | "remedy">,
  width: number,
  paint: Paint,
): string[] {
  const { word, style } = LEVELS[level] ?? { word: level, style: "dim" };
  const title = TITLES[area] ?? capital(area);
  const [first = "", ...more] = wrap(clean(text), width - INDENT);
  const lines = [`${paint(style, word.padEnd(6))} ${title.padEnd(11)} ${first}`, ...more.map((line) => indent(line))];
  if (remedy !== "" && level !== "ok") {
    const [begin = "", ...rest] = wrap(clean(remedy), width - INDENT - 3);
    lines.push(indent(`-> ${begin}`), ...rest.map((line) => indent(`   ${line}`)));
  }
  return lines;
}

/** State, cause and remedy first; then what they rest on. */
export function renderPair(view: DoctorView, pair: PairReport, paint: Paint): string {
  const { now, width, report } = view;
  const peer = pair.peer!;
  const name = clean(peer.fqdn) || keyText(peer.key);
  const since = peer.since > 0 ? ` for ${formatSpan(now - peer.since)}` : "";
  const path = peer.path && peer.state === PeerState.CONNECTED ? `, ${pathWords(peer)}` : "";
  const style: Style = report.healthy ? "green" : "red";
  const lines = [
    `${paint("bold", name)} is ${paint(style, stateName(peer.state))}${since}${path}.`,
    "",
    ...paragraph("Why", [pair.cause, certaintyWords(pair)].filter(Boolean).join(" "), width, paint),
    ...paragraph("To do", pair.remedy || "Nothing.", width, paint),
    "",
    ...renderSides(pair, report, now, paint),
  ];
  if (pair.search) lines.push("", ...renderSearch(pair.search, now, paint));
  return lines.join("\n");
}

function certaintyWords({ certainty, remoteAgent }: PairReport): string {
  if (certainty === "likely") return "(This follows from what failed; it was not seen itself.)";
  if (certainty !== "one-sided") return "";
  return remoteAgent === "stock"
    ? "(The peer does not run Perch and tells nothing of its own side: this is the view from here.)"
    : "(The other side has told nothing: this is the view from here.)";
}

function paragraph(title: string, text: string, width: number, paint: Paint): string[] {
  const [first = "", ...more] = wrap(clean(text), width - 7);
  return [`${paint("bold", `${title}:`.padEnd(6))} ${first}`, ...more.map((line) => `       ${line}`)];
}

function renderSides(pair: PairReport, report: DiagnoseResponse, now: number, paint: Paint): string[] {
  const peer = pair.peer!;
  const rows: (readonly [title: string, here: string, there: string])[] = [
    ["", "here", "there"],
    ["UDP", udpWords(pair.here), told(pair, udpWords(pair.there))],
    ["NAT", mappingWords(pair.here), told(pair, mappingWords(pair.there))],
    ["Agent", `Perch ${clean(report.head?.agentVersion ?? "")}`, agentWords(pair)],
  ];
  const width = Math.max(...rows.map(([, here]) => here.length));
  const lines = rows.map(([title, here, there]) => {
    const line = `${title.padEnd(15)} ${here.padEnd(width)}  ${there}`;
    return title === "" ? paint("bold", line) : line;
  });
  const fact = (title: string, text: string): void => void lines.push(`${title.padEnd(15)} ${text}`);
  const relay = peer.relayServer ? clean(peer.relayServer) : "none";
  fact("Relay", pair.relayRttMs === undefined ? relay : `${relay}, ours is ${formatLatency(pair.relayRttMs)} away`);
  fact("Signal", signalWords(pair));
  const attempts = pair.initiations > 0 ? `; ${pair.initiations} sent since without an answer` : "";
  fact(
    "Handshake",
    peer.lastHandshake > 0 ? `${formatSpan(now - peer.lastHandshake)} ago${attempts}` : `never${attempts}`,
  );
  return lines;
}

function renderSearch({ at, outcome, candidates, pairs }: DirectSearch, now: number, paint: Paint): string[] {
  const lines = [
    paint("bold", `Search for a direct way, begun ${formatSpan(now - at)} ago: ${searchWords(outcome, pairs.length)}`),
    `  ours            ${candidates.map(({ kind, endpoint }) => `${kind} ${endpoint}`).join(", ") || "none"}`,
  ];
  if (pairs.length === 0) return [...lines, "  theirs          none"];
  const rows = [
    ["theirs", "sent", "answered", "received", "state", "round trip"],
    ...pairs.map(({ remote, sent, answered, received, state, rttMs, selected }) => [
      `${remote?.kind ?? "?"} ${remote?.endpoint ?? "?"}`,
      String(sent),
      String(answered),
      String(received),
      selected ? "in use" : clean(state),
      rttMs === undefined ? "-" : formatLatency(rttMs),
    ]),
  ];
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return [
    ...lines,
    ...rows.map((row) => `  ${row.map((cell, column) => cell.padEnd(widths[column]!)).join("  ")}`.trimEnd()),
  ];
}

function searchWords(outcome: string, pairs: number): string {
  if (outcome === "searching" && pairs === 0) return "the other side has named no address yet";
  return SEARCHES[outcome] ?? clean(outcome);
}

const SEARCHES: Readonly<Record<string, string>> = {
  searching: "still under way",
  found: "found",
  failed: "nothing answered",
  lost: "found and lost again",
  stopped: "given up for a new one",
};

function udpWords(side: UdpSide | undefined): string {
  if (side?.udp === "works") return "works";
  return side?.udp === "silent" ? "no STUN server answers" : "unknown";
}

function mappingWords(side: UdpSide | undefined): string {
  switch (side?.mapping) {
    case "none":
      return "none";
    case "endpoint-independent":
      return "one outer address for all (endpoint-independent)";
    case "endpoint-dependent":
      return "another one for each destination (symmetric)";
    default:
      return "unknown";
  }
}

/** Only a Perch agent tells of its own side. */
function told({ remoteAgent }: PairReport, text: string): string {
  return remoteAgent === "perch" ? text : "not told";
}

function agentWords({ remoteAgent, peer }: PairReport): string {
  const version = clean(peer?.agentVersion ?? "");
  if (remoteAgent === "perch") return `Perch (speaks ${version})`;
  return remoteAgent === "stock" ? `NetBird ${version}` : "not heard from since this agent started";
}

function signalWords({ delivered }: PairReport): string {
  if (delivered === undefined) return "does not tell whether the peer is connected, or was not asked yet";
  return delivered ? "the peer was connected at our last message" : "the peer was not connected at our last message";
}

/** Words in lines of at most `width` columns; a longer word has a line of its own. */
export function wrap(text: string, width: number): string[] {
  const most = Math.max(WIDTH_MIN - INDENT, width);
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= most) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines;
}

function indent(line: string): string {
  return `${" ".repeat(INDENT)}${line}`;
}

function capital(word: string): string {
  return word === "" ? word : word[0]!.toUpperCase() + word.slice(1);
}
