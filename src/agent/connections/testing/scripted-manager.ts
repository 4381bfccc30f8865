import { Emitter } from "#base/emitter.ts";
import { parsePrefix } from "#base/ip.ts";
import { PrivateKey, type PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { ManualClock } from "#base/time.ts";
import type { Body } from "#gen/signal_pb.ts";
import { createCredentials, createOfferBody, SessionId } from "#signal/protocol/offer.ts";
import type {
  DeviceEvents,
  DevicePath,
  DevicePeerConfig,
  DevicePeerStats,
  PacketSummary,
  WireGuardDevice,
} from "#wireguard/device.ts";
import type { PeerInfo } from "../../peer/peer-connection.ts";
import { createRemote } from "../../peer/testing/peer-facts.ts";
import { ConnectionManager } from "../connection-manager.ts";

/** A peer without traffic for this long sleeps, in milliseconds. */
export const THRESHOLD = 60_000;

/** A device that remembers what it was told and says what the test wants. */
export class ScriptedDevice {
  readonly events = new Emitter<DeviceEvents>();
  readonly modes = new Map<PublicKey, DevicePeerConfig["mode"]>();
  readonly initiations: PublicKey[] = [];
  readonly paths: (readonly DevicePath[])[] = [];
  readonly declined: PublicKey[] = [];
  readonly postponed: [PublicKey, "keep" | "drop"][] = [];
  #packets = 0;
  readonly activity = new Map<PublicKey, number>();
  readonly sent = new Map<PublicKey, number>();
  readonly staged = new Map<PublicKey, number>();

  setPeer(key: PublicKey, config: DevicePeerConfig): void {
    this.modes.set(key, config.mode);
  }

  removePeer(key: PublicKey): void {
    this.modes.delete(key);
  }

  declineWake(key: PublicKey): void {
    this.declined.push(key);
  }

  postponeWake(key: PublicKey, staged: "keep" | "drop"): void {
    this.postponed.push([key, staged]);
  }

  setPath(_key: PublicKey, _path: DevicePath): void {}

  initiate(key: PublicKey, paths: readonly DevicePath[]): boolean {
    this.initiations.push(key);
    this.paths.push(paths);
    return true;
  }

  peerStats(key: PublicKey): Partial<DevicePeerStats> {
    return {
      lastDataRx: this.activity.get(key) ?? 0,
      lastDataTx: this.sent.get(key) ?? 0,
      stagedBytes: this.staged.get(key) ?? 0,
    };
  }

  /** A packet of the machine's own towards the peer; each of another program that wants something else. */
  packetTo(key: PublicKey, what: Partial<PacketSummary> = {}): void {
    const count = this.#packets++;
    const packet = {
      source: "100.64.0.1",
      destination: "100.64.0.2",
      protocol: 6,
      sourcePort: 40000 + count,
      destinationPort: 22 + count,
      bytes: 60,
      ...what,
    };
    this.events.emit("wake", { key, cause: { kind: "packet", packet } });
  }

  established(key: PublicKey): void {
    this.events.emit("established", { key, role: "initiator", source: { kind: "relay" } });
  }
}

/** A manager of `count` peers with everything around it scripted. */
export function setup(count = 1, lazy = true) {
  const clock = new ManualClock(1_000_000);
  const device = new ScriptedDevice();
  const sent: { to: PublicKey; body: Body }[] = [];
  /** What the signal server says of each message: the other side is connected to it, is not, or nothing. */
  const signal: { delivered: boolean | undefined } = { delivered: true };
  const manager = new ConnectionManager(
    {
      clock,
      log: silentLogger,
      device: device as unknown as WireGuardDevice,
      signal: {
        send: async (to, body) => {
          sent.push({ to, body });
          return { delivered: signal.delivered };
        },
        probe() {},
      },
      relay: {
        useServer() {},
        isUp: () => true,
        serverOf: () => "rel://relay:1",
        home: { instanceUrl: "rel://relay:1" },
        rtt: 1,
        probe() {},
      },
      ice: {
        allowed: true,
        freshSession: () => ({ id: SessionId.create(), credentials: createCredentials() }),
        nat: { mapping: "unknown", udp: "unknown" },
        holdOf: () => undefined,
        open: () => ({ check() {}, addRemoteCandidate() {}, suspect() {}, probe() {}, close() {} }),
      },
      ownKey: PrivateKey.generate().publicKey,
      version: "0.76.0",
      wireguardPort: 51820,
      presharedKey: undefined,
      changed: () => {},
    },
    { inactivityThreshold: THRESHOLD, pinned: new Set() },
    lazy,
  );
  const peers = Array.from({ length: count }, (_, index) => createInfo(index));
  manager.apply({ removed: [], changed: [], added: peers });
  return { clock, device, sent, signal, manager, peers, keys: peers.map(({ key }) => key) };
}

export function createInfo(index: number, agentVersion = "0.76.0"): PeerInfo {
  const prefix = parsePrefix(`100.64.${index >> 8}.${index & 255}/32`);
  return {
    key: PrivateKey.generate().publicKey,
    fqdn: `peer-${index}.perch.test`,
    addresses: [prefix.address],
    allowedIps: [prefix],
    routes: [],
    agentVersion,
  };
}

export function offerBody(): Body {
  return createOfferBody("offer", createRemote());
}
