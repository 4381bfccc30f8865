import { styleText } from "node:util";
import type { Peer } from "#gen/daemon_pb.ts";
import { pathName, stateName } from "../agent-view.ts";

const COLORS = { Idle: "dim", Connecting: "yellow", Connected: "green" } as const;
const COLUMNS = [10, 16, 12, 26] as const;

/**
 * What the demo shows: the story as lines that stay, and below them a live table of one agent's peers. On a terminal the
 * table is redrawn in place; elsewhere every change of a row is a line of its own.
 */
export class Screen {
  readonly #live = process.stdout.isTTY === true && process.env.TERM !== "dumb";
  readonly #startedAt = performance.now();
  #drawn = 0;
  #title = "";
  #rows: readonly Peer[] = [];
  readonly #lastRows = new Map<string, string>();

  /** A line of the story, with the time since the start. */
  say(text: string): void {
    this.#erase();
    const seconds = ((performance.now() - this.#startedAt) / 1000).toFixed(1).padStart(5);
    process.stdout.write(`${paint("dim", `${seconds} s`)}  ${text}\n`);
    this.#draw();
  }

  heading(text: string): void {
    this.#erase();
    process.stdout.write(`\n${paint("bold", text)}\n`);
    this.#draw();
  }

  table(title: string, rows: readonly Peer[]): void {
    this.#erase();
    this.#title = title;
    this.#rows = rows;
    if (this.#live) this.#draw();
    else this.#printChanges();
  }

  /** Leaves the table where it is; what follows is written below it. */
  end(): void {
    this.#drawn = 0;
    this.#rows = [];
  }

  #draw(): void {
    if (!this.#live || this.#rows.length === 0) return;
    const lines = ["", paint("bold", this.#title), paint("dim", row("PEER", "ADDRESS", "STATE", "PATH", "WHY"))];
    for (const peer of this.#rows) lines.push(peerRow(peer));
    process.stdout.write(`${lines.join("\n")}\n`);
    this.#drawn = lines.length;
  }

  #erase(): void {
    if (this.#drawn > 0) process.stdout.write(`\x1b[${this.#drawn}A\x1b[0J`);
    this.#drawn = 0;
  }

  #printChanges(): void {
    for (const peer of this.#rows) {
      const line = peerRow(peer);
      const key = `${this.#title} ${peer.fqdn}`;
      if (this.#lastRows.get(key) === line) continue;
      this.#lastRows.set(key, line);
      process.stdout.write(`         ${this.#title}: ${line}\n`);
    }
  }
}

function peerRow(peer: Peer): string {
  const state = stateName(peer);
  const color = COLORS[state as keyof typeof COLORS] ?? "reset";
  const name = peer.fqdn.split(".")[0] ?? "";
  return row(name, peer.addresses[0] ?? "", paint(color, state.padEnd(COLUMNS[2])), pathName(peer), peer.reason);
}

function row(...cells: readonly [string, string, string, string, string]): string {
  return `  ${cells.map((cell, index) => cell.padEnd(COLUMNS[index] ?? 0)).join(" ")}`.trimEnd();
}

function paint(style: Parameters<typeof styleText>[0], text: string): string {
  return styleText(style, text, { stream: process.stdout });
}
