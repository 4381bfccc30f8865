import type { SessionLimits } from "./limits.ts";

/** Words of the control buffer that both threads see. */
export const ControlWord = { stop: 0 } as const;

/** What the data worker is started with. All descriptors are main's, which closes them after the worker ended. */
export interface WorkerStart {
  readonly tunFd: number;
  readonly virtioHeader: boolean;
  /** The kernel takes merged UDP packets on the TUN. */
  readonly udpSegmentation: boolean;
  readonly v4Fd: number;
  /** -1 without IPv6. */
  readonly v6Fd: number;
  readonly gso: boolean;
  readonly gro: boolean;
  /** Written by main when the worker sleeps and has something to do. */
  readonly eventFd: number;
  readonly mtu: number;
  /** UDP port of both sockets. */
  readonly port: number;
  readonly control: SharedArrayBuffer;
  readonly commands: SharedArrayBuffer;
  readonly events: SharedArrayBuffer;
  readonly datagrams: SharedArrayBuffer;
  readonly relay: SharedArrayBuffer;
  readonly stats: SharedArrayBuffer;
  /** `process.hrtime` in ms minus main's `performance.now()`: makes the worker's clock main's. */
  readonly clockOffset: number;
  readonly limits: SessionLimits;
  /** State of the mac1 MAC after its key block; undefined lets every handshake message through. */
  readonly mac1Key: Int32Array | undefined;
  /** Ring of a capture that was under way when the worker before this one died; later ones come as messages. */
  readonly capture: SharedArrayBuffer | undefined;
}

/**
 * What the worker posts besides the bare number that says "look into the rings". `interface-gone` and `fault` are its last
 * word; after a fault another worker can take over the same descriptors.
 */
export type WorkerMessage =
  | { readonly kind: "ready"; readonly features: readonly string[] }
  | { readonly kind: "interface-gone" }
  | { readonly kind: "fault"; readonly reason: string; readonly stack: string | undefined };
