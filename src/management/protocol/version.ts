/** What an agent's version and capabilities allow. Source: protocol/management.md, sections 7.2 and 7.3. */
import { PeerCapability, type PeerSystemMeta } from "#gen/management_pb.ts";

/** Below: the top-level copy of the remote peers is needed. */
export const VERSION_WITHOUT_LEGACY_PEERS = "0.29.3";
/** From here on a remote peer can be connected lazily. */
export const VERSION_WITH_LAZY_PEERS = "0.45.0";
/** From here on the receiver understands port ranges. */
export const VERSION_WITH_PORT_RANGES = "0.48.0";
/** When all peers of the account have it, the DNS forwarder listens on the new port. */
export const VERSION_WITH_NEW_FORWARDER_PORT = "0.59.0";

export const DNS_FORWARDER_PORT = 22054;
export const DNS_FORWARDER_PORT_OLD = 5353;

/** Whether `version` is at least `minimum` ("x.y.z"). Builds named `development…`, `ci-…`, `dev-…` count as newest. */
export function isVersionAtLeast(version: string, minimum: string): boolean {
  if (/^(development|ci-|dev-)/.test(version)) return true;
  const match = /^[va]?(\d+)\.(\d+)(?:\.(\d+))?/.exec(version);
  if (!match) return false;
  const want = minimum.split(".").map(Number);
  for (let i = 0; i < 3; i++) {
    const difference = Number(match[i + 1] ?? 0) - want[i]!;
    if (difference !== 0) return difference > 0;
  }
  return true;
}

/** Whether a peer of this version may sleep; others get a permanent connection (section 7.1). */
export function supportsLazyConnections(agentVersion: string): boolean {
  return isVersionAtLeast(agentVersion, VERSION_WITH_LAZY_PEERS);
}

export function hasCapability(meta: PeerSystemMeta | undefined, capability: PeerCapability): boolean {
  return meta?.capabilities.includes(capability) ?? false;
}

/** Whether the peer can use an IPv6 overlay address at all. */
export function supportsIpv6Overlay(meta: PeerSystemMeta | undefined): boolean {
  return hasCapability(meta, PeerCapability.PeerCapabilityIPv6Overlay) && meta?.flags?.disableIPv6 !== true;
}
