/** What an agent's version and capabilities allow. Source: protocol/management.md, sections 7.2 and 7.3. */
import { PeerCapability, type PeerSystemMeta } from "#gen/management_pb.ts";

/** Below: the top-level copy of the remote peers is needed. */
export const VERSION_WITHOUT_LEGACY_PEERS = "0.29.3";
/** When all peers of the account have it, the DNS forwarder listens on the new port. */
export const VERSION_WITH_NEW_FORWARDER_PORT = "0.59.0";

export const DNS_FORWARDER_PORT = 22054;
export const DNS_FORWARDER_PORT_OLD = 5353;

export function hasCapability(meta: PeerSystemMeta | undefined, capability: PeerCapability): boolean {
  return meta?.capabilities.includes(capability) ?? false;
}

/** Whether the peer can use an IPv6 overlay address at all. */
export function supportsIpv6Overlay(meta: PeerSystemMeta | undefined): boolean {
  return hasCapability(meta, PeerCapability.PeerCapabilityIPv6Overlay) && meta?.flags?.disableIPv6 !== true;
}
