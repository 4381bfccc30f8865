import { Emitter } from "#base/emitter.ts";
import type { IpAddress } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import { ForeignServers } from "#relay/client/foreign-servers.ts";
import { HomeRelay } from "#relay/client/home-relay.ts";
import type { HomeState, RelayClientEvents } from "#relay/client/relay-client.ts";
import {
  AUTH_TIMEOUT_MS,
  PING_INTERVAL_MS,
  PING_TIMEOUT_MS,
  PROBE_GAP_MS,
  QUICK_PING_TIMEOUT_MS,
  type RelayConnection,
  type RelayConnectionEvents,
} from "#relay/client/relay-connection.ts";
import { RelayError } from "#relay/client/relay-error.ts";
import { PeerId } from "#relay/protocol/peer-id.ts";
import type { Internet } from "./internet.ts";
import { ServerStream, type StreamHost } from "./server-stream.ts";

/** Round trips until datagrams may leave: TCP, TLS, the upgrade. */
const OPEN_ROUND_TRIPS = 3;
/** Datagrams wait so long for a connection that is being made. */
const QUEUE_MAX_AGE: Millis = 250;
const QUEUE_MAX_BYTES = 256 * 1024;

type Receive = (from: PeerId, datagram: Uint8Array) => void;

/** A relay: forwards to whoever is connected, the newest connection of an id counts; keeps nothing for those who are not. */
export class SimRelayServer {
  readonly instanceUrl: string;
  readonly #internet: Internet;
  readonly #links = new Map<PeerId, { readonly stream: ServerStream; readonly receive: Receive }>();
  #running = true;
  forwarded = 0;
  /** Loses the datagram. */
  swallow: (datagram: Uint8Array) => boolean = () => false;

  constructor(internet: Internet, instanceUrl: string) {
    this.#internet = internet;
    this.instanceUrl = instanceUrl;
  }

  get running(): boolean {
    return this.#running;
  }

  get connections(): number {
    return this.#links.size;
  }

  stop(): void {
    this.#running = false;
    for (const { stream } of [...this.#links.values()]) stream.reset();
    this.#links.clear();
  }

  start(): void {
    this.#running = true;
  }

  /** `opened`: what was queued may leave; `ready`: authenticated. */
  connect(
    id: PeerId,
    host: StreamHost,
    handlers: { readonly opened: () => void; readonly ready: () => void; readonly lost: () => void; receive: Receive },
  ): ServerStream {
    const stream = new ServerStream(this.#internet, host, {
      lost: handlers.lost,
      left: () => {
        if (this.#links.get(id)?.stream === stream) this.#links.delete(id);
      },
    });
    let rounds = 0;
    const open = (): void =>
      stream.toServer(() => {
        if (!this.#running) return stream.reset();
        if (++rounds < OPEN_ROUND_TRIPS) return stream.toClient(open);
        stream.toClient(() => {
          // Auth and what waits leave together; the answer takes one more round trip.
          stream.toServer(() => {
            const before = this.#links.get(id);
            this.#links.set(id, { stream, receive: handlers.receive });
            before?.stream.reset();
            stream.toClient(handlers.ready);
          });
          handlers.opened();
        });
      });
    open();
    return stream;
  }

  forward(from: PeerId, to: PeerId, datagram: Uint8Array): void {
    const link = this.#links.get(to);
    if (!link) return this.#internet.onDrop(datagram, "not at the relay");
    if (this.swallow(datagram)) return this.#internet.onDrop(datagram, "swallowed");
    this.forwarded++;
    link.stream.toClient(() => link.receive(from, datagram), datagram);
  }
}

/** RelayConnection over a virtual stream: the same phases, timeouts and signs of life. */
class SimRelayConnection {
  readonly #clock: Clock;
  readonly #internet: Internet;
  readonly #server: SimRelayServer;
  readonly #id: PeerId;
  readonly #events: RelayConnectionEvents;
  readonly #stream: ServerStream;
  #phase: "dialling" | "authenticating" | "ready" | "over" = "dialling";
  #waiting: { readonly to: PeerId; readonly datagram: Uint8Array; readonly at: Millis }[] = [];
  #early: (() => void)[] = [];
  #timer: Timer | undefined;
  #probedAt: Millis = Number.NEGATIVE_INFINITY;
  #rtt: Millis | undefined;
  #openedAt: Millis = 0;
  dropped = 0;

  constructor(
    deps: { readonly clock: Clock; readonly internet: Internet; readonly host: StreamHost },
    server: SimRelayServer,
    id: PeerId,
    events: RelayConnectionEvents,
  ) {
    this.#clock = deps.clock;
    this.#internet = deps.internet;
    this.#server = server;
    this.#id = id;
    this.#events = events;
    this.#arm(AUTH_TIMEOUT_MS, () => this.#lose());
    this.#stream = server.connect(id, deps.host, {
      opened: () => {
        if (this.#phase !== "dialling") return;
        this.#phase = "authenticating";
        this.#openedAt = this.#clock.now();
        const oldest = this.#clock.now() - QUEUE_MAX_AGE;
        for (const { to, datagram, at } of this.#waiting.splice(0)) {
          if (at >= oldest) this.#carry(to, datagram);
          else this.#drop(datagram, "too old at the relay client");
        }
      },
      ready: () => {
        if (this.#phase !== "authenticating") return;
        this.#phase = "ready";
        this.#rtt = this.#clock.now() - this.#openedAt;
        this.#watch();
        events.ready(server.instanceUrl, undefined);
        for (const run of this.#early.splice(0)) run();
      },
      lost: () => this.#lose(),
      receive: (from, datagram) => {
        const run = (): void => {
          if (this.#phase === "ready") this.#events.transport(from, datagram);
        };
        if (this.#phase === "authenticating") this.#early.push(run);
        else run();
      },
    });
  }

  get isReady(): boolean {
    return this.#phase === "ready";
  }

  get isOver(): boolean {
    return this.#phase === "over";
  }

  get instanceUrl(): string | undefined {
    return this.#phase === "ready" ? this.#server.instanceUrl : undefined;
  }

  get rtt(): Millis | undefined {
    return this.#rtt;
  }

  sendTo(to: PeerId, datagram: Uint8Array): boolean {
    const copy = datagram.slice();
    switch (this.#phase) {
      case "over":
        return false;
      case "dialling": {
        this.#waiting.push({ to, datagram: copy, at: this.#clock.now() });
        let bytes = this.#waiting.reduce((sum, { datagram: waiting }) => sum + waiting.length, 0);
        while (bytes > QUEUE_MAX_BYTES) {
          const oldest = this.#waiting.shift()!.datagram;
          bytes -= oldest.length;
          this.#drop(oldest, "no room at the relay client");
        }
        return true;
      }
      default:
        this.#carry(to, copy);
        return true;
    }
  }

  probe(): void {
    if (this.#phase !== "ready" || this.#clock.now() - this.#probedAt < PROBE_GAP_MS) return;
    this.#probedAt = this.#clock.now();
    this.#ping(QUICK_PING_TIMEOUT_MS);
  }

  async close(): Promise<void> {
    this.abandon();
  }

  abandon(): void {
    if (this.#phase === "over") return;
    this.#over();
    this.#stream.leave();
  }

  /** The machine's address changed under the connection. */
  get live(): boolean {
    return this.#stream.live;
  }

  mute(): void {
    this.#stream.mute();
  }

  subscribe(): void {}

  unsubscribe(): void {}

  #carry(to: PeerId, datagram: Uint8Array): void {
    this.#stream.toServer(() => this.#server.forward(this.#id, to, datagram), datagram);
  }

  #watch(): void {
    this.#arm(PING_INTERVAL_MS, () => this.#ping(PING_TIMEOUT_MS));
  }

  #ping(timeoutMs: Millis): void {
    const sentAt = this.#clock.now();
    this.#arm(timeoutMs, () => this.#lose());
    this.#stream.toServer(() =>
      this.#stream.toClient(() => {
        if (this.#phase !== "ready") return;
        this.#rtt = this.#clock.now() - sentAt;
        this.#watch();
      }),
    );
  }

  #arm(delay: Millis, callback: () => void): void {
    this.#timer?.cancel();
    this.#timer = this.#clock.after(delay, callback);
  }

  #lose(): void {
    if (this.#phase === "over") return;
    this.#over();
    this.#stream.leave();
    this.#events.lost(new RelayError("relay-unreachable", "connection closed", { retryable: true }));
  }

  #over(): void {
    this.#phase = "over";
    this.#timer?.cancel();
    for (const { datagram } of this.#waiting.splice(0)) this.#drop(datagram, "the relay connection ended");
  }

  #drop(datagram: Uint8Array, why: string): void {
    this.dropped++;
    this.#internet.onDrop(datagram, why);
  }
}

export interface SimRelayClientDeps {
  readonly clock: Clock;
  readonly internet: Internet;
  readonly host: StreamHost;
  readonly servers: readonly SimRelayServer[];
  readonly key: PublicKey;
}

/** RelayClient without WebSockets: its choice of a home and its foreign connections are the real ones. */
export class SimRelayClient {
  readonly events = new Emitter<RelayClientEvents>();
  readonly #deps: SimRelayClientDeps;
  readonly #home: HomeRelay;
  readonly #foreign: ForeignServers;
  readonly #byKey = new Map<PublicKey, PeerId>();
  readonly #byId = new Map<PeerId, PublicKey>();
  readonly #alive = new Set<SimRelayConnection>();
  /** Sees every datagram the agent sends. */
  onSend: (to: PublicKey) => void = () => {};

  constructor(deps: SimRelayClientDeps) {
    this.#deps = deps;
    const { clock } = deps;
    this.#home = new HomeRelay(
      { clock, log: silentLogger, dial: (url, events) => this.#dial(url, events) },
      {
        connected: (_, instanceUrl) => {
          this.#foreign.noteHome(instanceUrl);
          this.events.emit("home", { connected: true, instanceUrl });
        },
        transport: (from, payload, server) => this.#deliver(from, payload, server),
        presence: () => {},
        lost: (error, server) => {
          if (server !== undefined) this.events.emit("lost", { server });
          this.events.emit("home", { connected: false, error });
        },
      },
    );
    this.#foreign = new ForeignServers(
      {
        clock,
        log: silentLogger,
        isHome: (url) => this.#home.covers(url),
        dial: (url, _, events) => this.#dial(url, events),
      },
      {
        dialled: () => {},
        transport: (from, payload, server) => this.#deliver(from, payload, server),
        presence: () => {},
        connected: (server) => this.events.emit("foreign", { server }),
        lost: (server) => this.events.emit("lost", { server }),
      },
    );
  }

  get home(): HomeState {
    const connection = this.#home.connection;
    const { instanceUrl, rtt } = connection ?? {};
    return {
      connected: connection !== undefined,
      ...(instanceUrl !== undefined && { instanceUrl }),
      ...(rtt !== undefined && { rtt }),
    };
  }

  /** Connected to a home over a connection that carries. */
  get live(): boolean {
    return (this.#home.connection as SimRelayConnection | undefined)?.live === true;
  }

  /** Connections that are open or being made. */
  get connections(): number {
    for (const connection of this.#alive) if (connection.isOver) this.#alive.delete(connection);
    return this.#alive.size;
  }

  isConnected(server: string): boolean {
    return this.home.instanceUrl === server || this.#foreign.isConnected(server);
  }

  setServers(urls: readonly string[]): void {
    this.#home.setServers(urls);
  }

  setToken(): void {
    this.#home.noteToken();
  }

  registerPeer(key: PublicKey): void {
    this.#byKey.set(key, PeerId.of(key));
    this.#byId.set(PeerId.of(key), key);
  }

  unregisterPeer(key: PublicKey): void {
    const id = this.#byKey.get(key);
    this.#foreign.releaseAll(key);
    this.#byKey.delete(key);
    if (id) this.#byId.delete(id);
  }

  send(key: PublicKey, datagram: Uint8Array, server?: string): boolean {
    this.onSend(key);
    const id = this.#byKey.get(key);
    const home = this.#home.connection;
    const connection =
      server === undefined || server === home?.instanceUrl ? home : this.#foreign.use(server, this.#deps.clock.now());
    const sent = id !== undefined && (connection as SimRelayConnection | undefined)?.sendTo(id, datagram) === true;
    if (!sent) this.#deps.internet.onDrop(datagram, "no relay connection");
    return sent;
  }

  ensureServer(server: string, address?: IpAddress, peer?: PublicKey): void {
    if (this.home.instanceUrl !== server) this.#foreign.ensure(server, address, peer);
  }

  releaseServer(server: string, peer: PublicKey): void {
    this.#foreign.release(server, peer);
  }

  noteNetworkChange(): void {
    this.#home.noteNetworkChange();
    this.#foreign.noteNetworkChange();
  }

  retryNow(): void {
    this.#home.retryNow();
    this.#foreign.retryNow();
  }

  probe(): void {
    this.#home.connection?.probe();
    this.#foreign.probe();
  }

  mute(): void {
    for (const connection of this.#alive) connection.mute();
  }

  async close(): Promise<void> {
    await Promise.all([this.#home.close(), this.#foreign.close()]);
  }

  #dial(url: string, events: RelayConnectionEvents): RelayConnection | undefined {
    const server = this.#deps.servers.find(({ instanceUrl }) => instanceUrl === url);
    if (!server) return undefined;
    const id = PeerId.of(this.#deps.key);
    const connection: SimRelayConnection = new SimRelayConnection(this.#deps, server, id, {
      ...events,
      ready: (instanceUrl, address) => events.ready(instanceUrl, address),
      lost: (error) => {
        this.#alive.delete(connection);
        events.lost(error);
      },
    });
    this.#alive.add(connection);
    return connection as unknown as RelayConnection;
  }

  #deliver(from: PeerId, datagram: Uint8Array, server: string): void {
    const key = this.#byId.get(from);
    if (key) this.events.emit("datagram", { from: key, datagram, server });
  }
}
