import { randomBytes } from "node:crypto";
import { Emitter } from "#base/emitter.ts";
import { type Endpoint, formatEndpoint, sameEndpoint } from "#base/ip.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import type { SendDatagram } from "./ice-agent.ts";
import { encodeStun, STUN_METHOD_BINDING, type StunMessage, type TransactionId } from "./stun-message.ts";

export interface MappedAddressCacheDeps {
  readonly clock: Clock;
  readonly send: SendDatagram;
  /** Cryptographic randomness; default node:crypto. */
  readonly random?: (bytes: number) => Uint8Array;
}

export interface MappedAddressEvents {
  /** A server answered for the first time, or with another address than before (a rebinding, another network). */
  changed: { readonly server: Endpoint; readonly mapped: Endpoint; readonly previous: Endpoint | undefined };
  /** A server answered, whatever it had answered before. */
  answered: { readonly server: Endpoint; readonly mapped: Endpoint };
  /** A server did not answer a query. */
  silent: { readonly server: Endpoint };
}

/** What is known of one server. */
export interface StunServerReport {
  readonly server: Endpoint;
  /** What it last saw of us; undefined when it never answered in this network. */
  readonly mapped: Endpoint | undefined;
  /** Clock of that answer. */
  readonly answeredAt: Millis | undefined;
  /** Round trip of that answer; undefined when the query had to be repeated. */
  readonly rtt: Millis | undefined;
  /** Clock of the end of the last query, when that got no answer. */
  readonly silentAt: Millis | undefined;
}

/** An answer is used without asking again for this long (signal-and-peer-connection.md, 3.2). */
export const MAPPED_ADDRESS_LIFETIME: Millis = 25_000;
/** When a query is sent, counted from its start; faster at first than RFC 8489, 6.2.1, because a wake waits for it. */
export const QUERY_SCHEDULE: readonly Millis[] = [0, 100, 300, 700, 1500];
/** When it is given up. */
export const QUERY_TIMEOUT: Millis = 3_100;
/** Most servers remembered; the one asked longest ago goes. */
export const MAPPED_ADDRESS_SERVERS_MAX = 32;

interface Query {
  readonly server: Endpoint;
  readonly transactionId: TransactionId;
  readonly startedAt: Millis;
  readonly answer: Promise<Endpoint | undefined>;
  readonly settle: (mapped: Endpoint | undefined) => void;
  readonly schedule: readonly Millis[];
  sent: number;
  timer: Timer | undefined;
}

interface Known {
  readonly server: Endpoint;
  readonly mapped: Endpoint;
  readonly at: Millis;
  readonly rtt: Millis | undefined;
}

/**
 * What STUN servers see as the address of the shared socket, one answer per server for all peers. A timer exists only
 * while a query is under way.
 */
export class MappedAddressCache {
  readonly events = new Emitter<MappedAddressEvents>();
  readonly #clock: Clock;
  readonly #send: SendDatagram;
  readonly #random: (bytes: number) => Uint8Array;
  readonly #known = new Map<string, Known>();
  /** Servers whose last query ended without an answer, and when. */
  readonly #silent = new Map<string, Millis>();
  readonly #byServer = new Map<string, Query>();
  readonly #byTransaction = new Map<TransactionId, Query>();
  #closed = false;

  constructor(deps: MappedAddressCacheDeps) {
    this.#clock = deps.clock;
    this.#send = deps.send;
    this.#random = deps.random ?? randomBytes;
  }

  /**
   * The mapped address of the socket of the server's family; undefined when the server does not answer in 3.1 s or the
   * cache is closed. An answer younger than 25 s is given at once, simultaneous callers share one query.
   */
  query(server: Endpoint): Promise<Endpoint | undefined> {
    if (this.#closed) return Promise.resolve(undefined);
    const known = this.#known.get(formatEndpoint(server));
    if (known && this.#clock.now() - known.at < MAPPED_ADDRESS_LIFETIME) return Promise.resolve(known.mapped);
    return this.refresh(server);
  }

  /** Asks the server even when an answer is known; joins a query under way, else sends by `schedule`. */
  refresh(server: Endpoint, schedule: readonly Millis[] = QUERY_SCHEDULE): Promise<Endpoint | undefined> {
    if (this.#closed) return Promise.resolve(undefined);
    const key = formatEndpoint(server);
    const pending = this.#byServer.get(key);
    if (pending) return pending.answer;
    const { promise: answer, resolve } = Promise.withResolvers<Endpoint | undefined>();
    const query: Query = {
      server,
      transactionId: Buffer.from(this.#random(12)).toString("hex") as TransactionId,
      startedAt: this.#clock.now(),
      answer,
      settle: resolve,
      schedule,
      sent: 0,
      timer: undefined,
    };
    this.#byServer.set(key, query);
    this.#byTransaction.set(query.transactionId, query);
    this.#transmit(query);
    return answer;
  }

  /** The last answer however old, for a first guess while `query` asks again. */
  lastKnown(server: Endpoint): Endpoint | undefined {
    return this.#known.get(formatEndpoint(server))?.mapped;
  }

  /** A datagram the dispatcher could not give to an agent; true when it answered a query. */
  receive(message: StunMessage, from: Endpoint): boolean {
    const query = this.#byTransaction.get(message.transactionId);
    if (!query || message.method !== STUN_METHOD_BINDING || !sameEndpoint(query.server, from)) return false;
    const mapped = message.xorMappedAddress ?? message.mappedAddress;
    if (message.class === "success" && mapped && mapped.port !== 0) {
      this.#finish(query, mapped);
      this.#note(query, mapped);
    } else {
      this.#finish(query, undefined);
    }
    return true;
  }

  /** What is known of a server; for diagnosis. */
  report(server: Endpoint): StunServerReport {
    const key = formatEndpoint(server);
    const known = this.#known.get(key);
    return { server, mapped: known?.mapped, answeredAt: known?.at, rtt: known?.rtt, silentAt: this.#silent.get(key) };
  }

  /** The network changed: what is known is wrong. Queries under way go on, their answers are from the new network. */
  forget(): void {
    this.#known.clear();
    this.#silent.clear();
  }

  /** Ends all queries with undefined; idempotent. */
  close(): void {
    this.#closed = true;
    for (const query of [...this.#byServer.values()]) this.#finish(query, undefined);
    this.#known.clear();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #transmit(query: Query): void {
    const next = query.schedule[query.sent + 1] ?? QUERY_TIMEOUT;
    query.sent++;
    const delay = Math.max(0, query.startedAt + next - this.#clock.now());
    query.timer = this.#clock.after(delay, () => {
      if (query.sent >= query.schedule.length) this.#noteSilence(query);
      else this.#transmit(query);
    });
    this.#send(encodeStun({ class: "request", transactionId: query.transactionId }), query.server);
  }

  #finish(query: Query, mapped: Endpoint | undefined): void {
    query.timer?.cancel();
    this.#byTransaction.delete(query.transactionId);
    this.#byServer.delete(formatEndpoint(query.server));
    query.settle(mapped);
  }

  #noteSilence(query: Query): void {
    const key = formatEndpoint(query.server);
    this.#silent.delete(key);
    this.#silent.set(key, this.#clock.now());
    if (this.#silent.size > MAPPED_ADDRESS_SERVERS_MAX) this.#silent.delete(this.#silent.keys().next().value!);
    this.#finish(query, undefined);
    this.events.emit("silent", { server: query.server });
  }

  #note({ server, sent, startedAt }: Query, mapped: Endpoint): void {
    const key = formatEndpoint(server);
    const previous = this.#known.get(key)?.mapped;
    const now = this.#clock.now();
    this.#silent.delete(key);
    this.#known.delete(key);
    this.#known.set(key, { server, mapped, at: now, rtt: sent === 1 ? now - startedAt : undefined });
    if (this.#known.size > MAPPED_ADDRESS_SERVERS_MAX) this.#known.delete(this.#known.keys().next().value!);
    if (!sameEndpoint(previous, mapped)) this.events.emit("changed", { server, mapped, previous });
    this.events.emit("answered", { server, mapped });
  }
}
