import { clone, create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Backoff } from "#base/backoff.ts";
import { Emitter } from "#base/emitter.ts";
import type { PublicKey } from "#base/keys.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import { type Body, Body_Type, BodySchema, PerchExtensionSchema } from "#gen/signal_pb.ts";
import { type SendOutcome, SendQueue, type Transmit } from "#signal/client/send-queue.ts";
import {
  PROBE_GAP_MS,
  PROBE_TIMEOUT_MS,
  QUICK_PROBE_TIMEOUT_MS,
  QUICK_RETRY_MS,
  REGISTER_TIMEOUT_MS,
  SILENCE_MS,
  type SignalClientEvents,
  STABLE_MS,
  WANTED_RETRY_MS,
} from "#signal/client/signal-client.ts";
import { SignalError } from "#signal/client/signal-error.ts";
import type { Internet } from "./internet.ts";
import { ServerStream, type StreamHost } from "./server-stream.ts";

/** Round trips until a registration stands: TCP, TLS, the stream. */
const REGISTER_ROUND_TRIPS = 3;

/** A message between two agents that has not arrived. */
interface Flight {
  readonly from: PublicKey;
  readonly to: PublicKey;
  /** The connection it is on. */
  stream: ServerStream;
}

interface Registration {
  readonly stream: ServerStream;
  readonly receive: (from: PublicKey, body: Uint8Array) => void;
}

/** The signal server: one stream per key, the newest counts; messages are passed on or refused, never kept. */
export class SimSignalServer {
  readonly #internet: Internet;
  readonly #registered = new Map<PublicKey, Registration>();
  readonly #flights = new Set<Flight>();
  #running = true;
  /** Messages passed on, for budgets. */
  passed = 0;
  /** Loses the message, as a server that dies between two steps would. */
  swallow: (from: PublicKey, to: PublicKey, body: Body) => boolean = () => false;
  /** Sees every message that reaches the server. */
  observe: (from: PublicKey, to: PublicKey, body: Body) => void = () => {};

  constructor(internet: Internet) {
    this.#internet = internet;
  }

  get running(): boolean {
    return this.#running;
  }

  stop(): void {
    this.#running = false;
    for (const { stream } of [...this.#registered.values()]) stream.reset();
    this.#registered.clear();
  }

  start(): void {
    this.#running = true;
  }

  /** Tries to register; exactly one of `registered` and `lost` follows, `lost` may follow `registered`. */
  connect(
    key: PublicKey,
    host: StreamHost,
    handlers: {
      readonly registered: () => void;
      readonly lost: () => void;
      readonly receive: (from: PublicKey, body: Uint8Array) => void;
    },
  ): ServerStream {
    const stream = new ServerStream(this.#internet, host, {
      lost: handlers.lost,
      left: () => {
        if (this.#registered.get(key)?.stream === stream) this.#registered.delete(key);
      },
    });
    let rounds = 0;
    const greet = (): void =>
      stream.toServer(() => {
        if (!this.#running) return stream.reset();
        if (++rounds < REGISTER_ROUND_TRIPS) return stream.toClient(greet);
        const before = this.#registered.get(key);
        this.#registered.set(key, { stream, receive: handlers.receive });
        before?.stream.reset();
        stream.toClient(handlers.registered);
      });
    greet();
    return stream;
  }

  /** A message leaves on its sender's connection. */
  depart(from: PublicKey, to: PublicKey, stream: ServerStream): Flight {
    const flight: Flight = { from, to, stream };
    this.#flights.add(flight);
    return flight;
  }

  /** A message between the two is under way, in either direction. */
  isFlying(a: PublicKey, b: PublicKey): boolean {
    for (const flight of this.#flights) {
      const { from, to, stream } = flight;
      if (!stream.live) this.#flights.delete(flight);
      else if ((from === a && to === b) || (from === b && to === a)) return true;
    }
    return false;
  }

  /** A message that arrived at the server; what is known of its delivery. */
  pass(flight: Flight, bytes: Uint8Array): boolean {
    const { from, to } = flight;
    const body = fromBinary(BodySchema, bytes);
    this.observe(from, to, body);
    const registration = this.#registered.get(to);
    const isSwallowed = registration !== undefined && this.swallow(from, to, body);
    if (registration && !isSwallowed) {
      this.passed++;
      flight.stream = registration.stream;
      registration.stream.toClient(() => {
        this.#flights.delete(flight);
        registration.receive(from, bytes);
      });
    } else this.#flights.delete(flight);
    return registration !== undefined;
  }
}

/** What the agent's version leaves out of a message, of its own and of others. */
export type Dialect = "perch" | "perch without sleep agreement" | "stock";

function speak(body: Body, dialect: Dialect): Body {
  if (dialect === "perch" || !body.perch) return body;
  const spoken = clone(BodySchema, body);
  delete spoken.perch;
  const { candidates, nat } = body.perch;
  if (dialect === "perch without sleep agreement" && body.type !== Body_Type.GO_IDLE)
    spoken.perch = create(PerchExtensionSchema, { candidates, ...(nat && { nat }) });
  return spoken;
}

export interface SimSignalClientDeps {
  readonly clock: Clock;
  readonly server: SimSignalServer;
  readonly host: StreamHost;
  readonly key: PublicKey;
  readonly dialect: Dialect;
}

/**
 * SignalClient without HTTP/2 and boxes: the real send queue, the real delays of retrying and probing, the same events and
 * methods.
 */
export class SimSignalClient {
  readonly events = new Emitter<SignalClientEvents>();
  readonly #deps: SimSignalClientDeps;
  readonly #queue: SendQueue;
  /** Whom a frame in the queue is for; the real frame says it itself. */
  readonly #recipients = new WeakMap<Uint8Array, PublicKey>();
  readonly #backoff = new Backoff({ start: 800, factor: 1.7, ceiling: 10_000, jitter: 1 });
  #stream: ServerStream | undefined;
  #since: Millis | undefined;
  #timer: Timer | undefined;
  #attemptedAt: Millis = Number.NEGATIVE_INFINITY;
  #orphaned = false;
  #probedAt: Millis = Number.NEGATIVE_INFINITY;
  #closed = false;

  constructor(deps: SimSignalClientDeps) {
    this.#deps = deps;
    this.#queue = new SendQueue(deps, {
      deadlineMs: 10_000,
      laneMaxMessages: 64,
      maxBytes: 128 * 1024,
      maxInFlight: 100,
    });
  }

  get connected(): boolean {
    return this.#since !== undefined;
  }

  /** Registered over a connection that carries; one whose machine moved does not, and does not know it. */
  get live(): boolean {
    return this.connected && this.#stream?.live === true;
  }

  /** Bytes that wait. */
  get queuedBytes(): number {
    return this.#queue.bytes;
  }

  start(): void {
    this.#connect();
  }

  send(to: PublicKey, body: Body): Promise<SendOutcome> {
    const frame = toBinary(BodySchema, speak(body, this.#deps.dialect));
    this.#recipients.set(frame, to);
    if (this.#isWaiting && this.#deps.clock.now() - this.#attemptedAt >= WANTED_RETRY_MS) this.#connect();
    return this.#queue.push(to, frame, body.type === Body_Type.CANDIDATE);
  }

  noteNetworkChange(): void {
    this.#backoff.reset();
    if (this.connected && !this.#orphaned) return this.#probe(QUICK_PROBE_TIMEOUT_MS);
    this.#queue.pause();
    this.#since = undefined;
    this.#connect();
  }

  retryNow(): void {
    if (this.#isWaiting) this.#connect();
  }

  probe(): void {
    if (this.connected && this.#deps.clock.now() - this.#probedAt >= PROBE_GAP_MS) this.#probe(QUICK_PROBE_TIMEOUT_MS);
  }

  /** The machine's address changed under the connection. */
  mute(): void {
    this.#orphaned = true;
    this.#stream?.mute();
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#timer?.cancel();
    this.#stream?.leave();
    this.#queue.clear("signal-closed");
  }

  /** Between two attempts. */
  get #isWaiting(): boolean {
    return this.#stream === undefined && !this.#closed;
  }

  #connect(): void {
    const { clock, server, host, key } = this.#deps;
    this.#attemptedAt = clock.now();
    this.#timer?.cancel();
    this.#stream?.leave();
    this.#orphaned = false;
    const stream: ServerStream = server.connect(key, host, {
      registered: () => {
        if (stream !== this.#stream) return;
        this.#since = clock.now();
        this.#watchSilence();
        this.#queue.open(this.#transmit(stream), true);
        this.events.emit("state", { connected: true });
      },
      lost: () => {
        if (stream === this.#stream) this.#lost();
      },
      receive: (from, bytes) => {
        if (stream !== this.#stream || this.#closed) return;
        this.#watchSilence();
        this.events.emit("message", { from, body: speak(fromBinary(BodySchema, bytes), this.#deps.dialect) });
      },
    });
    this.#stream = stream;
    this.#timer = clock.after(REGISTER_TIMEOUT_MS, () => this.#lost());
  }

  #transmit(stream: ServerStream): Transmit {
    const { server, key, clock } = this.#deps;
    return (frame, timeoutMs, done) => {
      let settled = false;
      const settle: typeof done = (result) => {
        if (settled) return;
        settled = true;
        timer.cancel();
        done(result);
      };
      const timer = clock.after(timeoutMs, () =>
        settle({ kind: "failed", error: new SignalError("signal-send-timeout", "not passed on"), retry: false }),
      );
      const flight = server.depart(key, this.#recipients.get(frame)!, stream);
      stream.toServer(() => {
        const delivered = server.pass(flight, frame);
        stream.toClient(() => settle({ kind: "passed", delivered }));
      });
      return () => {
        settled = true;
        timer.cancel();
      };
    };
  }

  #lost(): void {
    const { clock } = this.#deps;
    const lasted = this.#since !== undefined && clock.now() - this.#since >= STABLE_MS;
    this.#since = undefined;
    this.#stream?.leave();
    this.#stream = undefined;
    this.#queue.pause();
    if (lasted) this.#backoff.reset();
    this.#timer?.cancel();
    this.#timer = clock.after(lasted ? Math.random() * QUICK_RETRY_MS : this.#backoff.next(), () => this.#connect());
    this.events.emit("state", { connected: false });
  }

  #watchSilence(): void {
    this.#timer?.cancel();
    this.#timer = this.#deps.clock.after(SILENCE_MS, () => this.#probe(PROBE_TIMEOUT_MS));
  }

  #probe(timeoutMs: Millis): void {
    this.#probedAt = this.#deps.clock.now();
    const stream = this.#stream;
    this.#timer?.cancel();
    this.#timer = this.#deps.clock.after(timeoutMs, () => this.#lost());
    stream?.toServer(() => stream.toClient(() => stream === this.#stream && this.connected && this.#watchSilence()));
  }
}
