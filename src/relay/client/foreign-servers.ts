import { Backoff } from "#base/backoff.ts";
import type { IpAddress } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import type { PeerId } from "../protocol/peer-id.ts";
import type { RelayConnection, RelayConnectionEvents } from "./relay-connection.ts";

/** A server nobody holds is kept so long after its last use. */
export const RELEASED_IDLE_MS: Millis = 60_000;
/** The same for one that nobody ever held by name: longer than an unused connection between peers lasts. */
export const UNHELD_IDLE_MS: Millis = 20 * 60_000;
/** Pause between looks for idle servers. */
export const SWEEP_MS: Millis = 30_000;

export interface ForeignServersDeps {
  readonly clock: Clock;
  readonly log: Logger;
  /** The home connection serves or soon will serve this relay, which keeps one connection for each agent. */
  readonly isHome: (url: string) => boolean;
  /** Undefined while there is no token. */
  readonly dial: (
    url: string,
    address: IpAddress | undefined,
    events: RelayConnectionEvents,
  ) => RelayConnection | undefined;
}

export interface ForeignServersEvents {
  /** A connection is being made; subscriptions given now leave together with the Auth. */
  dialled(connection: RelayConnection, server: string, interest: readonly PeerId[]): void;
  transport(from: PeerId, payload: Uint8Array, server: string): void;
  presence(peers: readonly PeerId[], online: boolean, connection: RelayConnection, server: string): void;
  connected(server: string): void;
  lost(server: string): void;
}

interface Foreign {
  readonly url: string;
  readonly backoff: Backoff;
  readonly holders: Set<PublicKey>;
  readonly interest: Set<PeerId>;
  address: IpAddress | undefined;
  idleMs: Millis;
  lastUsedAt: Millis;
  connection: RelayConnection | undefined;
  retry: Timer | undefined;
}

/**
 * Connections to other agents' home relays, by the exact URL those agents advertise. One is made when it is asked for, made
 * again while it is held or in use, and closed when it has been idle. A relay that is our own home, or that home is just
 * trying, keeps its entry here without a connection.
 */
export class ForeignServers {
  readonly #deps: ForeignServersDeps;
  readonly #events: ForeignServersEvents;
  readonly #servers = new Map<string, Foreign>();
  #sweep: Timer | undefined;
  #droppedBefore = 0;

  constructor(deps: ForeignServersDeps, events: ForeignServersEvents) {
    this.#deps = deps;
    this.#events = events;
  }

  /** Datagrams dropped in queues. */
  get dropped(): number {
    let dropped = this.#droppedBefore;
    for (const { connection } of this.#servers.values()) dropped += connection?.dropped ?? 0;
    return dropped;
  }

  isConnected(url: string): boolean {
    return this.#servers.get(url)?.connection?.isReady === true;
  }

  ensure(url: string, address: IpAddress | undefined, peer: PublicKey | undefined): void {
    let server = this.#servers.get(url);
    if (!server) {
      server = {
        url,
        backoff: new Backoff({ start: 500, factor: 2, ceiling: 1_800, jitter: 0.25 }),
        holders: new Set(),
        interest: new Set(),
        address,
        idleMs: peer === undefined ? UNHELD_IDLE_MS : RELEASED_IDLE_MS,
        lastUsedAt: 0,
        connection: undefined,
        retry: undefined,
      };
      this.#servers.set(url, server);
      this.#armSweep();
    }
    if (peer !== undefined) server.holders.add(peer);
    else server.idleMs = UNHELD_IDLE_MS;
    server.address = address ?? server.address;
    server.lastUsedAt = this.#deps.clock.now();
    if (!server.connection) this.#dial(server, server.address);
  }

  /**
   * There is a home, by this name: it serves those who hold the same relay, and gets their interest in peers. All others are
   * dialled now that the network is there.
   */
  noteHome(instanceUrl: string): readonly PeerId[] {
    this.retryNow();
    const server = this.#servers.get(instanceUrl);
    if (!server) return [];
    this.#droppedBefore += server.connection?.dropped ?? 0;
    // Without a Close: the relay has forgotten this connection, and would tell others that we left.
    server.connection?.abandon();
    server.connection = undefined;
    server.retry?.cancel();
    server.retry = undefined;
    return [...server.interest];
  }

  /** The connection for sending, which may still be on its way; undefined when this server was not asked for. */
  use(url: string, now: Millis): RelayConnection | undefined {
    const server = this.#servers.get(url);
    if (server) server.lastUsedAt = now;
    return server?.connection;
  }

  release(url: string, peer: PublicKey): void {
    const server = this.#servers.get(url);
    if (server?.holders.delete(peer)) server.lastUsedAt = this.#deps.clock.now();
  }

  releaseAll(peer: PublicKey): void {
    for (const url of this.#servers.keys()) this.release(url, peer);
  }

  addInterest(url: string, peers: readonly PeerId[]): RelayConnection | undefined {
    const server = this.#servers.get(url);
    for (const peer of peers) server?.interest.add(peer);
    return server?.connection;
  }

  /** On every server unless one is named. */
  dropInterest(peers: readonly PeerId[], url: string | undefined): void {
    for (const server of this.#servers.values()) {
      if (url !== undefined && server.url !== url) continue;
      const known = peers.filter((peer) => server.interest.delete(peer));
      if (known.length > 0) server.connection?.unsubscribe(known);
    }
  }

  isInterested(url: string, peer: PeerId): boolean {
    return this.#servers.get(url)?.interest.has(peer) === true;
  }

  /** All connections are asked for a sign of life. */
  probe(): void {
    for (const { connection } of this.#servers.values()) connection?.probe();
  }

  noteNetworkChange(): void {
    this.probe();
    this.retryNow();
  }

  /** What is waiting for its next attempt is dialled at once. */
  retryNow(): void {
    for (const server of this.#servers.values()) {
      if (server.connection) continue;
      server.backoff.reset();
      this.#dial(server, server.address);
    }
  }

  async close(): Promise<void> {
    this.#sweep?.cancel();
    const servers = [...this.#servers.values()];
    this.#servers.clear();
    await Promise.all(
      servers.map(({ retry, connection }) => {
        retry?.cancel();
        return connection?.close();
      }),
    );
  }

  /** With an address, the host name is tried when it fails. */
  #dial(server: Foreign, address: IpAddress | undefined): void {
    server.retry?.cancel();
    server.retry = undefined;
    // `noteHome` dials it if home goes elsewhere.
    if (this.#deps.isHome(server.url)) return;
    let wasReady = false;
    const connection = this.#deps.dial(server.url, address, {
      ready: () => {
        wasReady = true;
        server.backoff.reset();
        this.#deps.log.info("foreign relay connected", { server: server.url });
        this.#events.connected(server.url);
      },
      transport: (from, payload) => {
        server.lastUsedAt = this.#deps.clock.now();
        this.#events.transport(from, payload, server.url);
      },
      presence: (peers, online) => connection && this.#events.presence(peers, online, connection, server.url),
      lost: (err) => {
        if (server.connection !== connection || this.#servers.get(server.url) !== server) return;
        this.#droppedBefore += connection?.dropped ?? 0;
        server.connection = undefined;
        this.#deps.log.info("foreign relay lost", { server: server.url, address, err });
        if (!wasReady && address !== undefined) return this.#dial(server, undefined);
        server.retry = this.#deps.clock.after(server.backoff.next(), () => this.#dial(server, server.address));
        if (this.#isIdle(server)) this.#remove(server);
        this.#events.lost(server.url);
      },
    });
    server.connection = connection;
    if (connection) this.#events.dialled(connection, server.url, [...server.interest]);
    // Without a token: again soon, the token comes with the network map.
    else server.retry = this.#deps.clock.after(server.backoff.next(), () => this.#dial(server, server.address));
  }

  #isIdle(server: Foreign): boolean {
    if (server.holders.size > 0 || server.interest.size > 0) return false;
    return this.#deps.clock.now() - server.lastUsedAt >= server.idleMs;
  }

  #remove(server: Foreign): void {
    server.retry?.cancel();
    this.#droppedBefore += server.connection?.dropped ?? 0;
    this.#servers.delete(server.url);
    void server.connection?.close();
  }

  #armSweep(): void {
    this.#sweep?.cancel();
    this.#sweep = this.#deps.clock.after(SWEEP_MS, () => {
      this.#sweep = undefined;
      for (const server of this.#servers.values()) {
        if (!this.#isIdle(server)) continue;
        this.#deps.log.debug("foreign relay idle, closed", { server: server.url });
        this.#remove(server);
      }
      if (this.#servers.size > 0) this.#armSweep();
    });
  }
}
