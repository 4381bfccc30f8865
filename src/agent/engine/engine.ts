import { networkInterfaces } from "node:os";
import { create, toBinary } from "@bufbuild/protobuf";
import { messageOf } from "#base/errors.ts";
import { formatPrefix, maskPrefix, type Prefix } from "#base/ip.ts";
import type { PresharedKey, PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis } from "#base/time.ts";
import { PROTOCOL_VERSION } from "#base/version.ts";
import {
  type NetworkMap,
  NetworkMapSchema,
  type PerchHeldMap,
  PerchHeldMapSchema,
  type SyncResponse,
} from "#gen/management_pb.ts";
import type { ManagementClient } from "#management/client/management-client.ts";
import type { RelayClient } from "#relay/client/relay-client.ts";
import { isHandshake } from "#relay/protocol/messages.ts";
import type { SignalClient } from "#signal/client/signal-client.ts";
import type { WireGuardDevice } from "#wireguard/device.ts";
import { ConnectionManager } from "../connections/connection-manager.ts";
import { PacedClock } from "../connections/paced-clock.ts";
import type { TimelineEntry } from "../control.ts";
import type { NameSink } from "../dns/name-service.ts";
import { Firewall, type FirewallStatus } from "../firewall/firewall.ts";
import { DirectPaths } from "../peer/direct-paths.ts";
import type { PeerConnection, PeerInfo } from "../peer/peer-connection.ts";
import { RelayPaths } from "../peer/relay-paths.ts";
import type { TunnelInterface } from "../routing/interface-linux.ts";
import { HostRoutes } from "./host-routes.ts";
import { type Infrastructure, parseInfrastructure, resolveStunServers } from "./infrastructure.ts";
import {
  EMPTY_MODEL,
  type NetworkModel,
  type OwnConfig,
  parseForwardTargets,
  parseOwnConfig,
  parseRoutes,
} from "./network-map.ts";
import { type NetworkChange, NetworkWatch } from "./network-watch.ts";
import { createDifference, type MapDifference, PeerBook } from "./peer-book.ts";
import { RecentInterfaces } from "./recent-interfaces.ts";

export interface EngineDeps {
  readonly clock: Clock;
  readonly log: Logger;
  readonly device: WireGuardDevice;
  readonly tunnel: TunnelInterface;
  readonly management: Pick<ManagementClient, "reconnect">;
  readonly signal: SignalClient;
  readonly relay: RelayClient;
  /** Hears what the map says about names; absent: nobody does. */
  readonly names?: NameSink;
  /** Something that status shows changed; the peer when it concerns one only. */
  readonly changed: (peer: PeerConnection | undefined) => void;
  /** Called with every entry of a peer's story. */
  readonly noted?: ((peer: PublicKey, entry: TimelineEntry) => void) | undefined;
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
  readonly #firewall: Firewall;
  readonly #unsubscribe: (() => void)[] = [];
  #own: OwnConfig;
  #model: NetworkModel = EMPTY_MODEL;
  readonly #book: PeerBook;
  readonly #hostRoutes = new HostRoutes();
  readonly #interfaces: RecentInterfaces;
  /** The last part's map as bytes, without its number. */
  #head: Uint8Array | undefined;
  /** Groups, forwards and routes of the model are not applied yet. */
  #headChanged = false;
  /** The interface is not as it should be: the next map tries again. */
  #interfaceIsDue = false;
  #held: PerchHeldMap = create(PerchHeldMapSchema);
  #localLazy: boolean | undefined;
  #stunUris: readonly string[] = [];
  #relayUrls: readonly string[] = [];
  #applied = false;
  #closed = false;

  constructor(deps: EngineDeps, options: EngineOptions) {
    this.#deps = deps;
    this.#ownKey = options.ownKey;
    this.#own = options.own;
    this.#book = new PeerBook(options.ownKey);
    this.#hostRoutes.setRanges(overlayRanges(options.own), []);
    this.#localLazy = options.lazy;
    this.#firewall = new Firewall(deps, options.own);
    this.#interfaces = new RecentInterfaces(deps.clock, deps.interfaces ?? networkInterfaces);
    const direct = { ...deps, clock: new PacedClock(deps.clock), interfaces: () => this.#interfaces.read() };
    this.direct = new DirectPaths(direct, {
      allowed: !options.forceRelay,
      overlay: overlayRanges(options.own),
      improved: (reason) => this.connections.searchAgain(reason),
    });
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
      relay.events.on("datagram", ({ from, datagram, server }) => {
        if (isHandshake(datagram) && this.relays.noteHandshake(from, server)) this.#relayChanged();
        this.connections.receiveRelayed(from, datagram);
      }),
      relay.events.on("home", ({ connected }) => {
        // They are mostly one server, and were away together.
        if (connected) signal.retryNow();
        this.#relayChanged();
      }),
      relay.events.on("foreign", () => this.#relayChanged()),
      relay.events.on("lost", () => this.#relayChanged()),
      signal.events.on("message", ({ from, body }) => this.connections.receiveSignal(from, body)),
      signal.events.on("state", ({ connected }) => {
        if (connected) {
          relay.retryNow();
          this.connections.signalReturned();
        }
        deps.changed(undefined);
      }),
    );
    this.#watch = new NetworkWatch(
      deps.clock,
      device.interfaceName,
      (change) => this.#networkChanged(change),
      deps.interfaces,
    );
  }

  get own(): OwnConfig {
    return this.#own;
  }

  get model(): NetworkModel {
    return this.#model;
  }

  /** What the network's access rules are, as enforced. */
  get firewall(): FirewallStatus {
    return this.#firewall.status;
  }

  /** What we have of the map, for a server that sends what changed since. */
  get held(): PerchHeldMap {
    return this.#held;
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
   * Applies one message of the Sync stream (management document, section 4.4), a map or a part of one; costs what it
   * changes. Peers follow at once; the interface follows in order, and its failure is logged, not thrown: peers whose
   * address is up already keep working.
   */
  update(update: SyncResponse): void {
    if (this.#closed) return;
    const startedAt = performance.now();
    if (update.netbirdConfig) this.applyInfrastructure(parseInfrastructure(update.netbirdConfig));
    const { NetworkMap: map, perch: part } = update;
    const ownConfig = map?.peerConfig ?? update.peerConfig;
    if (ownConfig) this.#applyOwn(parseOwnConfig(ownConfig));
    if (!map && !part) return;
    const serial = map ? Number(map.Serial) : this.#model.serial;
    if (!part && serial < this.#model.serial) {
      this.#deps.log.info("older network map ignored", { serial, applied: this.#model.serial });
      return;
    }
    // Before the peers: one that is let in by nothing is never there without a word about it.
    if (part) this.#firewall.applyPart(part);
    else if (map) this.#firewall.applyMap(map);
    const difference = createDifference();
    const isNewHead = map !== undefined && this.#noteHead(map, part !== undefined);
    if (map && isNewHead) this.#applyHead(map, difference);
    else this.#model = { ...this.#model, serial };
    if (part) this.#book.applyPart(part, difference);
    else if (map) this.#book.replace(map.remotePeersIsEmpty ? [] : map.remotePeers, difference);
    for (const problem of difference.problems) this.#deps.log.warn("part of the network map left out", { problem });
    this.#applyPeers(difference);
    const { names } = this.#deps;
    names?.applyPeers(difference);
    if (part) names?.applyPart(part);
    if (map && isNewHead) names?.applyConfig(map.DNSConfig, serial);
    else if (map) names?.noteSerial(serial);
    // What the agent has is known when the last part is there: a stream that ends before begins where this one did.
    if (part && !part.more) this.#held = create(PerchHeldMapSchema, { epoch: part.epoch, revision: part.revision });
    if (!map) return;
    this.#applied = true;
    this.#deps.log.debug("network map applied", {
      serial,
      peers: this.#book.peers.size,
      added: difference.added.length,
      changed: difference.changed.length,
      removed: difference.removed.length,
      elapsedMs: Math.round((performance.now() - startedAt) * 100) / 100,
    });
  }

  /**
   * False when all that comes beside the peers is as it was, which is nearly always so: compared as bytes, where no peers are
   * among them. Reading it again would cost several times what one changed peer does.
   */
  #noteHead(map: NetworkMap, isPart: boolean): boolean {
    const before = this.#head;
    this.#head = isPart ? toBinary(NetworkMapSchema, { ...map, Serial: 0n }) : undefined;
    return !before || !this.#head || Buffer.compare(before, this.#head) !== 0;
  }

  /** Everything of a map but the peers: it comes whole with every map, and with the last part of one. */
  #applyHead(map: NetworkMap, difference: MapDifference): void {
    const before = this.#model;
    const routes = parseRoutes(map, this.#ownKey);
    difference.problems.push(...routes.problems);
    this.#book.setRoutes(routes.byPeer, difference);
    const offline = map.offlinePeers.map((remote) => this.#book.parse(remote, difference.problems));
    this.#model = {
      serial: Number(map.Serial),
      offline: offline.filter((info) => info !== undefined),
      routes,
      forwardTargets: parseForwardTargets(map),
    };
    if (before.offline.length + this.#model.offline.length > 0) this.#deps.changed(undefined);
    this.#headChanged = true;
  }

  #applyPeers(difference: MapDifference): void {
    const { removed, changed, added } = difference;
    for (const key of removed) {
      this.#deps.relay.unregisterPeer(key);
      this.relays.forget(key);
    }
    for (const { key } of added) this.#deps.relay.registerPeer(key);
    if (removed.length + changed.length + added.length > 0) this.connections.apply(difference);
    const hosts = this.#hostRoutes.apply(difference);
    const { routes, forwardTargets } = this.#model;
    const isNew = this.#headChanged;
    this.#headChanged = false;
    if (isNew) this.connections.setGroups(routes.groups);
    if (isNew || forwardTargets.size > 0) this.connections.setForwardTargets(this.#forwardPeers());
    // A router that comes or goes brings its networks along, whether or not the head names them anew.
    const isRouter = ({ key }: PeerInfo): boolean => routes.byPeer.has(key);
    const routed = added.some(isRouter) || changed.some(isRouter) || removed.some((key) => routes.byPeer.has(key));
    if (isNew || hosts || routed || this.#interfaceIsDue) this.#applyInterface();
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

  /** The device has another interface of the same name, without addresses and routes. */
  renewInterface(): void {
    if (!this.#closed) this.#applyInterface(true);
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
    this.#firewall.setOwn(own);
    this.#deps.names?.setOwn(own);
    if (own.lazy !== before.lazy) this.connections.setLazy(this.#wantLazy());
    const text = ({ address, address6 }: OwnConfig): string =>
      [address, ...(address6 ? [address6] : [])].map(formatPrefix).join();
    if (text(own) !== text(before)) {
      this.#deps.log.info("own address changed", { from: text(before), to: text(own) });
      this.#hostRoutes.setRanges(overlayRanges(own), this.#book.peers.values());
      this.#applyInterface();
    }
  }

  #applyInterface(isNew = false): void {
    const { tunnel, log, names } = this.#deps;
    const routes = this.#routes();
    this.#interfaceIsDue = false;
    names?.setTunnelNetworks(routes);
    if (isNew) tunnel.forget();
    tunnel.apply(interfaceAddresses(this.#own), routes).then(
      (problems) => {
        if (problems.length > 0) this.#interfaceIsDue = true;
        for (const problem of problems) log.warn("interface only in part", { problem });
        names?.interfaceReady(isNew);
      },
      (err: unknown) => {
        this.#interfaceIsDue = true;
        log.error("interface not configured", { err: messageOf(err) });
      },
    );
  }

  /** Routed networks, and peers outside of our own range: the interface's addresses cover the rest. */
  #routes(): Prefix[] {
    const { peers } = this.#book;
    const routed = [...this.#model.routes.byPeer].flatMap(([key, prefixes]) => (peers.has(key) ? prefixes : []));
    return [...routed, ...this.#hostRoutes.routes];
  }

  #forwardPeers(): Set<PublicKey> {
    const targets = new Set<PublicKey>();
    const { forwardTargets } = this.#model;
    if (forwardTargets.size === 0) return targets;
    for (const { key, addresses } of this.#book.peers.values()) {
      if (addresses.some((address) => forwardTargets.has(address))) targets.add(key);
    }
    return targets;
  }

  #relayChanged(): void {
    this.connections.relayChanged();
    this.#deps.changed(undefined);
  }

  #networkChanged(change: NetworkChange): void {
    this.#deps.log.info("the local network changed", { change });
    this.#interfaces.forget();
    if (change === "added") return this.direct.addressesAdded();
    this.#deps.management.reconnect();
    this.#deps.signal.noteNetworkChange();
    this.#deps.relay.noteNetworkChange();
    if (change === "renewed") {
      this.direct.addressesAdded();
      return this.connections.checkPaths();
    }
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
