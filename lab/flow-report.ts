import type { Millis } from "#base/time.ts";
import type { FlowRecord } from "./traffic.ts";

/** Datagrams lost one after the other. */
export interface LostRun {
  readonly count: number;
  /** When the first and the last of them were sent. */
  readonly from: Millis;
  readonly to: Millis;
}

/** What a flow went through. */
export interface FlowReport {
  readonly sent: number;
  readonly lost: number;
  readonly duplicates: number;
  /** How long before the end of the line a datagram was overtaken: 0 when all came in order. */
  readonly overtakenMs: Millis;
  readonly runs: readonly LostRun[];
}

/** Reads a flow; with `since` and `until` only the datagrams sent then. */
export function reportFlow(flow: FlowRecord, since = 0, until = Number.POSITIVE_INFINITY): FlowReport {
  const runs: LostRun[] = [];
  let sent = 0;
  let duplicates = 0;
  let overtakenMs = 0;
  let open = false;
  let newest = 0;
  const inWindow = [...flow.sentAt.keys()].filter((n) => flow.sentAt[n]! >= since && flow.sentAt[n]! < until);
  for (const number of inWindow) {
    const at = flow.sentAt[number]!;
    sent++;
    duplicates += Math.max(0, flow.copies[number]! - 1);
    if (flow.copies[number]! > 0) {
      open = false;
      continue;
    }
    const last = runs.at(-1);
    if (open && last) runs[runs.length - 1] = { count: last.count + 1, from: last.from, to: at };
    else runs.push({ count: 1, from: at, to: at });
    open = true;
  }
  const byArrival = inWindow.filter((n) => flow.copies[n]! > 0).sort((a, b) => flow.echoedAt[a]! - flow.echoedAt[b]!);
  for (const number of byArrival) {
    newest = Math.max(newest, flow.sentAt[number]!);
    overtakenMs = Math.max(overtakenMs, newest - flow.sentAt[number]!);
  }
  return { sent, lost: runs.reduce((sum, { count }) => sum + count, 0), duplicates, overtakenMs, runs };
}

/** From `event` until the first datagram that got through again; 0 when none was lost after it. */
export function outageAfter(report: FlowReport, event: Millis): Millis {
  return Math.max(0, ...report.runs.map(({ to }) => to - event));
}
