import { Backoff } from "#base/backoff.ts";
import { Emitter } from "#base/emitter.ts";
import { messageOf } from "#base/errors.ts";
import { encodeMessage } from "#base/flagged-messages.ts";
import { type PrivateKey, PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import { type Body, Body_Type } from "#gen/signal_pb.ts";
import { createHeartbeatBody } from "../protocol/offer.ts";
import { nonceOf, openMessage, parseEncryptedMessage, sealMessage } from "../protocol/sealed-message.ts";
import { SIGNAL_MESSAGE_MAX_BYTES } from "../protocol/signal-service.ts";
import { type SendOutcome, SendQueue } from "./send-queue.ts";
import { SignalConnection } from "./signal-connection.ts";
import { SignalError } from "./signal-error.ts";

/** Time for connecting and registering together. */
export const REGISTER_TIMEOUT_MS: Millis = 10_000;
/** While the server is away, a message to send is worth an attempt, this long after the last one began. */
export const WANTED_RETRY_MS: Millis = 1_000;
/** Without a message for so long, the client sends one to itself (1.6) and pings (1.4). */
export const SILENCE_MS: Millis = 30_000;
/** Time for the answer to that. */
export const PROBE_TIMEOUT_MS: Millis = 10_000;
/** The same after a change of network, when a broken connection is likely. */
export const QUICK_PROBE_TIMEOUT_MS: Millis = 3_000;
/** What doubts the network asks for a sign of life no more often than this. */
export const PROBE_GAP_MS: Millis = 3_000;
/** The first attempt after losing a connection that had lasted comes within this time. */
export const QUICK_RETRY_MS: Millis = 200;
/** A registration that lasted so long starts the backoff anew; two agents with one key do not chase each other. */
export const STABLE_MS: Millis = 10_000;
/** Nonces remembered against repeated messages. */
export const NONCE_MEMORY = 8192;

export interface SignalClientDeps {
  readonly clock: Clock;
  readonly log: Logger;
}

export interface SignalClientOptions {
  /** `host:port` as management sends it; brackets around IPv6. */
  readonly uri: string;
  readonly tls: boolean;
  readonly key: PrivateKey;
  /** PEM of the authority to trust instead of the system's. */
  readonly ca?: string;
  /** From `send` to giving up. Default 10 s. */
  readonly sendDeadlineMs?: Millis;
}

export interface SignalClientEvents {
  /** A message whose sender is proven by its box. HEARTBEATs and repeated messages do not get here. Must not block. */
  readonly message: { readonly from: PublicKey; readonly body: Body };
  /** Registered, or not (any more); `error` says why. Comes after every failed attempt as well. */
  readonly state: { readonly connected: boolean; readonly error?: SignalError };
}

export interface SignalClientCounters {
  readonly registrations: number;
  readonly received: number;
  /** Dropped on receipt. */
  readonly malformed: number;
  readonly repeated: number;
  readonly sent: number;
}

type State =
  | { readonly kind: "idle" }
  | { readonly kind: "connecting"; readonly connection: SignalConnection }
  | { readonly kind: "connected"; readonly connection: SignalConnection; readonly since: Millis }
  | { readonly kind: "waiting"; readonly timer: Timer }
  | { readonly kind: "closed" };

/**
 * An agent's side of signal: keeps one registered stream for ever and passes sealed messages to other agents.
 *
 *   idle --start--> connecting --registered--> connected
 *                     ^   |                        |
 *                     |   '------ lost ------------'--> waiting (backoff) --> connecting
 *
 * Reading never waits for anyone; sending waits in a lane per recipient (SendQueue). Source: section 1 of
 * signal-and-peer-connection.md; W7, W16 and W17 of section 8.
 */
export class SignalClient implements AsyncDisposable {
  readonly events = new Emitter<SignalClientEvents>();
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #options: SignalClientOptions;
  readonly #target: { readonly host: string; readonly port: number };
  readonly #queue: SendQueue;
  readonly #backoff = new Backoff({ start: 800, factor: 1.7, ceiling: 10_000, jitter: 1 });
  readonly #nonces = new Set<string>();
  readonly #counters = { registrations: 0, received: 0, malformed: 0, repeated: 0, sent: 0 };
  #state: State = { kind: "idle" };
  #watch: Timer | undefined;
  #lastFrameAt: Millis = 0;
  #probedAt: Millis = Number.NEGATIVE_INFINITY;
  #attemptedAt: Millis = Number.NEGATIVE_INFINITY;
  /** Frames of any kind ever received. */
  #frames = 0;

  /** Throws SignalError `signal-uri-malformed`. */
  constructor(deps: SignalClientDeps, options: SignalClientOptions) {
    this.#clock = deps.clock;
    this.#log = deps.log;
    this.#options = options;
    this.#target = parseUri(options.uri, options.tls);
    this.#queue = new SendQueue(deps, {
      deadlineMs: options.sendDeadlineMs ?? 10_000,
      laneMaxMessages: 64,
      maxBytes: 2 * SIGNAL_MESSAGE_MAX_BYTES,
      maxInFlight: 100,
    });
  }

  get connected(): boolean {
    return this.#state.kind === "connected";
  }

  counters(): SignalClientCounters {
    return { ...this.#counters };
  }

  /** Begins to connect and never stops trying until `close`. */
  start(): void {
    if (this.#state.kind === "idle") this.#connect();
  }

  /**
   * Seals `body` for `to` and sends it; when connected the bytes leave in this turn of the event loop. Messages to one
   * recipient keep their order. Never rejects.
   */
  send(to: PublicKey, body: Body): Promise<SendOutcome> {
    if (this.#state.kind === "closed")
      return Promise.resolve(failure(new SignalError("signal-closed", "client closed")));
    let message: Uint8Array;
    try {
      message = sealMessage(body, to, this.#options.key);
    } catch (cause) {
      const text = `cannot seal a message for ${PublicKey.short(to)}: ${messageOf(cause)}`;
      return Promise.resolve(failure(new SignalError("signal-recipient-unusable", text, { cause })));
    }
    if (message.length > SIGNAL_MESSAGE_MAX_BYTES) {
      const text = `message of ${message.length} bytes, limit ${SIGNAL_MESSAGE_MAX_BYTES}`;
      return Promise.resolve(failure(new SignalError("signal-message-too-large", text)));
    }
    this.#counters.sent++;
    const isWaiting = this.#state.kind === "waiting";
    if (isWaiting && this.#clock.now() - this.#attemptedAt >= WANTED_RETRY_MS) this.#connect();
    return this.#queue.push(to, encodeMessage(message), body.type === Body_Type.CANDIDATE);
  }

  /** The machine's addresses or routes changed: try now, or make sure that the connection still works. */
  noteNetworkChange(): void {
    this.#backoff.reset();
    if (this.#state.kind === "waiting") return this.#connect();
    if (this.#state.kind !== "connected") return;
    const { connection } = this.#state;
    if (!connection.isOrphaned) return this.#probe(connection, QUICK_PROBE_TIMEOUT_MS);
    this.#connect();
    this.events.emit("state", { connected: false });
  }

  /** Another server answers again, and this one may be back with it: ends the pause before the next attempt. */
  retryNow(): void {
    if (this.#state.kind === "waiting") this.#connect();
  }

  /** Something else suggests that the network does not carry any more: asks the server for a sign of life. */
  probe(): void {
    if (this.#state.kind !== "connected" || this.#clock.now() - this.#probedAt < PROBE_GAP_MS) return;
    this.#probe(this.#state.connection, QUICK_PROBE_TIMEOUT_MS);
  }

  /** Ends the stream; messages that wait fail with `signal-closed`. Idempotent. */
  async close(): Promise<void> {
    if (this.#state.kind === "closed") return;
    const wasConnected = this.connected;
    this.#leave();
    this.#state = { kind: "closed" };
    this.#queue.clear("signal-closed");
    if (wasConnected) this.events.emit("state", { connected: false });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #connect(): void {
    this.#leave();
    this.#attemptedAt = this.#clock.now();
    const { key, tls, ca } = this.#options;
    const connection = new SignalConnection(
      { clock: this.#clock },
      {
        ...this.#target,
        tls,
        publicKey: key.publicKey,
        registerTimeoutMs: REGISTER_TIMEOUT_MS,
        ...(ca !== undefined && { ca }),
      },
      {
        registered: (ordered) => this.#noteRegistered(connection, ordered),
        frame: (payload) => this.#noteFrame(payload),
        lost: (error) => this.#noteLost(connection, error),
      },
    );
    this.#state = { kind: "connecting", connection };
  }

  #noteRegistered(connection: SignalConnection, ordered: boolean): void {
    if (this.#state.kind !== "connecting" || this.#state.connection !== connection) return;
    this.#state = { kind: "connected", connection, since: this.#clock.now() };
    this.#counters.registrations++;
    this.#lastFrameAt = this.#clock.now();
    this.#watchSilence(connection);
    this.#queue.open((frame, timeoutMs, done) => connection.send(frame, timeoutMs, done), ordered);
    this.#log.debug("signal registered", { server: this.#options.uri });
    this.events.emit("state", { connected: true });
  }

  #noteFrame(payload: Uint8Array): void {
    this.#lastFrameAt = this.#clock.now();
    this.#frames++;
    const message = parseEncryptedMessage(payload);
    const nonce = message && nonceOf(message.body);
    if (!message || nonce === undefined) {
      this.#counters.malformed++;
      return;
    }
    if (this.#nonces.has(nonce)) {
      this.#counters.repeated++;
      return;
    }
    try {
      const { from, body } = openMessage(message, this.#options.key);
      // Only what opened is remembered, so that forgeries cannot push real nonces out.
      this.#nonces.add(nonce);
      if (this.#nonces.size > NONCE_MEMORY) for (const oldest of this.#nonces) if (this.#nonces.delete(oldest)) break;
      if (body.type === Body_Type.HEARTBEAT) return;
      this.#counters.received++;
      this.events.emit("message", { from, body });
    } catch (err) {
      this.#counters.malformed++;
      this.#log.debug("signal message dropped", { err });
    }
  }

  #noteLost(connection: SignalConnection, error: SignalError): void {
    const state = this.#state;
    if ((state.kind !== "connecting" && state.kind !== "connected") || state.connection !== connection) return;
    this.#leave();
    const lasted = state.kind === "connected" && this.#clock.now() - state.since >= STABLE_MS;
    if (lasted) this.#backoff.reset();
    const delay = lasted ? Math.random() * QUICK_RETRY_MS : this.#backoff.next();
    this.#state = { kind: "waiting", timer: this.#clock.after(delay, () => this.#connect()) };
    this.#log.info("signal connection lost", {
      server: this.#options.uri,
      err: error,
      retryInMs: Math.round(delay),
    });
    this.events.emit("state", { connected: false, error });
  }

  /** Leaves the present state: its connection, timers and the sending are over. */
  #leave(): void {
    const state = this.#state;
    if (state.kind === "waiting") state.timer.cancel();
    this.#watch?.cancel();
    this.#watch = undefined;
    this.#queue.pause();
    if (state.kind === "connecting" || state.kind === "connected") state.connection.close();
  }

  /** One timer: fires when the silence may have lasted long enough, and asks. */
  #watchSilence(connection: SignalConnection): void {
    this.#watch?.cancel();
    const silent = this.#clock.now() - this.#lastFrameAt;
    this.#watch = this.#clock.after(Math.max(1, SILENCE_MS - silent), () => {
      if (this.#clock.now() - this.#lastFrameAt >= SILENCE_MS) this.#probe(connection, PROBE_TIMEOUT_MS);
      else this.#watchSilence(connection);
    });
  }

  /** Sends a HEARTBEAT to ourselves through the server; any frame answers it. The ping tells a dead line from a deaf server. */
  #probe(connection: SignalConnection, timeoutMs: Millis): void {
    const { key } = this.#options;
    const frames = this.#frames;
    this.#probedAt = this.#clock.now();
    let answered = false;
    connection.ping(() => {
      answered = true;
    });
    const frame = encodeMessage(sealMessage(createHeartbeatBody(), key.publicKey, key));
    connection.send(frame, timeoutMs, () => {});
    this.#watch?.cancel();
    this.#watch = this.#clock.after(timeoutMs, () => {
      if (this.#frames > frames) return this.#watchSilence(connection);
      const text = `nothing received for ${Math.round(this.#clock.now() - this.#lastFrameAt)} ms`;
      this.#noteLost(
        connection,
        answered
          ? new SignalError("signal-silent", `${text}, though the connection answers`, { retryable: true })
          : new SignalError("signal-unreachable", text, { retryable: true }),
      );
    });
  }
}

function failure(error: SignalError): SendOutcome {
  return { delivered: undefined, failure: error };
}

function parseUri(uri: string, tls: boolean): { readonly host: string; readonly port: number } {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]/@?#\s]+))(?::(\d{1,5}))?$/.exec(uri);
  const port = match?.[3] === undefined ? (tls ? 443 : 80) : Number(match[3]);
  const host = match?.[1] ?? match?.[2];
  if (host === undefined || port < 1 || port > 65535)
    throw new SignalError(
      "signal-uri-malformed",
      `signal address must be HOST:PORT, got ${JSON.stringify(uri.slice(0, 100))}`,
    );
  return { host, port };
}
