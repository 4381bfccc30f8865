import type { networkInterfaces } from "node:os";
import { messageOf } from "#base/errors.ts";
import { formatPrefix, isV6, maskPrefix, type Prefix } from "#base/ip.ts";
import type { PresharedKey, PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis } from "#base/time.ts";
import { PROTOCOL_VERSION } from "#base/version.ts";
import type { SyncResponse } from "#gen/management_pb.ts";
import type { ManagementClient } from "#management/client/management-client.ts";
import type { RelayClient } from "#relay/client/relay-client.ts";
import type { SignalClient } from "#signal/client/signal-client.ts";
import type { WireGuardDevice } from "#wireguard/device.ts";
import { ConnectionManager } from "../connections/connection-manager.ts";
import { AgentError } from "../errors.ts";
import { DirectPaths } from "../peer/direct-paths.ts";
import type { PeerConnection } from "../peer/peer-connection.ts";
import { RelayPaths } from "../peer/relay-paths.ts";
import type { TunnelInterface } from "../routing/interface-linux.ts";
import { type Infrastructure, parseInfrastructure, resolveStunServers } from "./infrastructure.ts";
import {
  diffPeers,
  EMPTY_MODEL,
  type NetworkModel,
  type OwnConfig,
  parseNetworkMap,
  parseOwnConfig,
} from "./network-map.ts";
import { NetworkWatch } from "./network-watch.ts";

export interface EngineDeps {
  readonly clock: Clock;
  readonly log: Logger;
  readonly device: WireGuardDevice;
  readonly tunnel: TunnelInterface;
  readonly management: Pick<ManagementClient, "reconnect">;
  readonly signal: SignalClient;
  readonly relay: RelayClient;
  /** Something that status shows changed; the peer when it concerns one only. */
  readonly changed: (peer: PeerConnection | undefined) => void;
  /** The machine's interfaces; default os.networkInterfaces. */
  readonly interfaces?: typeof networkInterfaces;
}

export interface EngineOptions {
  readonly ownKey: PublicKey;
  readonly own: OwnConfig;
  readonly presharedKey: PresharedKey | undefined;
  /** Local decision about lazy connections; undefined: the network's. */
  readonly lazy: boolean | undefined;
  readonly inactivityThreshold: Millis;
  readonly pinned: ReadonlySet<PublicKey>;
  readonly forceRelay: boolean;
}

/**
 * Desired state = network map + local settings. Takes updates from management in order, works out the difference and hands
 * it on: peers to the connection manager, addresses and routes to the interface, servers to the clients. It never talks to
 * a peer and never waits for one.
 */
export class Engine {
  readonly connections: ConnectionManager;
  readonly direct: DirectPaths;
  readonly relays: RelayPaths;
  readonly #deps: EngineDeps;
  readonly #ownKey: PublicKey;
  readonly #watch: NetworkWatch;
  readonly #unsubscribe: (() => void)[] = [];
  #own: OwnConfig;
  #model: NetworkModel = EMPTY_MODEL;
  #localLazy: boolean | undefined;
  #stunUris: readonly string[] = [];
  #relayUrls: readonly string[] = [];
  #applied = false;
  #closed = false;

  constructor(deps: EngineDeps, options: EngineOptions) {
    this.#deps = deps;
    this.#ownKey = options.ownKey;
    this.#own = options.own;
    this.#localLazy = options.lazy;
    this.direct = new DirectPaths(deps, { allowed: !options.forceRelay, overlay: overlayRanges(options.own) });
    this.relays = new RelayPaths(deps.relay);
    this.connections = new ConnectionManager(
      {
        ...deps,
        relay: this.relays,
        ice: this.direct,
        ownKey: options.ownKey,
        version: PROTOCOL_VERSION,
        wireguardPort: deps.device.listenPort,
        presharedKey: options.presharedKey,
      },
      { inactivityThreshold: options.inactivityThreshold, pinned: options.pinned },
      this.#wantLazy(),
    );
    const { device, signal, relay } = deps;
    this.#unsubscribe.push(
      device.events.on("relay-out", ({ key, datagram }) => void this.relays.send(key, datagram)),
      relay.events.on("datagram", ({ from, datagram }) => this.connections.receiveRelayed(from, datagram)),
      relay.events.on("home", () => this.#relayChanged()),
      relay.events.on("lost", () => this.#relayChanged()),
      signal.events.on("message", ({ from, body }) => this.connections.receiveSignal(from, body)),
      signal.events.on("state", () => deps.changed(undefined)),
    );
    this.#watch = new NetworkWatch(deps.clock, device.interfaceName, () => this.#networkChanged(), deps.interfaces);
  }

  get own(): OwnConfig {
    return this.#own;
  }

  get model(): NetworkModel {
    return this.#model;
  }

  /** Relays that management named; the home relay is one of them. */
  get relayUrls(): readonly string[] {
    return this.#relayUrls;
  }

  /** The network's own setting, whatever the local one is. */
  get networkLazy(): boolean {
    return this.#own.lazy;
  }

  /** The first network map was applied. */
  get ready(): boolean {
    return this.#applied;
  }

  /**
   * Applies one message of the Sync stream (management document, section 4.4). Peers follow at once; the interface follows in
   * order, and its failure is logged, not thrown: peers whose address is up already keep working.
   */
  update(update: SyncResponse): void {
    if (this.#closed) return;
    if (update.netbirdConfig) this.applyInfrastructure(parseInfrastructure(update.netbirdConfig));
    const map = update.NetworkMap;
    const ownConfig = map?.peerConfig ?? update.peerConfig;
    if (ownConfig) this.#applyOwn(parseOwnConfig(ownConfig));
    if (!map) return;
    const serial = Number(map.Serial);
    if (serial < this.#model.serial) {
      this.#deps.log.info("older network map ignored", { serial, applied: this.#model.serial });
      return;
    }
    const model = parseNetworkMap(map, this.#ownKey);
    for (const problem of model.problems) this.#deps.log.warn("part of the network map left out", { problem });
    const difference = diffPeers(this.#model.peers, model.peers);
    this.#model = model;
    for (const key of difference.removed) {
      this.#deps.relay.unregisterPeer(key);
      this.relays.forget(key);
    }
    for (const { key } of difference.added) this.#deps.relay.registerPeer(key);
    this.connections.apply(difference);
    this.connections.setGroups(model.groups);
    this.connections.setForwardTargets(this.#peersOf(model));
    this.#applyInterface();
    this.#applied = true;
    this.#deps.log.debug("network map applied", {
      serial,
      peers: model.peers.size,
      added: difference.added.length,
      changed: difference.changed.length,
      removed: difference.removed.length,
    });
  }

  /** Servers from a login or a Sync message. */
  applyInfrastructure(infrastructure: Infrastructure): void {
    const { relay } = this.#deps;
    this.#relayUrls = infrastructure.relay.urls;
    if (infrastructure.relay.token) relay.setToken(infrastructure.relay.token);
    relay.setServers(infrastructure.relay.urls);
    if (infrastructure.stunUris && infrastructure.stunUris.join() !== this.#stunUris.join()) {
      this.#stunUris = infrastructure.stunUris;
      void resolveStunServers(this.#stunUris, this.#deps.log).then((servers) => {
        if (!this.#closed) this.direct.setServers(servers);
      });
    }
  }

  /** The local switch; undefined gives the decision back to the network. */
  setLazy(value: boolean | undefined): void {
    this.#localLazy = value;
    this.connections.setLazy(this.#wantLazy());
  }

  close(): void {
    this.#closed = true;
    this.#watch.close();
    for (const unsubscribe of this.#unsubscribe) unsubscribe();
    this.connections.close();
    this.direct.close();
  }

  #wantLazy(): boolean {
    return this.#localLazy ?? this.#own.lazy;
  }

  #applyOwn(own: OwnConfig): void {
    const before = this.#own;
    this.#own = own;
    if (own.lazy !== before.lazy) this.connections.setLazy(this.#wantLazy());
    const text = ({ address, address6 }: OwnConfig): string =>
      [address, ...(address6 ? [address6] : [])].map(formatPrefix).join();
    if (text(own) !== text(before)) {
      this.#deps.log.info("own address changed", { from: text(before), to: text(own) });
      this.#applyInterface();
    }
  }

  #applyInterface(): void {
    const { tunnel, log } = this.#deps;
    tunnel.apply(interfaceAddresses(this.#own), this.#routes()).catch((err: unknown) => {
      log.error("interface not configured", { err: messageOf(err) });
    });
  }

  /** Routed networks and peers outside our own range; the interface's addresses cover the rest. */
  #routes(): Prefix[] {
    const ranges = overlayRanges(this.#own);
    const covered = (prefix: Prefix): boolean =>
      ranges.some(
        (range) =>
          isV6(range.address) === isV6(prefix.address) &&
          maskPrefix({ ...prefix, bits: range.bits }).address === range.address,
      );
    const hosts: Prefix[] = [];
    for (const { addresses } of this.#model.peers.values()) {
      for (const address of addresses) {
        const host = { address, bits: isV6(address) ? 128 : 32 };
        if (!covered(host)) hosts.push(host);
      }
    }
    return [...this.#model.routes, ...hosts];
  }

  #peersOf(model: NetworkModel): Set<PublicKey> {
    const targets = new Set<PublicKey>();
    if (model.forwardTargets.size === 0) return targets;
    for (const { key, addresses } of model.peers.values()) {
      if (addresses.some((address) => model.forwardTargets.has(address))) targets.add(key);
    }
    return targets;
  }

  #relayChanged(): void {
    this.connections.relayChanged();
    this.#deps.changed(undefined);
  }

  #networkChanged(): void {
    this.#deps.log.info("the local network changed", {});
    this.#deps.management.reconnect();
    this.#deps.signal.noteNetworkChange();
    this.#deps.relay.noteNetworkChange();
    this.direct.networkChanged();
    this.connections.networkChanged();
  }
}

/** Addresses for the interface, with the network's prefix lengths. */
export function interfaceAddresses(own: OwnConfig): Prefix[] {
  return own.address6 ? [own.address, own.address6] : [own.address];
}

function overlayRanges(own: OwnConfig): Prefix[] {
  return interfaceAddresses(own).map(maskPrefix);
}

/** A device this build cannot drive. Throws AgentError `unsupported-device`. */
export function assertSupportedDevice(device: string): void {
  if (device === "embedded" || device === "auto") return;
  throw new AgentError("unsupported-device", `--device ${device} is not supported yet; use embedded`);
}
