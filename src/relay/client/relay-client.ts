import { Emitter } from "#base/emitter.ts";
import { messageOf } from "#base/errors.ts";
import type { IpAddress } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import { encodeRelayToken, type RelayToken } from "#base/relay-token.ts";
import { hashText, SlotIndex, Slots } from "#base/slot-index.ts";
import type { Clock, Millis } from "#base/time.ts";
import { encodeTransportHeader } from "../protocol/messages.ts";
import { PeerId } from "../protocol/peer-id.ts";
import { parseRelayUrl } from "../protocol/relay-url.ts";
import { ForeignServers } from "./foreign-servers.ts";
import { HomeRelay } from "./home-relay.ts";
import { RelayConnection, type RelayConnectionEvents } from "./relay-connection.ts";
import type { RelayError } from "./relay-error.ts";

export interface RelayClientDeps {
  readonly clock: Clock;
  readonly log: Logger;
}

export interface RelayClientOptions {
  /** Our own. */
  readonly key: PublicKey;
  /** PEM of the authority to trust instead of the system's. */
  readonly ca?: string;
}

export interface RelayClientEvents {
  /** A datagram of a registered peer. `server` is the instance URL it came over; the bytes are the listener's. */
  readonly datagram: { readonly from: PublicKey; readonly datagram: Uint8Array; readonly server: string };
  /** The home relay is there, or not (any more). Comes after every round of failed attempts as well. */
  readonly home: { readonly connected: boolean; readonly instanceUrl?: string; readonly error?: RelayError };
  /** A subscribed peer appeared at or left a relay; repeats are possible. */
  readonly presence: { readonly peer: PublicKey; readonly online: boolean; readonly server: string };
  /** Another agent's home relay is there: datagrams to it leave at once. */
  readonly foreign: { readonly server: string };
  /** The connection to a relay, home or foreign, is gone: its datagrams take no way now. */
  readonly lost: { readonly server: string };
}

/** The home relay, as told to other agents. */
export interface HomeState {
  readonly connected: boolean;
  readonly instanceUrl?: string;
  /** Where the relay was reached. */
  readonly address?: IpAddress;
  /** Round trip to it; undefined until measured. */
  readonly rtt?: Millis;
}

export interface RelayClientCounters {
  readonly sent: number;
  readonly received: number;
  /** Datagrams for which there was no connection or no room. */
  readonly dropped: number;
  /** Datagrams of peers that are not registered. */
  readonly unknownSender: number;
}

/** Peers whose headers are kept, and whose names are. */
const USED_MAX = 4096;

interface UsedPeer {
  readonly id: PeerId;
  /** The first 38 bytes of a Transport to it. */
  readonly header: Buffer;
}

/**
 * An agent's side of the relays: one home connection, chosen among the servers of the network, and connections to other
 * agents' home relays as they are needed (relay.md, section 7 and 15.1).
 *
 * Datagrams of registered peers are delivered whenever they come, and may be sent without asking whether the peer is there:
 * the relay forwards without any opening.
 */
export class RelayClient implements AsyncDisposable {
  readonly events = new Emitter<RelayClientEvents>();
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #options: RelayClientOptions;
  readonly #peerId: PeerId;
  readonly #home: HomeRelay;
  readonly #foreign: ForeignServers;
  readonly #registered = new RegisteredPeers();
  /** Most peers sleep: what sending needs is made for those that are sent to. */
  readonly #used = new Map<PublicKey, UsedPeer>();
  readonly #homeInterest = new Set<PeerId>();
  readonly #presenceless = new PresencelessServers();
  #token: Uint8Array | undefined;
  #closed = false;
  readonly #counters = { sent: 0, received: 0, dropped: 0, unknownSender: 0 };

  constructor(deps: RelayClientDeps, options: RelayClientOptions) {
    this.#clock = deps.clock;
    this.#log = deps.log;
    this.#options = options;
    this.#peerId = PeerId.of(options.key);
    this.#home = new HomeRelay(
      { clock: deps.clock, log: deps.log, dial: (url, events) => this.#dial(url, undefined, events) },
      {
        connected: (connection, instanceUrl) => {
          const interest = this.#foreign.noteHome(instanceUrl);
          this.#subscribe(connection, instanceUrl, [...new Set([...this.#homeInterest, ...interest])]);
          this.events.emit("home", { connected: true, instanceUrl });
        },
        transport: (from, payload, server) => this.#deliver(from, payload, server),
        presence: (peers, online, connection, server) => this.#notePresence(peers, online, connection, server),
        lost: (error, server) => {
          if (server !== undefined) {
            this.#presenceless.noteLost(server, this.#clock.now());
            this.events.emit("lost", { server });
          }
          this.events.emit("home", { connected: false, error });
        },
      },
    );
    this.#foreign = new ForeignServers(
      {
        clock: deps.clock,
        log: deps.log,
        isHome: (url) => this.#home.covers(url),
        dial: (url, address, events) => this.#dial(url, address, events),
      },
      {
        dialled: (connection, server, interest) => this.#subscribe(connection, server, interest),
        transport: (from, payload, server) => this.#deliver(from, payload, server),
        presence: (peers, online, connection, server) => this.#notePresence(peers, online, connection, server),
        connected: (server) => this.events.emit("foreign", { server }),
        lost: (server) => {
          this.#presenceless.noteLost(server, this.#clock.now());
          this.events.emit("lost", { server });
        },
      },
    );
  }

  get home(): HomeState {
    const { connection, address } = this.#home;
    const instanceUrl = connection?.instanceUrl;
    const rtt = connection?.rtt;
    return {
      connected: connection !== undefined,
      ...(instanceUrl !== undefined && { instanceUrl }),
      ...(address !== undefined && { address }),
      ...(rtt !== undefined && { rtt }),
    };
  }

  /** True when datagrams to this relay leave at once. */
  isConnected(server: string): boolean {
    return this.home.instanceUrl === server || this.#foreign.isConnected(server);
  }

  counters(): RelayClientCounters {
    const inQueues = this.#home.dropped + this.#foreign.dropped;
    return { ...this.#counters, dropped: this.#counters.dropped + inQueues };
  }

  /** The servers of the network, in no order. A live home connection stays whatever the list says. */
  setServers(urls: readonly string[]): void {
    const usable = urls.filter((url) => {
      try {
        parseRelayUrl(url);
        return true;
      } catch (err) {
        this.#log.warn("relay address ignored", { err });
        return false;
      }
    });
    this.#home.setServers(usable);
  }

  /** The token for the next connections; live ones keep theirs. Throws RelayTokenError when it is malformed. */
  setToken(token: RelayToken): void {
    this.#token = encodeRelayToken(token);
    this.#home.noteToken();
    this.#foreign.retryNow();
  }

  /** Lets datagrams of a peer in, from now on and over every relay. */
  registerPeer(key: PublicKey): void {
    this.#registered.add(key);
  }

  unregisterPeer(key: PublicKey): void {
    if (!this.#registered.has(PeerId.of(key))) return;
    this.unsubscribe([key]);
    this.#foreign.releaseAll(key);
    this.#registered.remove(key);
    this.#used.delete(key);
  }

  /**
   * Sends one datagram over the home relay or another one, in this turn of the event loop when connected; to a foreign relay
   * that is being dialled it waits, bounded in bytes and age. The datagram is copied. False when it was dropped.
   */
  send(key: PublicKey, datagram: Uint8Array, server?: string): boolean {
    const peer = this.#use(key);
    const isHome = server === undefined || server === this.#home.connection?.instanceUrl;
    const way = isHome ? this.#home : this.#foreign.use(server, this.#clock.now());
    if (!peer || !way?.send(peer.header, datagram)) {
      this.#counters.dropped++;
      return false;
    }
    this.#counters.sent++;
    return true;
  }

  /**
   * Connects to another agent's home relay, if that is not our own and home is not just trying it. `address` is dialled first,
   * the host name afterwards.
   * With `peer` the connection is kept until `releaseServer` or `unregisterPeer`; without, while it is used.
   */
  ensureServer(server: string, address?: IpAddress, peer?: PublicKey): void {
    if (this.#closed || this.home.instanceUrl === server) return;
    try {
      parseRelayUrl(server);
    } catch (err) {
      this.#log.info("relay address of a peer ignored", { err });
      return;
    }
    this.#foreign.ensure(server, address, peer);
  }

  /** `peer` needs this relay no longer; after a minute without use the connection is closed. */
  releaseServer(server: string, peer: PublicKey): void {
    this.#foreign.release(server, peer);
  }

  /** Asks to be told when these registered peers come to or leave a relay; default the home relay, whichever it is. */
  subscribe(keys: readonly PublicKey[], server?: string): void {
    const ids = this.#idsOf(keys);
    const home = this.#home.connection;
    if (server === undefined || server === home?.instanceUrl) {
      for (const id of ids) this.#homeInterest.add(id);
      if (home?.instanceUrl !== undefined) this.#subscribe(home, home.instanceUrl, ids);
    } else {
      const connection = this.#foreign.addInterest(server, ids);
      if (connection) this.#subscribe(connection, server, ids);
    }
  }

  /** Ends the interest; on every relay unless one is named. */
  unsubscribe(keys: readonly PublicKey[], server?: string): void {
    const ids = this.#idsOf(keys);
    const home = this.#home.connection;
    if (server === undefined || server === home?.instanceUrl) {
      const here = home?.instanceUrl;
      const asForeign = (id: PeerId): boolean => here !== undefined && this.#foreign.isInterested(here, id);
      const known = ids.filter((id) => this.#homeInterest.delete(id) || asForeign(id));
      if (known.length > 0) home?.unsubscribe(known);
    }
    this.#foreign.dropInterest(ids, server);
  }

  /** The machine's addresses or routes changed: try now, and make sure that what is connected still works. */
  noteNetworkChange(): void {
    this.#home.noteNetworkChange();
    this.#foreign.noteNetworkChange();
  }

  /** Another server answers again, and the relays may be back with it: what waits for its next attempt is dialled now. */
  retryNow(): void {
    this.#home.retryNow();
    this.#foreign.retryNow();
  }

  /** Something else suggests that the network does not carry any more: the relays are asked for a sign of life. */
  probe(): void {
    this.#home.connection?.probe();
    this.#foreign.probe();
  }

  /** Says Close to all relays; idempotent. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await Promise.all([this.#home.close(), this.#foreign.close()]);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Undefined while there is no usable token. */
  #dial(url: string, address: IpAddress | undefined, events: RelayConnectionEvents): RelayConnection | undefined {
    if (!this.#token) return undefined;
    const { ca } = this.#options;
    try {
      return new RelayConnection(
        { clock: this.#clock },
        {
          target: parseRelayUrl(url),
          peerId: this.#peerId,
          token: this.#token,
          ...(address !== undefined && { address }),
          ...(ca !== undefined && { ca }),
        },
        events,
      );
    } catch (err) {
      this.#log.warn("relay cannot be dialled", { server: url, reason: messageOf(err) });
      return undefined;
    }
  }

  #deliver(from: PeerId, payload: Uint8Array, server: string): void {
    const key = this.#registered.get(from);
    if (key === undefined) {
      this.#counters.unknownSender++;
      return;
    }
    this.#counters.received++;
    this.events.emit("datagram", { from: key, datagram: payload, server });
  }

  /** Undefined when the peer is not registered. */
  #use(key: PublicKey): UsedPeer | undefined {
    const used = this.#used.get(key);
    if (used) return used;
    const id = PeerId.of(key);
    if (!this.#registered.has(id)) return undefined;
    if (this.#used.size >= USED_MAX) this.#used.clear();
    const peer = { id, header: encodeTransportHeader(id) };
    this.#used.set(key, peer);
    return peer;
  }

  #subscribe(connection: RelayConnection, server: string, ids: readonly PeerId[]): void {
    if (ids.length === 0 || this.#presenceless.has(server, this.#clock.now())) return;
    this.#presenceless.noteSubscribe(server, this.#clock.now());
    connection.subscribe(ids);
  }

  #notePresence(peers: readonly PeerId[], online: boolean, connection: RelayConnection, server: string): void {
    this.#presenceless.noteAnswer(server);
    const wanted = peers.filter((id) => this.#homeInterest.has(id) || this.#foreign.isInterested(server, id));
    // Online is told once per subscription.
    if (!online) this.#subscribe(connection, server, wanted);
    for (const id of wanted) {
      const peer = this.#registered.get(id);
      if (peer !== undefined) this.events.emit("presence", { peer, online, server });
    }
  }

  #idsOf(keys: readonly PublicKey[]): PeerId[] {
    return keys.map(PeerId.of).filter((id) => this.#registered.has(id));
  }
}

/**
 * Registered peers by their names on a relay. A name is not kept, its hash is: names are made of keys, and most peers are never
 * heard. Those heard lately are found without making theirs anew.
 */
class RegisteredPeers {
  readonly #keys = new Slots<PublicKey>();
  readonly #byId = new SlotIndex();
  readonly #heard = new Map<PeerId, PublicKey>();

  has(id: PeerId): boolean {
    return this.#heard.has(id) || this.#find(id) >= 0;
  }

  get(id: PeerId): PublicKey | undefined {
    const heard = this.#heard.get(id);
    if (heard !== undefined) return heard;
    const key = this.#keys.at(this.#find(id));
    if (key === undefined) return undefined;
    if (this.#heard.size >= USED_MAX) this.#heard.clear();
    this.#heard.set(id, key);
    return key;
  }

  add(key: PublicKey): void {
    const id = PeerId.of(key);
    if (this.#find(id) < 0) this.#byId.add(hashText(id), this.#keys.take(key));
  }

  remove(key: PublicKey): void {
    const id = PeerId.of(key);
    const slot = this.#find(id);
    this.#heard.delete(id);
    this.#byId.remove(hashText(id), slot);
    this.#keys.give(slot);
  }

  #find(id: PeerId): number {
    return this.#byId.find(hashText(id), (slot) => PeerId.of(this.#keys.at(slot)!) === id);
  }
}

/** A server that drops us so soon after the first Subscribe, twice, does not know presence (relay.md, section 16). */
const PRESENCELESS_MS: Millis = 2_000;
const PRESENCELESS_STRIKES = 2;
/** Then it is asked again: it may have been updated. */
const PRESENCELESS_MEMORY_MS: Millis = 3_600_000;

/** Remembers servers older than 0.51, which end a connection that subscribes. */
class PresencelessServers {
  readonly #seen = new Map<string, { subscribedAt: Millis; strikes: number }>();

  has(server: string, now: Millis): boolean {
    const entry = this.#seen.get(server);
    return (
      entry !== undefined && entry.strikes >= PRESENCELESS_STRIKES && now - entry.subscribedAt < PRESENCELESS_MEMORY_MS
    );
  }

  noteSubscribe(server: string, now: Millis): void {
    const entry = this.#seen.get(server) ?? { subscribedAt: now, strikes: 0 };
    entry.subscribedAt = now;
    this.#seen.set(server, entry);
  }

  noteAnswer(server: string): void {
    this.#seen.delete(server);
  }

  noteLost(server: string, now: Millis): void {
    const entry = this.#seen.get(server);
    if (!entry || entry.strikes >= PRESENCELESS_STRIKES) return;
    if (now - entry.subscribedAt <= PRESENCELESS_MS) entry.strikes++;
    else this.#seen.delete(server);
  }
}
