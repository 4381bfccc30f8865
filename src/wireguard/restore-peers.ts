import type { HandshakeManager } from "./handshake-manager.ts";
import type { PeerRow, PeerTable } from "./peer-table.ts";
import type { Plane } from "./plane.ts";

/**
 * Gives a data worker that took over every peer of the one that died, and returns the awake ones that had a session, were
 * making one or have lost packets that waited: they need a handshake now. The sessions' indices are free again.
 */
export function restorePeers(plane: Plane, peers: PeerTable, handshakes: HandshakeManager): PeerRow[] {
  const lost = handshakes.noteSessionsLost();
  const orphans: PeerRow[] = [];
  for (const row of peers.rows()) {
    const { slot, mode } = row;
    const { keepalive } = row.use;
    // What waited for the peer is still in its row of counters: the new worker does not run yet.
    const waited = plane.peerCounters(slot).stagedBytes > 0;
    plane.restorePeer(slot, { asleep: mode === "asleep", keepalive });
    for (const prefix of peers.prefixesOf(row)) plane.addPrefix(slot, prefix);
    if (mode === "asleep") continue;
    const path = row.use.adopted ?? row.use.path;
    if (path.kind !== "none") plane.setPath(slot, path);
    if (lost.has(slot) || waited || handshakes.isInFlight(slot)) orphans.push(row);
  }
  return orphans;
}
