import type { IpAddress } from "#base/ip.ts";
import type { LinkOptions } from "./link.ts";
import type { NatOptions } from "./nat.ts";
import type { PacketRuleSpec } from "./packet-rule.ts";
import type { HostPlan, ResolvedTopology } from "./topology.ts";

/** Where a capture listens: a site's outer edge (after the NAT) or a host's interface. */
export type CapturePoint = { readonly kind: "site" | "host"; readonly index: number };

/**
 * What the lab asks of its router process: one JSON object a line on a socket, answered in order by a `RouterReply` with
 * the same `id`. Sites and hosts are indexes into the topology of `open`. The end of the stream is the end of the lab.
 */
export type RouterCommand =
  /** First: makes a TUN in the namespace of each host. */
  | {
      readonly kind: "open";
      readonly topology: ResolvedTopology;
      /** Names, in the order of the hosts. */
      readonly namespaces: readonly string[];
      /** Namespaces to remove should the lab's owner die. */
      readonly namespacePrefix: string;
    }
  /** The TUNs are up: packets flow from now on. */
  | { readonly kind: "start" }
  | { readonly kind: "cut"; readonly site: number; readonly isCut: boolean }
  | {
      readonly kind: "link";
      readonly site: number;
      readonly direction: "up" | "down" | "both";
      readonly options: LinkOptions;
    }
  | { readonly kind: "udp"; readonly site: number; readonly udp: "pass" | "blocked" }
  | { readonly kind: "nat"; readonly site: number; readonly nat: NatOptions }
  | { readonly kind: "rebind"; readonly site: number }
  | { readonly kind: "public-address"; readonly site: number; readonly address: IpAddress }
  | { readonly kind: "place-host"; readonly host: number; readonly plan: HostPlan }
  | { readonly kind: "rule"; readonly rule: PacketRuleSpec }
  | { readonly kind: "capture-start"; readonly point: CapturePoint; readonly path: string }
  | { readonly kind: "capture-stop"; readonly point: CapturePoint }
  | { readonly kind: "counters" };

export interface RouterRequest {
  readonly id: number;
  readonly command: RouterCommand;
}

/** `value` is `NetworkCounters` for `counters`, else absent. */
export type RouterReply =
  | { readonly id: number; readonly ok: true; readonly value?: unknown }
  | { readonly id: number; readonly ok: false; readonly message: string };

/** The router's end of the control socket, as a file descriptor. */
export const CONTROL_FD = 3;
