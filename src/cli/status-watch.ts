import { setTimeout as sleep } from "node:timers/promises";
import type { DaemonClient } from "#agent/daemon/daemon-client.ts";
import { DaemonError } from "#agent/daemon/daemon-error.ts";
import { Backoff } from "#base/backoff.ts";
import type { Peer, PeerState, StatusHead, StatusPart } from "#gen/daemon_pb.ts";
import type { StatusOptions } from "./status.ts";
import { peerDocument } from "./status-json.ts";
import { filterOf, sortByAddress } from "./status-show.ts";
import { agentStateName, keyText, renderSummary, renderTable, stateName } from "./status-view.ts";
import { clean, paintFor, print, say } from "./terminal.ts";

/** Redraws of the table at most this often. */
const REDRAW_MS = 100;
/** The ages in the table move even when nothing happens. */
const TICK_MS = 1000;
/** Between attempts to find the daemon again. */
const RETRY = { start: 100, factor: 2, ceiling: 2000, jitter: 0.2 } as const;

/** Up to where the status is known; nothing is known of an epoch without a name. */
interface Seen {
  readonly epoch: string;
  readonly revision: bigint;
}

const NOTHING_SEEN: Seen = { epoch: "", revision: 0n };

/** Somewhere to show a status that changes. */
interface Watcher extends Disposable {
  note(part: StatusPart): void;
  /** The daemon went away; it is waited for. */
  noteLoss(why: string): void;
}

/**
 * Shows the status as it changes until the signal aborts: a table that is redrawn on a terminal, elsewhere a line for each
 * change of a state; with `--json` a line for each change of anything. A daemon that goes away is waited for, and only what
 * changed meanwhile is asked of it; one that was started anew tells everything again.
 */
export async function watchStatus(client: DaemonClient, signal: AbortSignal, options: StatusOptions): Promise<void> {
  const filter = filterOf(options, true);
  using watcher = createWatcher(options);
  const backoff = new Backoff(RETRY);
  let seen = NOTHING_SEEN;
  for (;;) {
    try {
      for await (const part of client.watchStatus({ filter, ...seen }, { signal })) {
        backoff.reset();
        watcher.note(part);
        // What came in a part before the last one may be old news again, never unknown.
        if (!part.more) seen = { epoch: part.epoch, revision: part.revision };
        else if (part.reset) seen = NOTHING_SEEN;
      }
    } catch (error) {
      if (signal.aborted || !(error instanceof DaemonError && error.code === "daemon-lost")) throw error;
      watcher.noteLoss(error.message);
    }
    await sleep(backoff.next(), undefined, { signal });
  }
}

function createWatcher({ json = false }: StatusOptions): Watcher {
  if (json) return new ChangeLines((part) => [JSON.stringify(changeDocument(part))]);
  if (process.stdout.isTTY === true) return new LiveTable();
  const states = new Map<string, PeerState>();
  return new ChangeLines((part) => describeChanges(part, states));
}

/** Lines on stdout, and one on stderr when the daemon goes away. */
class ChangeLines implements Watcher {
  readonly #describe: (part: StatusPart) => readonly string[];
  #lost = false;

  constructor(describe: (part: StatusPart) => readonly string[]) {
    this.#describe = describe;
  }

  note(part: StatusPart): void {
    this.#lost = false;
    for (const line of this.#describe(part)) print(line);
  }

  noteLoss(why: string): void {
    if (!this.#lost) say(`perch: ${clean(why)}; waiting for it to come back`);
    this.#lost = true;
  }

  [Symbol.dispose](): void {}
}

function changeDocument(part: StatusPart): object {
  return {
    epoch: part.epoch,
    revision: Number(part.revision),
    reset: part.reset,
    ...(part.head ? { state: agentStateName(part.head.state).replace(" ", "-") } : {}),
    peers: part.peers.map(peerDocument),
    removed: part.removed.map(keyText),
  };
}

/** A line for each peer whose state differs from the one in `states`, which is brought up to date. */
function describeChanges({ peers, removed }: StatusPart, states: Map<string, PeerState>): string[] {
  const lines: string[] = [];
  for (const key of removed) states.delete(keyText(key));
  for (const peer of peers) {
    const key = keyText(peer.key);
    const before = states.get(key);
    if (before === peer.state) continue;
    states.set(key, peer.state);
    const time = new Date(peer.since > 0 ? peer.since : Date.now()).toISOString().slice(11, 23);
    const from = before === undefined ? "" : `${stateName(before)} -> `;
    lines.push(
      `${time} ${clean(peer.fqdn)} ${from}${stateName(peer.state)}${peer.reason ? `: ${clean(peer.reason)}` : ""}`,
    );
  }
  return lines;
}

/** The table on a terminal's alternate screen; disposing gives the old screen back. */
class LiveTable implements Watcher {
  readonly #peers = new Map<string, Peer>();
  readonly #ticks: NodeJS.Timeout;
  #redraw: NodeJS.Timeout | undefined;
  #head: StatusHead | undefined;
  /** Set while the daemon is away: what is shown is from before. */
  #loss: string | undefined;

  constructor() {
    process.stdout.write("\x1b[?1049h\x1b[?25l");
    this.#ticks = setInterval(() => this.#draw(), TICK_MS);
  }

  note(part: StatusPart): void {
    if (part.reset) this.#peers.clear();
    for (const key of part.removed) this.#peers.delete(keyText(key));
    for (const peer of part.peers) this.#peers.set(keyText(peer.key), peer);
    this.#head = part.head ?? this.#head;
    this.#loss = undefined;
    this.#redraw ??= setTimeout(() => this.#draw(), REDRAW_MS);
  }

  noteLoss(why: string): void {
    this.#loss = why;
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
    if (this.#loss !== undefined) summary.push(paint("red", `${clean(this.#loss)}; waiting for it to come back`));
    const room = Math.max(1, rows - summary.length - 3);
    // Who is awake is what one watches for.
    const sorted = sortByAddress([...this.#peers.values()]).toSorted((a, b) => b.state - a.state);
    const table = renderTable(sorted.slice(0, room), now, paint, columns).split("\n");
    const hidden = sorted.length - room;
    const lines = [...summary, "", ...table, ...(hidden > 0 ? [`… and ${hidden} more`] : [])];
    process.stdout.write(`\x1b[H${lines.map((line) => `${line}\x1b[K`).join("\r\n")}\x1b[J`);
  }
}
