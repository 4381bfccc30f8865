import { type Peer, PeerState } from "../../src/gen/daemon_pb.ts";

export type StateName = "Idle" | "Connecting" | "Connected";

export const STATES: readonly StateName[] = ["Connected", "Connecting", "Idle"];

const NAMES: Readonly<Record<number, StateName>> = {
  [PeerState.IDLE]: "Idle",
  [PeerState.CONNECTING]: "Connecting",
  [PeerState.CONNECTED]: "Connected",
};

/** A peer as the table shows, sorts and finds it; made once for each change of the peer. */
export interface PeerRow {
  /** Base64. */
  readonly key: string;
  readonly peer: Peer;
  /** First label of the name. */
  readonly name: string;
  readonly domain: string;
  readonly state: StateName;
  readonly path: string;
  /** What a search looks in, lower case. */
  readonly text: string;
  readonly order: { readonly [column in Column]: number | string };
}

export type Column = "name" | "state" | "address" | "path" | "latency" | "traffic" | "since";

export interface Sorting {
  readonly column: Column;
  readonly descending: boolean;
}

export function makeRow(peer: Peer): PeerRow {
  const key = btoa(String.fromCharCode(...peer.key));
  const dot = peer.fqdn.indexOf(".");
  const name = dot > 0 ? peer.fqdn.slice(0, dot) : peer.fqdn;
  const state = NAMES[peer.state] ?? "Idle";
  const path = pathWords(peer);
  return {
    key,
    peer,
    name,
    domain: dot > 0 ? peer.fqdn.slice(dot) : "",
    state,
    path,
    text: `${peer.fqdn} ${peer.addresses.join(" ")} ${peer.routes.join(" ")} ${key}`.toLowerCase(),
    order: {
      name: inNaturalOrder(peer.fqdn),
      state: STATES.indexOf(state),
      address: inNaturalOrder(peer.addresses[0] ?? ""),
      path: path || "~",
      latency: peer.latencyMs ?? Number.POSITIVE_INFINITY,
      traffic: -(peer.rxBytes + peer.txBytes),
      since: -peer.since,
    },
  };
}

/** Sorts in place; equal rows by name. */
export function sortRows(rows: PeerRow[], { column, descending }: Sorting): PeerRow[] {
  const sign = descending ? -1 : 1;
  return rows.sort((a, b) => sign * compare(a.order[column], b.order[column]) || compare(a.order.name, b.order.name));
}

/** The rows that a search and a choice of states leave. */
export function selectRows(
  rows: readonly PeerRow[],
  search: string,
  states: ReadonlySet<StateName>,
): readonly PeerRow[] {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0 && states.size === 0) return rows;
  return rows.filter(
    (row) => (states.size === 0 || states.has(row.state)) && words.every((word) => row.text.includes(word)),
  );
}

function compare(a: number | string, b: number | string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** Text whose plain order is the one people expect of numbers: peer-2 before peer-10. */
function inNaturalOrder(text: string): string {
  return text.toLowerCase().replace(/\d+/g, (digits) => digits.padStart(10, "0"));
}

function pathWords({ path }: Peer): string {
  switch (path?.path.case) {
    case "direct":
      return "Direct";
    case "relay":
      return "Relayed";
    default:
      return "";
  }
}
