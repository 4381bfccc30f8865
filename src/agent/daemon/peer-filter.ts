import { type IpAddress, parseIp } from "#base/ip.ts";
import { PublicKey } from "#base/keys.ts";
import type { PeerState, PeerStatus } from "../control.ts";
import { DaemonError } from "./daemon-error.ts";

/** Which peers to show: those that satisfy each list that is not empty. */
export interface PeerFilter {
  readonly states: ReadonlySet<PeerState>;
  /** Lower-case beginnings of the full name. */
  readonly names: readonly string[];
  readonly addresses: ReadonlySet<IpAddress>;
}

export function matchesFilter(peer: PeerStatus, filter: PeerFilter): boolean {
  if (filter.states.size > 0 && !filter.states.has(peer.state)) return false;
  if (filter.names.length > 0) {
    const name = peer.fqdn.toLowerCase();
    if (!filter.names.some((beginning) => name.startsWith(beginning))) return false;
  }
  return filter.addresses.size === 0 || peer.addresses.some((address) => filter.addresses.has(address));
}

/** Names of candidates shown when a name fits several peers. */
const CANDIDATES_SHOWN = 5;

/**
 * The one peer that a person means: key, overlay address, full name, or the first label(s) of the name. Throws DaemonError
 * `peer-unknown` or `peer-ambiguous`.
 */
export function findPeer(peers: readonly PeerStatus[], wanted: string): PeerStatus {
  const text = wanted.trim();
  if (text === "")
    throw new DaemonError("value-invalid", "PEER must be a name, an overlay address or a key, got nothing");
  const byIdentity = peers.find(keyTest(text)) ?? peers.find(addressTest(text));
  if (byIdentity) return byIdentity;
  const name = text.toLowerCase().replace(/\.$/, "");
  const exact = peers.filter((peer) => peer.fqdn.toLowerCase() === name);
  const found = exact.length > 0 ? exact : peers.filter((peer) => peer.fqdn.toLowerCase().startsWith(`${name}.`));
  if (found.length === 1) return found[0]!;
  const shown = JSON.stringify(text.slice(0, 100));
  if (found.length === 0) {
    throw new DaemonError("peer-unknown", `no peer ${shown} in this network (${peers.length} peers are known)`);
  }
  const names = found.slice(0, CANDIDATES_SHOWN).map((peer) => `${peer.fqdn} (${peer.addresses[0] ?? "no address"})`);
  const rest = found.length - names.length;
  throw new DaemonError(
    "peer-ambiguous",
    `${shown} may be ${names.join(", ")}${rest > 0 ? ` and ${rest} more` : ""}; name one by its address`,
  );
}

function keyTest(text: string): (peer: PeerStatus) => boolean {
  if (!/^[A-Za-z0-9+/]{43}=$/.test(text)) return () => false;
  const key = PublicKey.parse(text);
  return (peer) => peer.key === key;
}

function addressTest(text: string): (peer: PeerStatus) => boolean {
  let address: IpAddress;
  try {
    address = parseIp(text);
  } catch {
    return () => false;
  }
  return (peer) => peer.addresses.includes(address);
}
