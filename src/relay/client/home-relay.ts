import { Backoff } from "#base/backoff.ts";
import type { IpAddress } from "#base/ip.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import type { PeerId } from "../protocol/peer-id.ts";
import type { RelayConnection, RelayConnectionEvents } from "./relay-connection.ts";
import { RelayError } from "./relay-error.ts";

/** Servers dialled at the same time. */
export const PARALLEL_DIALS = 7;
/** One round over all servers. */
export const SELECTION_TIMEOUT_MS: Millis = 30_000;
/** The first attempt after the loss of a connection that had lasted comes within this time. */
export const QUICK_REDIAL_MS: Millis = 250;
/** A connection whose place another one took is still read for so long. */
export const RETIRE_MS: Millis = 3_000;
/** Time for a successor that is authenticating when the old connection ends. */
export const ORPHAN_MS: Millis = 1_000;
/** A home that lasted so long starts the backoff anew. */
export const STABLE_MS: Millis = 10_000;

export interface HomeRelayDeps {
  readonly clock: Clock;
  readonly log: Logger;
  /** Undefined while there is no token. */
  readonly dial: (url: string, events: RelayConnectionEvents) => RelayConnection | undefined;
}

export interface HomeRelayEvents {
  connected(connection: RelayConnection, instanceUrl: string): void;
  transport(from: PeerId, payload: Uint8Array, server: string): void;
  presence(peers: readonly PeerId[], online: boolean, connection: RelayConnection, server: string): void;
  /** `server` is the instance URL that was connected; undefined when a round of attempts failed. */
  lost(error: RelayError, server: string | undefined): void;
}

interface Selection {
  readonly attempts: Set<RelayConnection>;
  readonly left: string[];
  readonly timer: Timer;
}

type State =
  /** No servers or no token. */
  | { readonly kind: "off" }
  | ({ readonly kind: "selecting" } & Selection)
  | {
      readonly kind: "connected";
      readonly connection: RelayConnection;
      readonly url: string;
      readonly instanceUrl: string;
      readonly address: IpAddress | undefined;
      readonly since: Millis;
      /** Dialled after a change of network, to take the place of `connection`. */
      readonly successor?: RelayConnection;
      /** `connection` is gone, but the successor is authenticating: the loss is told when this fires. */
      readonly orphaned?: Timer;
    }
  | { readonly kind: "waiting"; readonly timer: Timer; readonly first: string | undefined }
  | { readonly kind: "closed" };

/**
 * Keeps one connection to one of the network's relays.
 *
 *   off ──servers and token──> selecting ──first AuthResponse──> connected ──lost──> waiting ──> selecting
 *
 * Selecting dials all servers side by side; the first to authenticate wins, the others are dropped. After a loss the same
 * server is tried first, at once; then all, with backoff. On a change of network, and when a pong is late, a second connection to the same server is
 * opened before the old one is given up: the relay swaps them and tells nobody (relay.md, 15.1.5).
 */
export class HomeRelay {
  readonly #deps: HomeRelayDeps;
  readonly #events: HomeRelayEvents;
  /** Relayed peers must be back within 3 s of the relay: no pause is longer than 2.25 s. */
  readonly #backoff = new Backoff({ start: 500, factor: 2, ceiling: 1_800, jitter: 0.25 });
  #servers: readonly string[] = [];
  #state: State = { kind: "off" };
  /** The latest home, as configured and as it names itself. */
  #last: { readonly url: string; readonly instanceUrl: string } | undefined;
  /** Since the present selection began. */
  #tokenChanged = false;
  /** By connections that are gone. */
  #droppedBefore = 0;

  constructor(deps: HomeRelayDeps, events: HomeRelayEvents) {
    this.#deps = deps;
    this.#events = events;
  }

  get connection(): RelayConnection | undefined {
    return this.#state.kind === "connected" ? this.#state.connection : undefined;
  }

  /** Datagrams dropped in queues. */
  get dropped(): number {
    return this.#droppedBefore + (this.connection?.dropped ?? 0);
  }

  get address(): IpAddress | undefined {
    return this.#state.kind === "connected" ? this.#state.address : undefined;
  }

  /**
   * Sends over the home connection. While a successor authenticates over both: the relay drops one of the two at a moment
   * unknown to us, and WireGuard drops what comes twice.
   */
  send(header: Uint8Array, datagram: Uint8Array): boolean {
    const state = this.#state;
    if (state.kind !== "connected") return false;
    const sent = state.connection.send(header, datagram);
    return (state.successor?.isOpen === true && state.successor.send(header, datagram)) || sent;
  }

  /**
   * This relay is home, or may be once an attempt succeeds. Another connection to it would take home's place there: the relay
   * keeps one for each agent.
   */
  covers(instanceUrl: string): boolean {
    if (this.#state.kind === "connected") return this.#state.instanceUrl === instanceUrl;
    if (this.#state.kind !== "selecting" && this.#state.kind !== "waiting") return false;
    const last = this.#last;
    return (
      this.#servers.includes(instanceUrl) || (last?.instanceUrl === instanceUrl && this.#servers.includes(last.url))
    );
  }

  setServers(urls: readonly string[]): void {
    const unchanged = urls.length === this.#servers.length && urls.every((url) => this.#servers.includes(url));
    this.#servers = [...new Set(urls)];
    if (unchanged || this.#state.kind === "connected" || this.#state.kind === "closed") return;
    this.#backoff.reset();
    this.#select(this.#servers);
  }

  /** There is a new token: what failed for the old one may succeed now. */
  noteToken(): void {
    if (this.#state.kind === "waiting" || this.#state.kind === "off") this.#select(this.#servers);
    else if (this.#state.kind === "selecting") this.#tokenChanged = true;
  }

  noteNetworkChange(): void {
    this.#backoff.reset();
    if (this.#state.kind === "waiting") this.#select(this.#servers);
    else if (this.#state.kind === "connected") this.#replace(this.#state);
  }

  /** Another server answers again, and the relays may be back with it: ends the pause before the next round. */
  retryNow(): void {
    if (this.#state.kind === "waiting") this.#select(this.#servers);
  }

  async close(): Promise<void> {
    const state = this.#state;
    this.#leave();
    this.#state = { kind: "closed" };
    if (state.kind === "connected") await state.connection.close();
  }

  #select(urls: readonly string[]): void {
    this.#leave();
    if (urls.length === 0) {
      this.#state = { kind: "off" };
      return;
    }
    const timer = this.#deps.clock.after(SELECTION_TIMEOUT_MS, () => {
      this.#fail(new RelayError("relay-none-reachable", `no relay within ${SELECTION_TIMEOUT_MS} ms`));
    });
    this.#tokenChanged = false;
    const selection: Selection = { attempts: new Set(), left: [...urls], timer };
    this.#state = { kind: "selecting", ...selection };
    this.#dialMore(selection, undefined);
  }

  /** Keeps seven attempts going; when there are none the round has failed. */
  #dialMore(selection: Selection, error: RelayError | undefined): void {
    while (selection.attempts.size < PARALLEL_DIALS) {
      const url = selection.left.shift();
      if (url === undefined) break;
      const attempt = this.#dial(url, (reason) => {
        if (!attempt || !selection.attempts.delete(attempt)) return;
        this.#deps.log.debug("relay not reached", { server: url, err: reason });
        this.#dialMore(selection, reason);
      });
      if (attempt) selection.attempts.add(attempt);
    }
    if (selection.attempts.size > 0) return;
    // Nothing was dialled: there is no token yet. It comes with `noteToken`.
    if (!error) {
      this.#leave();
      this.#state = { kind: "off" };
      return;
    }
    this.#fail(error);
  }

  #fail(error: RelayError): void {
    this.#leave();
    this.#wait(this.#tokenChanged ? 0 : this.#backoff.next(), undefined);
    this.#events.lost(error, undefined);
  }

  #dial(url: string, failed: (error: RelayError) => void): RelayConnection | undefined {
    const connection = this.#deps.dial(url, {
      ready: (instanceUrl, address) => connection && this.#noteReady(connection, url, instanceUrl, address),
      transport: (from, payload) => this.#events.transport(from, payload, connection?.instanceUrl ?? url),
      presence: (peers, online) =>
        connection && this.#events.presence(peers, online, connection, connection.instanceUrl ?? url),
      late: () => {
        // TCP that lost packets during a break of the link may need as long again afterwards; a new connection does not.
        const state = this.#state;
        if (state.kind === "connected" && state.connection === connection && !state.successor) this.#replace(state);
      },
      lost: (error) => {
        if (this.#state.kind === "connected" && this.#state.connection === connection) this.#noteLost(error);
        else failed(error);
      },
    });
    return connection;
  }

  #noteReady(connection: RelayConnection, url: string, instanceUrl: string, address: IpAddress | undefined): void {
    const state = this.#state;
    const now = this.#deps.clock.now();
    if (state.kind === "connected" && state.successor === connection) {
      const { successor, orphaned, ...rest } = state;
      orphaned?.cancel();
      if (state.instanceUrl === instanceUrl) {
        // The relay has dropped the old connection already; no Close, which would tell the others that we left. What it
        // wrote before is still on the way.
        const old = state.connection;
        this.#droppedBefore += old.dropped;
        this.#deps.clock.after(RETIRE_MS, () => old.abandon());
        this.#state = { ...rest, connection, address, since: now };
        this.#events.connected(connection, instanceUrl);
      } else {
        // The name leads elsewhere now; the old connection is left only when it fails.
        this.#state = rest;
        void connection.close();
        if (orphaned) this.#noteLost(new RelayError("relay-unreachable", "connection replaced", { retryable: true }));
        else state.connection.probe();
      }
      return;
    }
    if (state.kind !== "selecting" || !state.attempts.delete(connection)) return void connection.close();
    this.#leave();
    this.#state = { kind: "connected", connection, url, instanceUrl, address, since: now };
    this.#last = { url, instanceUrl };
    this.#deps.log.info("relay connected", { server: instanceUrl, address });
    this.#events.connected(connection, instanceUrl);
  }

  #noteLost(error: RelayError): void {
    const state = this.#state;
    if (state.kind !== "connected") return;
    const { instanceUrl, url, successor } = state;
    if (successor?.isOpen && !state.orphaned) {
      const orphaned = this.#deps.clock.after(ORPHAN_MS, () => this.#noteLost(error));
      this.#state = { ...state, orphaned };
      return;
    }
    state.orphaned?.cancel();
    this.#droppedBefore += state.connection.dropped;
    this.#deps.log.info("relay lost", { server: instanceUrl, err: error });
    if (successor) {
      // It is on its way already: it becomes the only attempt of a selection.
      const timer = this.#deps.clock.after(SELECTION_TIMEOUT_MS, () =>
        this.#fail(new RelayError("relay-none-reachable", `no relay within ${SELECTION_TIMEOUT_MS} ms`)),
      );
      const left = this.#servers.filter((other) => other !== url);
      this.#state = { kind: "selecting", attempts: new Set([successor]), left, timer };
    } else {
      const lasted = this.#deps.clock.now() - state.since >= STABLE_MS;
      if (lasted) this.#backoff.reset();
      const quick = lasted && this.#servers.includes(url);
      this.#wait(quick ? Math.random() * QUICK_REDIAL_MS : this.#backoff.next(), quick ? url : undefined);
    }
    this.#events.lost(error, instanceUrl);
  }

  /** `first`: the server to try before all others. */
  #wait(delay: Millis, first: string | undefined): void {
    const timer = this.#deps.clock.after(delay, () =>
      this.#select(first === undefined ? this.#servers : [first, ...this.#servers.filter((url) => url !== first)]),
    );
    this.#state = { kind: "waiting", timer, first };
  }

  #replace(state: State & { readonly kind: "connected" }): void {
    if (state.orphaned) return;
    state.successor?.abandon();
    const successor = this.#dial(state.url, (error) => {
      // Not reached in the new network: does the old connection still live?
      if (this.#state.kind === "connected" && this.#state.successor === successor) {
        const { successor: _, orphaned, ...rest } = this.#state;
        orphaned?.cancel();
        this.#state = rest;
        if (orphaned) this.#noteLost(error);
        else rest.connection.probe();
      } else if (this.#state.kind === "selecting" && successor && this.#state.attempts.delete(successor)) {
        this.#dialMore(this.#state, error);
      }
    });
    if (successor) this.#state = { ...state, successor };
  }

  /** Ends timers and attempts of the present state; a home connection is the caller's. */
  #leave(): void {
    const state = this.#state;
    if (state.kind === "waiting") state.timer.cancel();
    if (state.kind === "connected") {
      state.successor?.abandon();
      state.orphaned?.cancel();
    }
    if (state.kind !== "selecting") return;
    state.timer.cancel();
    for (const attempt of state.attempts) attempt.abandon();
  }
}
