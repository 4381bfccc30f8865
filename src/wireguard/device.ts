import type { Emitter } from "#base/emitter.ts";
import type { Endpoint, Prefix } from "#base/ip.ts";
import type { PresharedKey, PublicKey } from "#base/keys.ts";
import type { Millis } from "#base/time.ts";
import type { CaptureOptions, PacketCapture } from "./capture.ts";
import type { FilterRules, SourceRule } from "./filter.ts";

/**
 * One WireGuard device, whatever implements it (embedded worker, kernel, wireguard-go). What a network map is, which
 * peer is lazy and which path is best is decided above; the device holds peers, keeps packets and says what happened.
 *
 *   peer:  (absent) --setPeer asleep--> asleep --first packet--> [wake event] --setPeer awake--> awake
 *             ^                           ^                                                       |
 *             '------- removePeer --------+----------------------- setPeer asleep ---------------'
 *
 * An asleep peer is a row in a table: no socket, no timer, no packet. Packets towards it are staged (bounded in bytes)
 * and survive the change to awake. Sessions of a peer that went to sleep keep decrypting until they expire, so that a
 * packet that crossed with the sleep is delivered.
 */
export interface WireGuardDevice extends AsyncDisposable {
  readonly kind: "embedded" | "kernel" | "wireguard-go";
  readonly interfaceName: string;
  readonly publicKey: PublicKey;
  /** UDP port of both socket families. */
  readonly listenPort: number;
  readonly mtu: number;
  readonly events: Emitter<DeviceEvents>;
  /** What the probing at start found, for `status`: `vnet-hdr`, `udp-gso`, `udp-gro`, ... */
  readonly features: readonly string[];

  /** Adds the peer or changes it; O(change). Allowed IPs replace the earlier ones, a prefix moves from another peer. */
  setPeer(key: PublicKey, config: DevicePeerConfig): void;
  removePeer(key: PublicKey): void;
  /** The wake that was reported is not wanted now: what has waited for long is dropped, and the next packet reports again. */
  declineWake(key: PublicKey): void;
  /** The wake that was reported has to wait, and the next packet reports again; what is staged stays or is dropped, as said. */
  postponeWake(key: PublicKey, staged: "keep" | "drop"): void;

  /**
   * Chooses where an awake peer's packets go. Switching loses nothing. An asleep peer has no path.
   * `none` stages. The first path of a peer with staged packets starts a handshake at once.
   */
  setPath(key: PublicKey, path: DevicePath): void;

  /**
   * Sends a fresh handshake initiation now over the given paths (the same message over each), past WireGuard's 5 s
   * suppression; the caller owns the retry pace, the device still retries by the protocol's own timers. Responders accept
   * one per 20 ms. Returns false when the peer is unknown or asleep.
   */
  initiate(key: PublicKey, paths: readonly DevicePath[]): boolean;

  /**
   * Replaces the rules of the packet filter at once, without forgetting the flows that it knows: each is judged again with
   * its next packet. Undefined, the default, lets every packet pass. Throws FilterError and stays as it was.
   */
  setFilter(rules: FilterRules | undefined): void;

  /**
   * Changes the rules of one source in the set in force, whatever the others are; none removes them. `setFilter` goes first.
   * Throws FilterError.
   */
  setFilterSource(source: Prefix, rules: readonly SourceRule[]): void;

  /**
   * Copies inner packets into a pcapng file that comes in pieces, until its bounds, `stop`, or whoever reads it leaves. One at a
   * time: a second ends the first (`replaced`). Costs nothing while there is none. Throws DeviceError `peer-unknown`,
   * `closed`, RangeError. Absent where the device does not show packets.
   */
  startCapture?(options?: CaptureOptions): PacketCapture;

  /** A datagram that a relay delivered from this peer. Unknown peers and full queues: counted, dropped. */
  injectRelayed(key: PublicKey, datagram: Uint8Array): void;

  /** Sends from the WireGuard port (STUN, ICE checks); best effort. `from` pins the local address where the OS allows. */
  sendDatagram(datagram: Uint8Array, to: Endpoint, from?: Endpoint): void;

  /** Counters of one peer, read from shared memory; undefined when unknown. */
  peerStats(key: PublicKey): DevicePeerStats | undefined;
  /** Counters of all peers in one pass. */
  allPeerStats(): Map<PublicKey, DevicePeerStats>;
  /** Device-wide counters by name (`drop-replay`, `drop-allowed-ips`, `staged-bytes`, ...). */
  counters(): ReadonlyMap<string, number>;

  /**
   * Whether the thread that carries packets made progress since the last call, and pokes it; for a watchdog that asks every few
   * seconds. Absent where that thread is not ours.
   */
  isWorking?(): boolean;

  /** Stops the worker, closes TUN and sockets; idempotent. */
  close(): Promise<void>;
}

export interface DevicePeerConfig {
  readonly mode: "asleep" | "awake";
  readonly allowedIps: readonly Prefix[];
  readonly presharedKey?: PresharedKey | undefined;
  /** Seconds, 0 = off; only used while awake. */
  readonly persistentKeepalive?: number;
}

/** Where encrypted packets of a peer go. `relay` hands them to the `relay-out` event. */
export type DevicePath =
  | { readonly kind: "none" }
  | { readonly kind: "udp"; readonly endpoint: Endpoint }
  | { readonly kind: "relay" };

/** Where a packet came from. */
export type PacketSource = { readonly kind: "udp"; readonly endpoint: Endpoint } | { readonly kind: "relay" };

export interface DevicePeerStats {
  /** UDP payload bytes including handshakes, both directions. */
  readonly rxBytes: number;
  readonly txBytes: number;
  /** Wall clock in ms of the last completed handshake, 0 = never. */
  readonly lastHandshake: number;
  /** Device clock (`performance.now()` of the process) of the last inner packet (not keepalive), 0 = never. */
  readonly lastDataRx: Millis;
  readonly lastDataTx: Millis;
  /** Device clock of the last authenticated packet of any type received, 0 = never. */
  readonly lastRx: Millis;
  /** Bytes waiting for a session. */
  readonly stagedBytes: number;
}

/** Every event reports a fact; listeners run on the main thread. */
export interface DeviceEvents {
  /**
   * Somebody wants an asleep peer: an inner packet was staged for it (`packet`: the first one's header, for the
   * timeline), or it sent us an authenticated initiation or data. Once per sleep, until the peer was awake or the wake was
   * declined or postponed.
   */
  wake: { readonly key: PublicKey; readonly cause: WakeCause };
  /** A session is usable in both directions; with an external device also when `initiate` finds that one still is. */
  established: {
    readonly key: PublicKey;
    readonly role: "initiator" | "responder";
    readonly source: PacketSource;
    readonly rtt?: Millis;
  };
  /**
   * An authenticated packet of an awake peer came from elsewhere than its path. The device does not roam by itself, or is sent
   * back when the path stays.
   */
  "path-hint": { readonly key: PublicKey; readonly source: PacketSource };
  /** Data was sent to an awake peer and nothing authenticated came back for 400 ms; again while that goes on. */
  silent: { readonly key: PublicKey };
  /**
   * An encrypted datagram for a peer whose path is a relay. It is shared memory that is used again when the listener
   * returns: whoever keeps it copies it.
   */
  "relay-out": { readonly key: PublicKey; readonly datagram: Uint8Array };
  /** A STUN message on the WireGuard port. `to` is the local address it arrived at, where known. */
  stun: { readonly datagram: Uint8Array; readonly from: Endpoint; readonly to: Endpoint | undefined };
  /** Sending on a peer's UDP path failed hard (no route, address gone). */
  "path-error": { readonly key: PublicKey; readonly endpoint: Endpoint; readonly code: string };
  /** The protocol gave up on a handshake after 90 s; staged packets were dropped. */
  "handshake-failed": { readonly key: PublicKey; readonly droppedBytes: number };
  /**
   * The data worker died of a fault (logged) and another took over: interface, addresses, routes, port, peers and counters are
   * as they were. Packets that waited are lost, and awake peers handshake anew, which has begun. The same of an external
   * device's program, except that the interface is a new one: down, without addresses and routes.
   */
  "worker-restarted": { readonly reason: string };
  /** The interface was deleted, or the data worker died again and again; the device is closed. */
  gone: { readonly reason: string };
}

export type WakeCause =
  | { readonly kind: "packet"; readonly packet: PacketSummary }
  /** A device that does not show packets wants to talk to the peer: there is no 5-tuple. */
  | { readonly kind: "activity" }
  | { readonly kind: "handshake"; readonly source: PacketSource }
  | { readonly kind: "data"; readonly source: PacketSource };

/**
 * 5-tuple of an inner packet. Ports are 0 for protocols without; an ICMP query has its identifier as source port. `protocol`
 * is the IP protocol number.
 */
export interface PacketSummary {
  readonly source: string;
  readonly destination: string;
  readonly protocol: number;
  readonly sourcePort: number;
  readonly destinationPort: number;
  readonly bytes: number;
}
