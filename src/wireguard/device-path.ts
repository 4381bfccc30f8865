import { sameEndpoint } from "#base/ip.ts";
import type { DevicePath, PacketSource } from "./device.ts";
import type { PlaneSource } from "./worker/plane-events.ts";

/** Where a packet came from, as the device's events name it. */
export function packetSource(source: PlaneSource): PacketSource {
  return source.kind === "udp" ? source : { kind: "relay" };
}

/** Packets take the same way. */
export function samePath(a: DevicePath, b: DevicePath): boolean {
  return a.kind === b.kind && (a.kind !== "udp" || sameEndpoint(a.endpoint, (b as typeof a).endpoint));
}
