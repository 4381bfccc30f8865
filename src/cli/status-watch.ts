import type { DaemonClient } from "#agent/daemon/daemon-client.ts";
import { DaemonError } from "#agent/daemon/daemon-error.ts";
import type { Peer, StatusHead } from "#gen/daemon_pb.ts";
import type { StatusOptions } from "./status.ts";
import { peerDocument } from "./status-json.ts";
import { filterOf, sortByAddress } from "./status-show.ts";
import { agentStateName, keyText, renderSummary, renderTable, stateName } from "./status-view.ts";
import { clean, paintFor, print } from "./terminal.ts";

/** Redraws of the table at most this often. */
const REDRAW_MS = 100;
/** The ages in the table move even when nothing happens. */
const TICK_MS = 1000;

/**
 * Shows the status as it changes until the signal aborts: a table that is redrawn on a terminal, elsewhere a line for each
 * change of a state; with `--json` a line for each change of anything.
 */
export async function watchStatus(client: DaemonClient, signal: AbortSignal, options: StatusOptions): Promise<void> {
  const filter = filterOf(options, true);
  const json = options.json ?? false;
  const parts = client.watchStatus({ filter, epoch: "", revision: 0n }, { signal });
  const peers = new Map<string, Peer>();
  const live = process.stdout.isTTY === true && !json;
  using screen = live ? new LiveTable(peers) : undefined;
  for await (const part of parts) {
    if (part.reset) peers.clear();
    if (json) print(JSON.stringify(changeDocument(part)));
    else if (!live) for (const line of describeChanges(part.peers, part.reset, peers)) print(line);
    for (const key of part.removed) peers.delete(keyText(key));
    for (const peer of part.peers) peers.set(keyText(peer.key), peer);
    screen?.note(part.head);
  }
  if (!signal.aborted) throw new DaemonError("daemon-lost", "the daemon ended");
}

function changeDocument(part: {
  readonly revision: bigint;
  readonly reset: boolean;
  readonly head?: StatusHead | undefined;
  readonly peers: readonly Peer[];
  readonly removed: readonly Uint8Array[];
}): object {
  return {
    revision: Number(part.revision),
    reset: part.reset,
    ...(part.head ? { state: agentStateName(part.head.state).replace(" ", "-") } : {}),
    peers: part.peers.map(peerDocument),
    removed: part.removed.map(keyText),
  };
}

function describeChanges(changed: readonly Peer[], reset: boolean, before: ReadonlyMap<string, Peer>): string[] {
  const lines: string[] = [];
  for (const peer of changed) {
    const old = before.get(keyText(peer.key));
    if (old?.state === peer.state && !reset) continue;
    const time = new Date(peer.since > 0 ? peer.since : Date.now()).toISOString().slice(11, 23);
    const from = old ? `${stateName(old.state)} -> ` : "";
    lines.push(
      `${time} ${clean(peer.fqdn)} ${from}${stateName(peer.state)}${peer.reason ? `: ${clean(peer.reason)}` : ""}`,
    );
  }
  return lines;
}

/** The table on a terminal's alternate screen; disposing gives the old screen back. */
class LiveTable implements Disposable {
  readonly #peers: ReadonlyMap<string, Peer>;
  readonly #ticks: NodeJS.Timeout;
  #redraw: NodeJS.Timeout | undefined;
  #head: StatusHead | undefined;

  constructor(peers: ReadonlyMap<string, Peer>) {
    this.#peers = peers;
    process.stdout.write("\x1b[?1049h\x1b[?25l");
    this.#ticks = setInterval(() => this.#draw(), TICK_MS);
  }

  note(head: StatusHead | undefined): void {
    this.#head = head ?? this.#head;
    this.#redraw ??= setTimeout(() => this.#draw(), REDRAW_MS);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#ticks);
    clearTimeout(this.#redraw);
    process.stdout.write("\x1b[?25h\x1b[?1049l");
  }

  #draw(): void {
    clearTimeout(this.#redraw);
    this.#redraw = undefined;
    if (!this.#head) return;
    const { columns = 100, rows = 30 } = process.stdout;
    const paint = paintFor(process.stdout);
    const now = Date.now();
    const summary = renderSummary({ head: this.#head, peers: [], now }, paint).split("\n");
    const room = Math.max(1, rows - summary.length - 3);
    // Who is awake is what one watches for.
    const sorted = sortByAddress([...this.#peers.values()]).toSorted((a, b) => b.state - a.state);
    const table = renderTable(sorted.slice(0, room), now, paint, columns).split("\n");
    const hidden = sorted.length - room;
    const lines = [...summary, "", ...table, ...(hidden > 0 ? [`… and ${hidden} more`] : [])];
    process.stdout.write(`\x1b[H${lines.map((line) => `${line}\x1b[K`).join("\r\n")}\x1b[J`);
  }
}
