import type { Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { WebSocket } from "ws";
import { messageOf } from "#base/errors.ts";
import { type IpAddress, parseIp } from "#base/ip.ts";
import { dialTcp } from "#base/tcp-dial.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import { FrameWriter } from "../protocol/frame-writer.ts";
import {
  CLOSE_MESSAGE,
  encodeAuth,
  encodePeerList,
  HEALTH_CHECK_MESSAGE,
  isHandshake,
  parseRelayMessage,
  RELAY_MESSAGE_MAX_BYTES,
  RELAY_PATH,
  RelayType,
  TRANSPORT_HEADER_BYTES,
  TRANSPORT_PAYLOAD_MAX_BYTES,
} from "../protocol/messages.ts";
import type { PeerId } from "../protocol/peer-id.ts";
import type { RelayTarget } from "../protocol/relay-url.ts";
import { RelayError, type RelayErrorCode } from "./relay-error.ts";

/** Time for TCP, TLS and the upgrade. */
export const DIAL_TIMEOUT_MS: Millis = 10_000;
/** Time for the AuthResponse after that. */
export const AUTH_TIMEOUT_MS: Millis = 8_000;
/** Pause between WebSocket pings. */
export const PING_INTERVAL_MS: Millis = 15_000;
/** Time for a sign of life after a ping. */
export const PING_TIMEOUT_MS: Millis = 7_000;
/** The same after a change of network. */
export const QUICK_PING_TIMEOUT_MS: Millis = 2_000;
/** A pong later than this share of the time for it, and than four round trips, is late. */
const LATE_SHARE = 0.3;
/** Between two such probes; longer than one takes. */
export const PROBE_GAP_MS: Millis = 3_000;

/**
 * Limits of what waits to be sent; see FlowQueue. What waited for a peer to wake (1 MiB at most) comes at once, and TCP takes
 * some round trips to let it through.
 */
const QUEUE = { maxBytes: 1280 * 1024, maxAgeMs: 1000, maxHandshakeBytes: 64 * 1024 } as const;
/** A relay that takes nothing for so long is left. */
const STALL_MS: Millis = 10_000;
/**
 * Memory of messages that wait, used again and again: fresh memory for each kept the garbage collector busy for a fifth of
 * all time. Their size tells them from other messages' memory.
 */
const SLAB_BYTES = 2056;
const SLABS_MAX = 512;
const slabs: ArrayBuffer[] = [];
/** Messages kept while the AuthResponse is awaited; the oldest gives way. */
const EARLY_MAX_MESSAGES = 256;
/** Time for a polite Close. */
const CLOSE_TIMEOUT_MS: Millis = 1_000;

export interface RelayConnectionOptions {
  readonly target: RelayTarget;
  /** Dialled instead of the host name; the name stays for TLS. */
  readonly address?: IpAddress;
  readonly peerId: PeerId;
  readonly token: Uint8Array;
  /** PEM of the authority to trust instead of the system's. */
  readonly ca?: string;
}

export interface RelayConnectionEvents {
  /** Authenticated. `address` is where the relay was reached. */
  ready(instanceUrl: string, address: IpAddress | undefined): void;
  /** A payload from a peer; the bytes are the callee's. Never before `ready`. */
  transport(from: PeerId, payload: Uint8Array): void;
  presence(peers: readonly PeerId[], online: boolean): void;
  /** A ping is not answered as soon as those before it: one direction may be stuck, even while frames arrive. */
  late?(): void;
  /** Over, once, whatever the reason; not after `close` or `abandon`. */
  lost(error: RelayError): void;
}

/**
 * One life of a connection to a relay (relay.md, 7.1 and 15.1). Auth, subscriptions and datagrams may be given at once:
 * they leave together when the WebSocket opens, without waiting for the AuthResponse.
 *
 *   dialling ──open──> authenticating ──AuthResponse──> ready ──> lost
 *                       (frames that overtake the response are kept)
 */
export class RelayConnection {
  readonly #clock: Clock;
  readonly #events: RelayConnectionEvents;
  readonly #stopDialling: () => void;
  /** Once TCP is there. */
  #ws: WebSocket | undefined;
  readonly #writer: FrameWriter;
  #socket: Socket | undefined;
  #phase: "dialling" | "authenticating" | "ready" | "over" = "dialling";
  #early: Buffer[] = [];
  #instanceUrl: string | undefined;
  #timer: Timer | undefined;
  #pingSentAt: Millis | undefined;
  /** The latest `probe`. */
  #probedAt: Millis = Number.NEGATIVE_INFINITY;
  #rtt: Millis | undefined;
  /** This relay answers pings. */
  #hasPonged = false;
  /** A frame arrived since the ping that is not answered yet. */
  #heardSincePing = false;

  constructor(deps: { readonly clock: Clock }, options: RelayConnectionOptions, events: RelayConnectionEvents) {
    this.#clock = deps.clock;
    this.#events = events;
    const { target } = options;
    this.#writer = new FrameWriter(
      {
        clock: deps.clock,
        // After the present callback: what one callback sends leaves in one write.
        schedule: (flush) => process.nextTick(flush),
        written: reuse,
        stalled: () => this.#lose("relay-silent", `relay took nothing for ${STALL_MS} ms`),
      },
      { mask: true, stallMs: STALL_MS, ...QUEUE },
    );
    this.#writer.pushOwn(encodeAuth(options.peerId, options.token));
    this.#stopDialling = dialTcp(
      deps.clock,
      // An address in the URL itself is what its certificate is for.
      {
        host: target.serverName === undefined ? target.host : (options.address ?? target.host),
        port: target.port,
      },
      {
        connected: (socket) => this.#upgrade(socket, options),
        failed: (error) => this.#lose("relay-unreachable", messageOf(error), error),
      },
    );
    this.#timer = this.#clock.after(DIAL_TIMEOUT_MS, () =>
      this.#lose("relay-unreachable", `no connection within ${DIAL_TIMEOUT_MS} ms`),
    );
  }

  get isReady(): boolean {
    return this.#phase === "ready";
  }

  /** True from the moment the Auth leaves. */
  get isOpen(): boolean {
    return this.#phase === "authenticating" || this.#phase === "ready";
  }

  /** Known once ready. */
  get instanceUrl(): string | undefined {
    return this.#instanceUrl;
  }

  /** Of the latest ping; undefined until measured. */
  get rtt(): Millis | undefined {
    return this.#rtt;
  }

  /** Datagrams dropped because they waited too long or too many waited. */
  get dropped(): number {
    return this.#writer.dropped;
  }

  /**
   * Sends a datagram in this turn of the event loop, a handshake before this returns, or as soon as the connection is open. `header` are the first 38 bytes
   * of the message. The datagram is copied. False when it is too long or the connection is over.
   */
  send(header: Uint8Array, datagram: Uint8Array): boolean {
    if (this.#phase === "over" || datagram.length > TRANSPORT_PAYLOAD_MAX_BYTES) return false;
    const length = TRANSPORT_HEADER_BYTES + datagram.length;
    const message =
      length <= SLAB_BYTES
        ? new Uint8Array(slabs.pop() ?? new ArrayBuffer(SLAB_BYTES), 0, length)
        : new Uint8Array(length);
    message.set(header);
    message.set(datagram, TRANSPORT_HEADER_BYTES);
    if (isHandshake(datagram)) {
      this.#writer.pushHandshake(message);
      // The caller goes on with signalling and ICE, which takes milliseconds.
      this.#writer.flush();
    } else {
      this.#writer.pushData(header, message);
    }
    return true;
  }

  subscribe(peers: readonly PeerId[]): void {
    for (const message of encodePeerList(RelayType.subscribe, peers)) this.#writer.pushOwn(message);
  }

  unsubscribe(peers: readonly PeerId[]): void {
    for (const message of encodePeerList(RelayType.unsubscribe, peers)) this.#writer.pushOwn(message);
  }

  /** Asks for a sign of life now, unless that was done a moment ago; without one in time the connection is lost. */
  probe(): void {
    if (this.#phase !== "ready" || this.#clock.now() - this.#probedAt < PROBE_GAP_MS) return;
    this.#probedAt = this.#clock.now();
    this.#ping(QUICK_PING_TIMEOUT_MS);
  }

  /** Says Close and leaves; what waits is still sent. Resolves when the socket is gone. */
  async close(): Promise<void> {
    if (this.#phase === "over") return;
    if (this.#phase !== "ready") return this.abandon();
    this.#over();
    this.#writer.pushOwn(CLOSE_MESSAGE);
    let timer: Timer | undefined;
    const late = new Promise<void>((resolve) => {
      timer = this.#clock.after(CLOSE_TIMEOUT_MS, resolve);
    });
    const gone = new Promise<void>((resolve) => this.#ws!.once("close", () => resolve()));
    await Promise.race([this.#writer.drain().then(() => this.#socket?.end()), late]);
    await Promise.race([gone, late]);
    timer?.cancel();
    this.#destroy();
  }

  /** Drops the connection without a word, as when another one took its place. */
  abandon(): void {
    if (this.#phase !== "over") this.#over();
    this.#destroy();
  }

  /** TCP is there: TLS where wanted, then the WebSocket. */
  #upgrade(tcp: Socket, { target, ca }: RelayConnectionOptions): void {
    const host = target.host.includes(":") ? `[${target.host}]` : target.host;
    const ws = new WebSocket(`${target.tls ? "wss" : "ws"}://${host}:${target.port}${RELAY_PATH}`, {
      perMessageDeflate: false,
      followRedirects: false,
      // Longer messages than the protocol has are skipped, not fatal; this only bounds memory.
      maxPayload: 64 * 1024,
      createConnection: () => {
        this.#socket = target.tls ? secure(tcp, target, ca) : tcp;
        return this.#socket;
      },
    });
    this.#ws = ws;
    ws.on("open", () => this.#opened());
    ws.on("message", (data, isBinary) => {
      if (isBinary && Buffer.isBuffer(data) && this.#phase !== "over") this.#receive(data);
    });
    ws.on("pong", () => {
      this.#hasPonged = true;
      this.#noteAlive();
    });
    ws.on("error", (error) => this.#lose(this.#lossCode, messageOf(error), error));
    ws.on("close", () => this.#lose(this.#lossCode, "connection closed"));
  }

  #opened(): void {
    if (this.#phase !== "dialling" || !this.#socket) return;
    this.#phase = "authenticating";
    this.#pingSentAt = this.#clock.now();
    this.#arm(AUTH_TIMEOUT_MS, () => this.#lose("relay-refused", `relay did not answer within ${AUTH_TIMEOUT_MS} ms`));
    this.#writer.open(this.#socket);
  }

  #receive(data: Buffer): void {
    if (this.#phase === "authenticating") {
      const message = parseRelayMessage(data);
      if (message.kind === "auth-response") return this.#authenticated(message.instanceUrl);
      // Another peer's frame may overtake the response (relay.md, 6.1).
      this.#early.push(data);
      if (this.#early.length > EARLY_MAX_MESSAGES) this.#early.shift();
      return;
    }
    this.#heardSincePing = true;
    if (data.length > RELAY_MESSAGE_MAX_BYTES) return;
    const message = parseRelayMessage(data);
    switch (message.kind) {
      case "transport":
        this.#events.transport(message.peer, message.payload);
        return;
      case "health-check":
        this.#writer.pushOwn(HEALTH_CHECK_MESSAGE);
        return;
      case "peer-list":
        if (message.type === RelayType.peersOnline) this.#events.presence(message.peers, true);
        else if (message.type === RelayType.peersWentOffline) this.#events.presence(message.peers, false);
        return;
      case "close":
        this.#lose("relay-closed", "relay shuts down");
        return;
      default:
        // Unknown types, broken bodies and what only travels upwards are skipped.
        return;
    }
  }

  #authenticated(instanceUrl: string): void {
    this.#phase = "ready";
    this.#instanceUrl = instanceUrl;
    this.#noteAlive();
    const remote = this.#socket?.remoteAddress;
    this.#events.ready(instanceUrl, remote === undefined ? undefined : parseIp(remote.replace(/%.*$/, "")));
    for (const data of this.#early.splice(0)) if (this.isReady) this.#receive(data);
  }

  /** A ping, or the Auth, is answered. The next ping is due after a pause. */
  #noteAlive(): void {
    if (this.#phase !== "ready") return;
    if (this.#pingSentAt !== undefined) this.#rtt = this.#clock.now() - this.#pingSentAt;
    this.#pingSentAt = undefined;
    this.#arm(PING_INTERVAL_MS, () => this.#ping(PING_TIMEOUT_MS));
  }

  #ping(timeoutMs: Millis): void {
    this.#pingSentAt = this.#clock.now();
    this.#heardSincePing = false;
    const lateMs = Math.min(timeoutMs, Math.max(LATE_SHARE * timeoutMs, 4 * (this.#rtt ?? 0)));
    this.#arm(lateMs, () => {
      this.#arm(timeoutMs - lateMs, () => this.#endPing(timeoutMs));
      if (this.#hasPonged) this.#events.late?.();
    });
    this.#ws?.ping();
  }

  /** No pong. Any frame is a sign of life as well, and a relay that sends some is asked again later. */
  #endPing(timeoutMs: Millis): void {
    if (!this.#heardSincePing) {
      return this.#lose("relay-silent", `no sign of life for ${timeoutMs} ms after a ping`);
    }
    this.#pingSentAt = undefined;
    this.#arm(PING_INTERVAL_MS - PING_TIMEOUT_MS, () => this.#ping(PING_TIMEOUT_MS));
  }

  #arm(delay: Millis, callback: () => void): void {
    this.#timer?.cancel();
    this.#timer = this.#clock.after(delay, callback);
  }

  get #lossCode(): RelayErrorCode {
    return this.#phase === "authenticating" ? "relay-refused" : "relay-unreachable";
  }

  #lose(code: RelayErrorCode, message: string, cause?: unknown): void {
    if (this.#phase === "over") return;
    this.#over();
    this.#destroy();
    this.#events.lost(new RelayError(code, message, { cause, retryable: true }));
  }

  #over(): void {
    this.#phase = "over";
    this.#timer?.cancel();
    this.#early = [];
  }

  #destroy(): void {
    this.#writer.destroy();
    this.#stopDialling();
    this.#ws?.terminate();
    this.#socket?.destroy();
  }
}

function reuse({ buffer }: Uint8Array): void {
  if (buffer instanceof ArrayBuffer && buffer.byteLength === SLAB_BYTES && slabs.length < SLABS_MAX) slabs.push(buffer);
}

function secure(socket: Socket, { serverName }: RelayTarget, ca: string | undefined): Socket {
  return connectTls({
    socket,
    ALPNProtocols: ["http/1.1"],
    servername: serverName ?? "",
    ...(ca !== undefined && { ca }),
  });
}
