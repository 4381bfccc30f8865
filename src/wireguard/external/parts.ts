import type { Emitter } from "#base/emitter.ts";
import type { Endpoint, Prefix } from "#base/ip.ts";
import type { PresharedKey, PrivateKey, PublicKey } from "#base/keys.ts";
import type { FilterRules, SourceRule } from "../filter.ts";

/*
 * What an external device is made of. Each part is replaceable and knows nothing of the others:
 *
 *   DeviceControl   configures WireGuard and reads its counters      UAPI socket | `wg`
 *   Backend         brings the interface about and keeps it alive    wireguard-go process | kernel link
 *   LocalEnds       a local UDP endpoint for each peer: what the     a socket each | one socket, 127/8 addresses | one
 *                   device sends while the peer sleeps or is relayed   socket, mac1
 *   SharedPort      sends from and listens on the device's own UDP   raw sockets with a BPF filter
 *                   port, which is not ours
 *   PacketRules     which packets from peers may come in             nftables
 *   ExternalDevice  all of it behind WireGuardDevice
 */

/** What changes of the interface; what is absent stays. */
export interface InterfaceChange {
  readonly privateKey?: PrivateKey;
  /** 0 takes a free one. */
  readonly listenPort?: number;
  /** All peers that are not in the same call go. */
  readonly replacePeers?: boolean;
}

/** What changes of one peer; what is absent stays. */
export type PeerChange =
  | { readonly key: PublicKey; readonly remove: true }
  | {
      readonly key: PublicKey;
      readonly remove?: false;
      /** Of a peer that is not there any more nothing is made anew. */
      readonly updateOnly?: boolean;
      readonly endpoint?: Endpoint;
      /** Replaces all earlier ones. */
      readonly allowedIps?: readonly Prefix[];
      /** Null removes it. */
      readonly presharedKey?: PresharedKey | null;
      /** Seconds, 0 = off. From 0 to more sends a keepalive at once, for which a device without session makes a handshake. */
      readonly keepalive?: number;
    };

/** What the device knows of a peer. */
export interface PeerReading {
  readonly endpoint: Endpoint | undefined;
  /** UDP payload bytes including handshakes. */
  readonly rxBytes: number;
  readonly txBytes: number;
  /** Wall clock ms, 0 = never. */
  readonly lastHandshake: number;
}

export interface DeviceReading {
  readonly listenPort: number;
  readonly peers: ReadonlyMap<PublicKey, PeerReading>;
}

/**
 * Configures a WireGuard device that somebody else implements. Changes are applied in the order of the calls, and a call as a
 * whole before the next begins. Throws ExternalDeviceError.
 */
export interface DeviceControl extends AsyncDisposable {
  /** Any number of peers in one go; peers that are not named are not touched, staged packets are kept. */
  change(change: InterfaceChange, peers: readonly PeerChange[]): Promise<void>;
  /** Everything in one pass. */
  read(): Promise<DeviceReading>;
}

/** An interface that exists, down and without address, and whoever implements it. */
export interface Backend extends AsyncDisposable {
  readonly kind: "kernel" | "wireguard-go";
  readonly interfaceName: string;
  /** Of the device as it is now: another one after a restart. */
  readonly control: DeviceControl;
  readonly events: Emitter<BackendEvents>;
  /** Removes the interface and ends the program; idempotent. */
  close(): Promise<void>;
}

export interface BackendEvents {
  /**
   * The program died, and another runs with a new, empty interface of the same name: configuration, addresses and routes are
   * gone.
   */
  restarted: { readonly reason: string };
  /** The interface is gone and does not come back. */
  gone: { readonly reason: string };
}

/**
 * A local UDP endpoint for each peer that has one. The device gets it as the peer's endpoint and so sends to us what is meant
 * for the peer: an initiation that says that somebody wants a sleeping peer, or everything while the peer is relayed.
 */
export interface LocalEnds extends AsyncDisposable {
  /** How it is done, for the device's list of features. */
  readonly name: "loopback-sockets" | "loopback-addresses" | "loopback-mac1";
  readonly events: Emitter<LocalEndsEvents>;
  /**
   * The endpoint for a peer, the same until `close` or `moved`. Costs no socket where addresses tell peers apart. Called again
   * for an open peer each time it becomes the device's endpoint anew, such as when a direct peer goes to sleep: the peer may
   * have a session then, and data under it carries nothing that names the peer. Throws NetError when there is no socket left.
   */
  open(key: PublicKey): Endpoint;
  close(key: PublicKey): void;
  /** Gives the device a datagram as coming from the peer's endpoint; false when it was dropped. */
  deliver(key: PublicKey, datagram: Uint8Array): boolean;
  /** The device listens on another port from now on. */
  setDevicePort(port: number): void;
  /** What was dropped, by reason (`drop-...`). */
  counters?(): ReadonlyMap<string, number>;
}

export interface LocalEndsEvents {
  /** The device sent this to the peer's endpoint. Only from the device's own port. The bytes are the listener's. */
  datagram: { readonly key: PublicKey; readonly datagram: Uint8Array };
  /**
   * An open peer's endpoint is another one from now on, and the device is to be told. What it still sends to the earlier one
   * arrives as well, for some seconds. Comes before the `datagram` that was its cause.
   */
  moved: { readonly key: PublicKey; readonly endpoint: Endpoint };
  /** Nobody reads for the ends any more, nor for a shared port that has the same reader: the device must not go on. */
  failed: { readonly reason: string };
}

/** The device's own UDP port, beside the device: STUN and copies of handshakes go out and come in. */
export interface SharedPort extends AsyncDisposable {
  readonly events: Emitter<SharedPortEvents>;
  /** Best effort; the error's name, such as `ENETUNREACH`, or undefined when the kernel took it. */
  send(datagram: Uint8Array, to: Endpoint, from?: Endpoint): string | undefined;
  setPort(port: number): void;
  /** What was dropped, by reason (`drop-...`). */
  counters?(): ReadonlyMap<string, number>;
}

export interface SharedPortEvents {
  /** A STUN message for the device's port. `to` is the local address it arrived at. The bytes are the listener's. */
  stun: { readonly datagram: Uint8Array; readonly from: Endpoint; readonly to: Endpoint };
  /** A handshake message (types 1 to 3) from the network for the device's port, which the device gets as well. */
  handshake: { readonly datagram: Uint8Array; readonly from: Endpoint; readonly to: Endpoint };
}

/** The packet filter behind an interface whose packets we do not see; it means what `FilterRules` says. */
export interface PacketRules extends AsyncDisposable {
  readonly events: Emitter<PacketRulesEvents>;
  /**
   * WireGuardDevice.setFilter: in force a few milliseconds later, as a whole. Throws FilterError, and ExternalDeviceError
   * `program-missing`, `kernel-unsupported` or `not-permitted` where the machine cannot filter; it stays as it was then.
   * Undefined is always taken.
   */
  set(rules: FilterRules | undefined): void;
  /** WireGuardDevice.setFilterSource; O(rules of the source). Throws as `set`. */
  setSource(source: Prefix, rules: readonly SourceRule[]): void;
  /**
   * A peer may send from the prefixes `now`, and from `before` no more. Replies have to be told from other packets only where some
   * peer may not do everything, and that costs throughput. O(prefixes).
   */
  movePrefixes(before: readonly Prefix[], now: readonly Prefix[]): void;
  /** Resolves when all that was asked for is in force, or has failed. */
  settled(): Promise<void>;
  /** What was dropped (`drop-filter`), maybe as it was a moment ago, and whether replies are told apart (`filter-tracked`, 0 or 1). */
  counters?(): ReadonlyMap<string, number>;
  /** Lets everything pass again and leaves nothing behind; idempotent. */
  close(): Promise<void>;
}

export interface PacketRulesEvents {
  /** Rules could not be put in force, and it is not known which are: the interface must not go on. */
  failed: { readonly reason: string };
}
