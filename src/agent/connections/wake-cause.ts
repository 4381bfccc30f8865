import type { PacketSummary, WakeCause } from "#wireguard/device.ts";

const PROTOCOLS: Readonly<Record<number, string>> = { 1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6" };
const WITH_PORTS: ReadonlySet<number> = new Set([6, 17, 33, 132, 136]);

/** What woke a peer, for its timeline: `tcp 100.64.0.1:40000 -> 100.64.0.2:22`. */
export function describeCause(cause: WakeCause): string {
  switch (cause.kind) {
    case "packet":
      return describePacket(cause.packet);
    case "activity":
      return "traffic from here";
    case "handshake":
      return cause.source.kind === "relay" ? "its handshake over the relay" : "its handshake";
    case "data":
      return cause.source.kind === "relay" ? "its packet over the relay" : "its packet";
  }
}

function describePacket({ protocol, source, destination, sourcePort, destinationPort }: PacketSummary): string {
  const name = PROTOCOLS[protocol] ?? `protocol ${protocol}`;
  const end = (address: string, port: number): string =>
    port === 0 || !WITH_PORTS.has(protocol) ? address : `${address.includes(":") ? `[${address}]` : address}:${port}`;
  return `${name} ${end(source, sourcePort)} -> ${end(destination, destinationPort)}`;
}

/** Kinds of causes, for counting them. */
export type WakeKind = "tcp" | "udp" | "icmp" | "other-traffic" | "dns" | "offer" | "handshake" | "hand" | "other";

/** What kind of cause the words of a timeline's `wake` entry tell. */
export function wakeKind(detail: string): WakeKind {
  const [first = ""] = detail.split(" ", 1);
  if (first === "tcp" || first === "udp") return first;
  if (first === "icmp" || first === "icmp6") return "icmp";
  if (first === "dns") return "dns";
  if (first === "protocol" || first === "traffic") return "other-traffic";
  if (detail.startsWith("its offer")) return "offer";
  if (detail.startsWith("its handshake") || detail.startsWith("its packet")) return "handshake";
  if (detail.startsWith("perch peers")) return "hand";
  return "other";
}
