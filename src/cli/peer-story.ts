import type { Peer } from "#gen/daemon_pb.ts";
import { formatLatency, renderPeer } from "./status-view.ts";
import { clean, type Paint } from "./terminal.ts";

/** The peer's state, then its timeline with the time of day and, within an attempt, the time since the wake. */
export function renderStory(peer: Peer, now: number, paint: Paint): string {
  const lines = [renderPeer(peer, now, paint)];
  if (peer.timeline.length === 0) {
    lines.push(`   Nothing has happened with ${clean(peer.fqdn)} since this agent started.`);
    return lines.join("\n");
  }
  lines.push(` ${paint("bold", "What happened")}`);
  const width = peer.timeline.reduce((most, { event }) => Math.max(most, event.length), 0);
  let day = "";
  for (const { at, event, detail, sinceWakeMs } of peer.timeline) {
    const time = new Date(at);
    const text = localDay(time);
    if (text !== day) lines.push(`   ${paint("dim", text)}`);
    day = text;
    const offset = sinceWakeMs === undefined ? "" : `+${formatLatency(sinceWakeMs)}`;
    lines.push(
      `   ${localTime(time)} ${offset.padStart(10)}  ${clean(event).padEnd(width)}  ${clean(detail)}`.trimEnd(),
    );
  }
  return lines.join("\n");
}

function localDay(time: Date): string {
  return `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`;
}

function localTime(time: Date): string {
  return `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}.${String(time.getMilliseconds()).padStart(3, "0")}`;
}

function two(value: number): string {
  return String(value).padStart(2, "0");
}
