import { PerchError } from "#base/errors.ts";
import { type IpAddress, parseEndpoint, parsePrefix } from "#base/ip.ts";
import { PublicKey } from "#base/keys.ts";
import { systemClock } from "#base/time.ts";
import { parseCandidate } from "#ice/candidate.ts";
import { CaptureHost, type CaptureOptions, type PacketCapture } from "#wireguard/capture.ts";
import type {
  AgentControl,
  AgentSettings,
  AgentState,
  AgentStatus,
  ChangedPeers,
  PeerCounts,
  PeerStatus,
} from "../../control.ts";
import type { AgentExamination, PairExamination } from "../../examination.ts";
import { examineAgent } from "../../findings.ts";
import { WakeMeter } from "../../metrics/wake-meter.ts";
import { diagnosePair, type PairFacts } from "../../peer/diagnosis.ts";
import type { DirectAttempt } from "../../peer/direct-attempts.ts";
import type { NatView } from "../../peer/direct-paths.ts";

/** A failure that a test wants `up` to have. */
export interface FakeFailure {
  readonly code: string;
  readonly message: string;
  readonly retryable?: boolean;
  readonly needsLogin?: boolean;
}

const FAKE_NAT: NatView = {
  udp: "works",
  mapping: "endpoint-independent",
  mapping6: "unknown",
  servers: [
    {
      server: parseEndpoint("198.51.100.1:3478"),
      mapped: parseEndpoint("203.0.113.7:51820"),
      answeredAt: 1000,
      rtt: 20.5,
      silentAt: undefined,
    },
  ],
  observations: [
    {
      destination: parseEndpoint("198.51.100.1:3478"),
      mapped: parseEndpoint("203.0.113.7:51820"),
      at: 1000,
      by: "server",
      translated: true,
    },
  ],
  addresses: [parseEndpoint("192.168.1.2:51820")],
};

const FAKE_CANDIDATES = [
  "1 1 udp 2130706431 192.168.1.2 51820 typ host",
  "2 1 udp 1694498815 203.0.113.7 51820 typ srflx raddr 192.168.1.2 rport 51820",
].map((text) => parseCandidate(text)!);

/** A search that ended without a way. */
const FAKE_ATTEMPT: DirectAttempt = {
  at: Date.UTC(2026, 0, 2, 3, 4, 5),
  outcome: "failed",
  candidates: FAKE_CANDIDATES,
  pairs: [
    {
      local: FAKE_CANDIDATES[0],
      remote: parseCandidate("3 1 udp 1694498815 203.0.113.9 40112 typ srflx raddr 10.0.0.2 rport 51820")!,
      state: "failed",
      rtt: undefined,
      sent: 16,
      answered: 0,
      received: 0,
      selected: false,
      nominated: false,
    },
  ],
};

const NOTHING_COUNTED = { wakeTotals: new WakeMeter().totals, paths: { direct: 0, relay: 0 } };
const NO_SERVICE = { url: "", connected: false, since: 0 };

/**
 * An AgentControl that keeps everything in memory and takes the steps of a real one in the same order, each a moment later.
 * It registers with any setup key but the one that is all zeros; for tests of what stands on it.
 */
export class FakeAgent implements AgentControl, AsyncDisposable {
  readonly calls: string[] = [];
  settings: AgentSettings | undefined;
  registered = false;
  failures: FakeFailure[] = [];
  /** `up` waits here when set, before it connects. */
  gate: Promise<void> | undefined;
  readonly #listeners = new Set<(peers: ChangedPeers) => void>();
  #peers: readonly PeerStatus[];
  #status: AgentStatus;

  constructor(peers: readonly PeerStatus[] = makePeers(4)) {
    this.#peers = peers;
    this.#status = {
      state: "down",
      version: "0.76.0",
      lazy: { enabled: false, source: "default", thresholdMs: 900_000 },
      management: NO_SERVICE,
      signal: NO_SERVICE,
      relays: [],
      stuns: [],
      serial: 0,
      counts: countPeers([]),
      peers: [],
      counters: new Map(),
      ...NOTHING_COUNTED,
    };
  }

  async up(settings: AgentSettings, signal: AbortSignal): Promise<void> {
    this.calls.push("up");
    this.settings = settings;
    this.#change({
      state: "starting",
      hostname: settings.hostname,
      management: { ...NO_SERVICE, url: settings.managementUrl },
    });
    if (this.gate) await Promise.race([this.gate, rejectOn(signal)]);
    await settle();
    const failure = this.failures.shift();
    if (failure) {
      this.#change({ state: failure.needsLogin ? "needs-login" : "down" });
      throw new PerchError(failure.code, failure.message, { retryable: failure.retryable ?? false });
    }
    this.#register(settings);
    const now = Date.now();
    this.#change({ management: { url: settings.managementUrl, connected: true, since: now } });
    await settle();
    this.#change({
      state: "up",
      publicKey: keyOf(0),
      fqdn: `${settings.hostname}.perch.test`,
      address: parsePrefix("100.64.0.1/16"),
      interfaceName: settings.interfaceName,
      wireguardPort: settings.wireguardPort,
      mtu: settings.mtu,
      device: { kind: settings.device === "auto" ? "embedded" : settings.device, features: ["vnet-hdr", "udp-gso"] },
      lazy: {
        enabled: settings.lazy?.enabled ?? true,
        source: settings.lazy?.source ?? "network",
        thresholdMs: settings.inactivityThreshold,
      },
      signal: { url: "http://signal.test:10000", connected: true, since: now },
      relays: [
        { uri: "rel://relay.test:33073", available: true, since: now },
        { uri: "rels://far.test:443", available: false, error: "connection refused", since: now },
      ],
      stuns: [{ uri: "stun:stun.test:3478", available: true, since: now }],
      serial: 7,
      firewall: { kind: "open" },
      peers: this.#peers,
      counters: new Map([["drop-replay", 2]]),
    });
  }

  async login(settings: AgentSettings, _signal: AbortSignal): Promise<void> {
    this.calls.push("login");
    await settle();
    this.#register(settings);
  }

  async down(): Promise<void> {
    this.calls.push("down");
    await settle();
    const { version, lazy, hostname, state } = this.#status;
    if (state === "down") return;
    this.#status = {
      state: "down",
      version,
      lazy,
      hostname,
      management: NO_SERVICE,
      signal: NO_SERVICE,
      relays: [],
      stuns: [],
      serial: 0,
      counts: countPeers([]),
      peers: [],
      counters: new Map(),
      ...NOTHING_COUNTED,
    };
    this.#tell("all");
  }

  async deregister(): Promise<void> {
    this.calls.push("deregister");
    await this.down();
    this.registered = false;
  }

  status(): AgentStatus {
    return this.#status;
  }

  peers(): Iterable<PeerStatus> {
    return this.status().peers;
  }

  peerStatus(key: PublicKey): PeerStatus | undefined {
    return this.status().peers.find((peer) => peer.key === key);
  }

  onChange(listener: (peers: ChangedPeers) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  wakePeer(key: PublicKey): void {
    this.changePeer(key, { state: "connecting", reason: "woken by you", since: Date.now() });
  }

  sleepPeer(key: PublicKey): void {
    this.changePeer(key, { state: "idle", reason: "put to sleep by you", since: Date.now(), path: { kind: "none" } });
  }

  pinPeer(key: PublicKey, pinned: boolean): void {
    this.changePeer(key, {
      pinned,
      lazy: pinned ? { lazy: false, why: "pinned" } : { lazy: true, why: "nothing speaks against it" },
    });
  }

  isWorking(): boolean {
    return true;
  }

  setLazy(value: boolean | undefined): void {
    this.calls.push(`lazy ${value}`);
    const lazy =
      value === undefined
        ? { enabled: true, source: "network" as const }
        : { enabled: value, source: "setting" as const };
    this.#change({ lazy: { ...this.#status.lazy, ...lazy } });
  }

  /** A real capture of a device through which nothing goes. */
  capture(options: CaptureOptions): PacketCapture {
    this.calls.push(`capture ${options.key ? "peer" : "all"} ${options.maxPackets ?? "any"}`);
    const plane = {
      interfaceName: "fake0",
      startCapture: () => {},
      stopCapture: () => this.calls.push("capture ends"),
    };
    return new CaptureHost({ clock: systemClock, plane }).start(options, undefined);
  }

  /** A real examination of made-up facts: UDP works behind a cone NAT, the clock is right. */
  async examine(): Promise<AgentExamination> {
    this.calls.push("examine");
    const address = parsePrefix("192.168.1.2/24");
    const up = this.#status.state === "up";
    const range = parsePrefix("100.64.0.0/16");
    const machineRoutes = [{ prefix: range, interfaceName: this.#status.interfaceName ?? "" }];
    const nat = up ? FAKE_NAT : undefined;
    const findings = examineAgent({
      status: this.#status,
      wall: PEER_EPOCH,
      nat,
      clock: { aheadMs: 300, uncertaintyMs: 510 },
      forceRelay: this.settings?.forceRelay ?? false,
      autoDevice: false,
      mayAdminister: true,
      tunProblem: undefined,
      kernel: "6.1.0",
      addresses: [
        { prefix: address, interfaceName: "eth0" },
        ...(this.#status.address
          ? [{ prefix: this.#status.address, interfaceName: this.#status.interfaceName ?? "" }]
          : []),
      ],
      machineRoutes,
      wantedRoutes: up ? [range] : [],
    });
    return { findings, nat };
  }

  /** A real diagnosis: relayed peers sit behind a symmetric NAT, connecting ones are offline. */
  async examinePair(key: PublicKey): Promise<PairExamination> {
    this.calls.push("examine-pair");
    const peer = this.#peers.find((each) => each.key === key)!;
    const relayed = peer.path.kind === "relay";
    const facts: PairFacts = {
      name: peer.fqdn.split(".")[0]!,
      state: peer.state,
      reason: peer.reason,
      expired: false,
      lazy: peer.lazy.lazy,
      awakeFor: peer.state === "idle" ? 0 : 60_000,
      path: peer.path.kind,
      port: this.settings?.wireguardPort ?? 51820,
      directAllowed: true,
      here: { udp: FAKE_NAT.udp, mapping: FAKE_NAT.mapping },
      there: {
        agent: "perch",
        ice: true,
        relay: true,
        named: "public",
        udp: "works",
        mapping: relayed ? "endpoint-dependent" : "none",
      },
      stunServers: 1,
      signal: { connected: true, delivered: peer.state !== "connecting" },
      relay: { configured: 2, usable: true, server: "rel://relay.test:33073" },
      checks: { outcome: "failed", pairs: 1, answered: 0, received: 0 },
      handshake: { initiations: 0, last: peer.lastHandshake, unopened: 0, replayed: 0 },
    };
    return {
      peer,
      facts,
      diagnosis: diagnosePair(facts),
      attempt: relayed ? FAKE_ATTEMPT : undefined,
      nat: FAKE_NAT,
      relayRtt: 20.25,
    };
  }

  /** Changes one peer and tells the listeners. */
  changePeer(key: PublicKey, change: Partial<PeerStatus>): void {
    this.#peers = this.#peers.map((peer) => (peer.key === key ? { ...peer, ...change } : peer));
    this.#change({ peers: this.#peers }, new Set([key]));
  }

  removePeer(key: PublicKey): void {
    this.#peers = this.#peers.filter((peer) => peer.key !== key);
    this.#change({ peers: this.#peers }, new Set([key]));
  }

  setState(state: AgentState, reason?: string): void {
    this.#change({ state, reason });
  }

  get listeners(): number {
    return this.#listeners.size;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.down();
  }

  #register(settings: AgentSettings): void {
    const refused = settings.setupKey?.startsWith("00000000");
    if (refused || (!this.registered && !settings.setupKey)) {
      this.#change({ state: "needs-login" });
      const why = refused
        ? `the setup key ${settings.setupKey?.slice(0, 4)}… is unknown`
        : "this machine is not registered";
      throw new PerchError(refused ? "setup-key-invalid" : "needs-login", `${settings.managementUrl}: ${why}`);
    }
    this.registered = true;
  }

  #change(change: Partial<AgentStatus>, peers: ChangedPeers = "all"): void {
    const status = { ...this.#status, ...change };
    this.#status = { ...status, counts: countPeers(status.peers) };
    this.#tell(peers);
  }

  #tell(peers: ChangedPeers): void {
    for (const listener of [...this.#listeners]) listener(peers);
  }
}

function countPeers(peers: readonly PeerStatus[]): PeerCounts {
  const counts = { total: peers.length, idle: 0, connecting: 0, connected: 0 };
  for (const peer of peers) counts[peer.state]++;
  return counts;
}

/** Key number `index`. */
export function keyOf(index: number): PublicKey {
  const bytes = new Uint8Array(32);
  new DataView(bytes.buffer).setUint32(28, index + 1);
  bytes.fill(0x5a, 0, 8);
  return PublicKey.fromBytes(bytes);
}

/** Wall clock of the made-up peers. */
export const PEER_EPOCH = Date.UTC(2026, 0, 2, 3, 4, 5);

/** Peers `peer-1` ... in turn idle, connecting, connected direct, connected by relay; `100.64.x.y` from 100.64.0.2 on. */
export function makePeers(count: number): readonly PeerStatus[] {
  return Array.from({ length: count }, (_, index) => makePeer(index + 1));
}

function makePeer(index: number): PeerStatus {
  const number = index + 1;
  const base: PeerStatus = {
    key: keyOf(index),
    fqdn: `peer-${index}.perch.test`,
    addresses: [`100.64.${number >> 8}.${number & 255}` as IpAddress],
    state: "idle",
    reason: "asleep, no traffic yet",
    since: PEER_EPOCH,
    lazy: { lazy: true, why: "nothing speaks against it" },
    pinned: false,
    agentVersion: "0.76.0",
    path: { kind: "none" },
    lastHandshake: 0,
    rxBytes: 0,
    txBytes: 0,
    routes: [],
    timeline: [],
  };
  const woken = { at: PEER_EPOCH, event: "wake", detail: "tcp 100.64.0.1:40000 -> 100.64.0.3:22", sinceWake: 0 };
  switch (index % 4) {
    case 1:
      return base;
    case 2:
      return {
        ...base,
        state: "connecting",
        reason: "woken by tcp 100.64.0.1:40000 -> 100.64.0.3:22",
        timeline: [woken],
      };
    case 3:
      return {
        ...base,
        state: "connected",
        reason: "direct path proven",
        path: {
          kind: "direct",
          endpoint: { address: "203.0.113.7" as IpAddress, port: 51820 },
          localKind: "host",
          remoteKind: "srflx",
          local: { address: "192.168.1.2" as IpAddress, port: 51820 },
        },
        pathSince: PEER_EPOCH + 180,
        relayServer: "rel://relay.test:33073",
        latencyMs: 21.25,
        lastHandshake: PEER_EPOCH,
        rxBytes: 1500,
        txBytes: 3_500_000,
        routes: [{ address: "10.20.0.0" as IpAddress, bits: 16 }],
        timeline: [
          woken,
          { at: PEER_EPOCH + 41.5, event: "relay", detail: "first path: rel://relay.test:33073", sinceWake: 41.5 },
          { at: PEER_EPOCH + 180, event: "direct", detail: "host to srflx 203.0.113.7:51820", sinceWake: 180 },
        ],
      };
    default:
      return {
        ...base,
        state: "connected",
        reason: "no direct path found, relayed",
        path: { kind: "relay", server: "rel://relay.test:33073" },
        pathSince: PEER_EPOCH + 40,
        relayServer: "rel://relay.test:33073",
        lazy: { lazy: false, why: "agent 0.40.0 is older than 0.45.0" },
        agentVersion: "0.40.0",
        lastHandshake: PEER_EPOCH,
        rxBytes: 92,
        txBytes: 148,
      };
  }
}

/** The next turn of the event loop. */
function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

function rejectOn(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}
