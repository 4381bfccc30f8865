import type { Endpoint, IpAddress, Prefix } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import type { Millis } from "#base/time.ts";
import type { CaptureOptions, PacketCapture } from "#wireguard/capture.ts";
import type { DnsStatus } from "./dns/name-service.ts";
import type { AgentExamination, PairExamination } from "./examination.ts";
import type { FirewallStatus } from "./firewall/firewall.ts";
import type { WakeTotals } from "./metrics/wake-meter.ts";

/**
 * What the daemon may ask of the agent. `status` never waits: it copies what the recorder holds. Everything that has to
 * do with the network is a promise; all failures are PerchErrors with a code.
 */
export interface AgentControl {
  /** Registers if necessary, brings the interface up and returns when the first network map is applied. */
  up(settings: AgentSettings, signal: AbortSignal): Promise<void>;
  /** Registers if necessary and stores the identity; brings nothing up. Only while the agent is down. */
  login(settings: AgentSettings, signal: AbortSignal): Promise<void>;
  /** Takes the interface down; the registration stays. Idempotent. */
  down(): Promise<void>;
  /**
   * Asks management to forget this peer, then `down`, then deletes the stored identity's registration. `settings` say which
   * management when the agent was not up since the daemon started.
   */
  deregister(settings: AgentSettings): Promise<void>;
  status(): AgentStatus;
  /** The peers of `status`, each made when it is asked for; peers may come and go in between. */
  peers(): Iterable<PeerStatus>;
  /** One of them; undefined when it is not in the network (any more). */
  peerStatus(key: PublicKey): PeerStatus | undefined;
  /** Called after anything in `status()` changed, with the peers concerned; at most once per 100 ms. Returns the unsubscriber. */
  onChange(listener: (peers: ChangedPeers) => void): () => void;
  /** Wakes or puts to sleep one peer by key. Throws AgentError `peer-unknown`. */
  wakePeer(key: PublicKey): void;
  sleepPeer(key: PublicKey): void;
  /** A pinned peer stays connected; stored in the state directory. */
  pinPeer(key: PublicKey, pinned: boolean): void;
  /** Switches lazy connections live, source `setting`; undefined leaves it to the network. The daemon stores the setting. */
  setLazy(value: boolean | undefined): void;
  /** Whether the tunnel's data path makes progress since the last call; true without a tunnel. For one watchdog. */
  isWorking(): boolean;
  /** Inner packets of one peer or all. Throws AgentError `peer-unknown`, RangeError. */
  capture(options: CaptureOptions): PacketCapture;
  /** Checks this agent, up or down. Asks STUN servers and management's clock anew, a few seconds; changes nothing. */
  examine(signal: AbortSignal): Promise<AgentExamination>;
  /** Why a pair is as it is. Asks STUN servers anew; changes nothing, wakes nobody. Throws AgentError `peer-unknown`. */
  examinePair(key: PublicKey): Promise<PairExamination>;
}

/** Settings of `perch up` after flag, environment and stored values were merged; see `LazySource` for lazy. */
export interface AgentSettings {
  readonly managementUrl: string;
  readonly setupKey?: string | undefined;
  readonly hostname: string;
  readonly interfaceName: string;
  readonly wireguardPort: number;
  /** Inner MTU in bytes, 576 to 8192. */
  readonly mtu: number;
  readonly device: "embedded" | "kernel" | "wireguard-go" | "auto";
  readonly presharedKey?: string | undefined;
  /** From the flag, the environment or the store; undefined: the network's setting decides. */
  readonly lazy?:
    | { readonly enabled: boolean; readonly source: Exclude<LazySource, "network" | "default"> }
    | undefined;
  readonly inactivityThreshold: Millis;
  readonly forceRelay: boolean;
  /** Names of the network on this machine; undefined: the network's setting decides. */
  readonly dns?: { readonly enabled: boolean } | undefined;
  /** A question for a sleeping peer's name wakes it; default true. */
  readonly dnsWake?: boolean | undefined;
}

/** Who decided whether lazy connections are on, in order of precedence (DESIGN.md, section 1.7). */
export type LazySource = "flag" | "environment" | "setting" | "network" | "default";

export type AgentState = "down" | "starting" | "up" | "needs-login" | "stopping";

export type PeerState = "idle" | "connecting" | "connected";

export interface AgentStatus {
  readonly state: AgentState;
  /** Why the state is not `up`, in words. */
  readonly reason?: string | undefined;
  readonly version: string;
  readonly publicKey?: PublicKey | undefined;
  readonly fqdn?: string | undefined;
  readonly hostname?: string | undefined;
  readonly address?: Prefix | undefined;
  readonly address6?: Prefix | undefined;
  readonly interfaceName?: string | undefined;
  readonly wireguardPort?: number | undefined;
  readonly mtu?: number | undefined;
  readonly device?: { readonly kind: string; readonly features: readonly string[] } | undefined;
  readonly lazy: { readonly enabled: boolean; readonly source: LazySource; readonly thresholdMs: Millis };
  readonly management: ServiceStatus;
  readonly signal: ServiceStatus;
  readonly relays: readonly RelayStatus[];
  readonly stuns: readonly RelayStatus[];
  readonly serial: number;
  /** Undefined while there is no tunnel. */
  readonly firewall?: FirewallStatus | undefined;
  /** Undefined while there is no tunnel. */
  readonly dns?: DnsStatus | undefined;
  readonly counts: PeerCounts;
  /** Undefined while there is no tunnel. */
  readonly wakes?: WakeCounts | undefined;
  /** Since the daemon started. */
  readonly wakeTotals: WakeTotals;
  /** Connected peers by the kind of their path; counted when it is asked for. */
  readonly paths: { readonly direct: number; readonly relay: number };
  /** Made when it is first asked for, which takes a while where there are many. */
  readonly peers: readonly PeerStatus[];
  /** Device counters by name: drops, staged bytes. */
  readonly counters: ReadonlyMap<string, number>;
}

/** Which peers a change is about; the rest of the status may have changed with them. */
export type ChangedPeers = ReadonlySet<PublicKey> | "all";

export interface PeerCounts {
  readonly total: number;
  readonly idle: number;
  readonly connecting: number;
  readonly connected: number;
}

/** Wakes under way; what became of earlier ones is among the counters. */
export interface WakeCounts {
  readonly negotiating: number;
  /** For a place among those that negotiate, or for the budget of signal messages. */
  readonly waiting: number;
  /** Held back as part of a sweep over sleeping peers, with packets waiting. */
  readonly held: number;
  /** Peers that are kept connected because waking them failed. */
  readonly kept: number;
}

export interface ServiceStatus {
  readonly url: string;
  readonly connected: boolean;
  readonly error?: string | undefined;
  /** Wall clock ms of the last change. */
  readonly since: number;
}

export interface RelayStatus {
  readonly uri: string;
  readonly available: boolean;
  readonly error?: string | undefined;
  /** Wall clock ms since when it is as it is; of a STUN server its last answer. */
  readonly since?: number | undefined;
}

export interface PeerStatus {
  readonly key: PublicKey;
  readonly fqdn: string;
  readonly addresses: readonly IpAddress[];
  readonly state: PeerState;
  /** Why it is in this state, in words: `asleep`, `no traffic for 15 min`, `woken by tcp 100.64.0.1 -> 100.64.0.2:22`. */
  readonly reason: string;
  /** Wall clock ms of the last state change. */
  readonly since: number;
  /** Lazy peers sleep; permanent ones say why they do not. */
  readonly lazy: { readonly lazy: boolean; readonly why: string /** Waking it failed. */; readonly kept?: true };
  readonly pinned: boolean;
  readonly agentVersion: string;
  readonly path: PeerPath;
  /** Wall clock ms of when the path was chosen, and its latency measured. */
  readonly pathSince?: number | undefined;
  readonly relayServer?: string | undefined;
  readonly latencyMs?: Millis | undefined;
  /** Wall clock ms; 0 = never. */
  readonly lastHandshake: number;
  readonly rxBytes: number;
  readonly txBytes: number;
  readonly routes: readonly Prefix[];
  readonly timeline: readonly TimelineEntry[];
}

/** The path in use. Candidates are known for direct paths found by ICE. */
export type PeerPath =
  | { readonly kind: "none" }
  | { readonly kind: "relay"; readonly server: string }
  | {
      readonly kind: "direct";
      readonly endpoint: Endpoint;
      readonly localKind: string;
      readonly remoteKind: string;
      readonly local?: Endpoint | undefined;
    };

/** One line of a peer's story. `sinceWake` is milliseconds from the wake that began the attempt, absent while idle. */
export interface TimelineEntry {
  readonly at: number;
  readonly event: string;
  readonly detail: string;
  readonly sinceWake?: Millis | undefined;
}
