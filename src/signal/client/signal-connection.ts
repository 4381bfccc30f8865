import { type ClientHttp2Session, type ClientHttp2Stream, connect, constants } from "node:http2";
import type { Socket } from "node:net";
import { networkInterfaces } from "node:os";
import { connect as connectTls } from "node:tls";
import { messageOf } from "#base/errors.ts";
import type { PublicKey } from "#base/keys.ts";
import { dialTcp } from "#base/tcp-dial.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import { decodeGrpcMessage, GrpcFrameReader, GrpcStatus } from "../protocol/grpc-wire.ts";
import {
  DELIVERED_HEADER,
  ORDERED_HEADER,
  PEER_ID_HEADER,
  REGISTERED_HEADER,
  SIGNAL_MESSAGE_MAX_BYTES,
  SIGNAL_SEND_PATH,
  SIGNAL_STREAM_PATH,
} from "../protocol/signal-service.ts";
import { SignalError } from "./signal-error.ts";

export interface SignalConnectionOptions {
  readonly host: string;
  readonly port: number;
  readonly tls: boolean;
  /** PEM of authorities trusted besides none other; default the system's. */
  readonly ca?: string;
  readonly publicKey: PublicKey;
  /** Time for connection and registration together. */
  readonly registerTimeoutMs: Millis;
}

export interface SignalConnectionEvents {
  /** `ordered`: the server keeps the order of Sends. */
  registered(ordered: boolean): void;
  /** One EncryptedMessage; the bytes are the callee's. */
  frame(payload: Uint8Array): void;
  /** The connection is over, once, whatever the reason; not called after `close`. */
  lost(error: SignalError): void;
}

/** What became of one Send. `retry`: it may be sent again over another connection. */
export type SendResult =
  | { readonly kind: "passed"; readonly delivered: boolean | undefined }
  | { readonly kind: "failed"; readonly error: SignalError; readonly retry: boolean };

/**
 * One life of a connection to a signal server: HTTP/2 session, registration, receiving, sending. It is thrown away when
 * anything breaks.
 */
export class SignalConnection {
  readonly #clock: Clock;
  readonly #options: SignalConnectionOptions;
  readonly #events: SignalConnectionEvents;
  readonly #registerTimer: Timer;
  readonly #stopDialling: () => void;
  /** Once TCP is there. */
  #session: ClientHttp2Session | undefined;
  #socket: Socket | undefined;
  readonly #reader = new GrpcFrameReader(SIGNAL_MESSAGE_MAX_BYTES);
  /** Of the stream of messages, in this turn of the event loop. */
  readonly #arrived: Buffer[] = [];
  #over = false;

  constructor(deps: { readonly clock: Clock }, options: SignalConnectionOptions, events: SignalConnectionEvents) {
    this.#clock = deps.clock;
    this.#options = options;
    this.#events = events;
    this.#registerTimer = this.#clock.after(options.registerTimeoutMs, () =>
      this.#lose("signal-silent", `not registered within ${options.registerTimeoutMs} ms`),
    );
    this.#stopDialling = dialTcp(
      this.#clock,
      { host: options.host, port: options.port },
      {
        connected: (socket) => this.#open(socket),
        failed: (error) => this.#lose("signal-unreachable", messageOf(error), error),
      },
    );
  }

  /** TCP is there: TLS where wanted, HTTP/2, and the registration. */
  #open(socket: Socket): void {
    const { host, port, tls, ca } = this.#options;
    const authority = `${tls ? "https" : "http"}://${host.includes(":") ? `[${host}]` : host}:${port}`;
    this.#socket = tls
      ? connectTls({
          socket,
          ALPNProtocols: ["h2"],
          ...(!/^[\d.]+$|:/.test(host) && { servername: host }),
          ...(ca !== undefined && { ca }),
        })
      : socket;
    const session = connect(authority, { createConnection: () => this.#socket! });
    session.on("error", (error) => this.#lose("signal-unreachable", messageOf(error), error));
    session.on("goaway", (code) => this.#lose("signal-unreachable", `server is going away (${code})`));
    session.on("close", () => this.#lose("signal-unreachable", "connection closed"));
    this.#session = session;
    this.#register();
  }

  /**
   * Passes a framed EncryptedMessage to the server; the bytes leave in this turn of the event loop. `done` is called once.
   * The returned function gives up.
   */
  send(frame: Uint8Array, timeoutMs: Millis, done: (result: SendResult) => void): () => void {
    const stream = this.#request(SIGNAL_SEND_PATH, { "grpc-timeout": `${Math.max(1, Math.ceil(timeoutMs))}m` });
    if (!stream) {
      const error = new SignalError("signal-unreachable", "the connection is over", { retryable: true });
      queueMicrotask(() => done({ kind: "failed", error, retry: true }));
      return () => {};
    }
    let status: number | undefined;
    let reason = "";
    let delivered: boolean | undefined;
    let cause: Error | undefined;
    let settled = false;
    const readStatus = (headers: IncomingHeaders): void => {
      const value = headers["grpc-status"];
      if (typeof value !== "string") return;
      status = Number(value);
      reason = decodeGrpcMessage(String(headers["grpc-message"] ?? ""));
    };
    const settle = (result: SendResult): void => {
      if (settled) return;
      settled = true;
      timer.cancel();
      done(result);
    };
    const timer = this.#clock.after(timeoutMs, () => {
      stream.close(constants.NGHTTP2_CANCEL);
      const error = new SignalError("signal-send-timeout", `not passed on within ${Math.round(timeoutMs)} ms`);
      settle({ kind: "failed", error, retry: false });
    });
    stream.on("response", (headers: IncomingHeaders) => {
      const value = headers[DELIVERED_HEADER];
      if (value === "1" || value === "0") delivered = value === "1";
      readStatus(headers);
    });
    stream.on("trailers", readStatus);
    stream.on("error", (error: Error) => {
      cause = error;
    });
    stream.on("close", () => {
      if (status === GrpcStatus.ok) {
        settle({ kind: "passed", delivered });
      } else if (status === undefined || status === GrpcStatus.unavailable) {
        const text = reason || (cause ? messageOf(cause) : "ended without an answer");
        settle({
          kind: "failed",
          error: new SignalError("signal-unreachable", text, { cause, retryable: true }),
          retry: true,
        });
      } else {
        const error = new SignalError("signal-refused", `Send refused with status ${status}: ${reason}`);
        settle({ kind: "failed", error, retry: false });
      }
    });
    stream.resume();
    stream.end(frame);
    return () => {
      settled = true;
      timer.cancel();
      stream.close(constants.NGHTTP2_CANCEL);
    };
  }

  /** The connection began at an address that the machine does not have any more: nothing will come back on it. */
  get isOrphaned(): boolean {
    const local = this.#socket?.localAddress?.replace(/^::ffff:/, "");
    if (local === undefined) return false;
    const own = Object.values(networkInterfaces()).flatMap((entries) => entries ?? []);
    return !own.some(({ address }) => address === local);
  }

  /** HTTP/2 ping; `done` is called when the answer comes, perhaps never. */
  ping(done: () => void): void {
    if (this.#over || !this.#session || this.#session.destroyed) return;
    try {
      this.#session.ping((error) => {
        if (!error && !this.#over) done();
      });
    } catch {
      // The session ended in this very turn; `lost` says so.
    }
  }

  /** Ends the connection without an event; idempotent. */
  close(): void {
    this.#over = true;
    this.#registerTimer.cancel();
    this.#stopDialling();
    this.#session?.destroy();
  }

  #register(): void {
    const stream = this.#request(SIGNAL_STREAM_PATH, { [PEER_ID_HEADER]: this.#options.publicKey });
    if (!stream) return this.#lose("signal-unreachable", "cannot open a stream");
    let ended = "";
    const readStatus = (headers: IncomingHeaders): void => {
      const status = headers["grpc-status"];
      if (status !== undefined) ended = `status ${status}: ${decodeGrpcMessage(String(headers["grpc-message"] ?? ""))}`;
    };
    stream.on("response", (headers: IncomingHeaders) => {
      this.#registerTimer.cancel();
      readStatus(headers);
      if (headers[":status"] !== 200)
        return this.#lose("signal-refused", `server answers with HTTP status ${headers[":status"]}`);
      if (headers[REGISTERED_HEADER] === undefined)
        return this.#lose("signal-refused", `server does not register this key (${ended || "no reason given"})`);
      if (!this.#over) this.#events.registered(headers[ORDERED_HEADER] === "1");
    });
    stream.on("data", (chunk: Buffer) => {
      // What a relay delivered in the same turn goes first: a handshake is answered before what is said about it is read.
      if (this.#arrived.push(chunk) === 1) setImmediate(() => this.#read());
    });
    stream.on("trailers", readStatus);
    stream.on("error", (error: Error) => this.#lose("signal-unreachable", messageOf(error), error));
    stream.on("close", () => {
      this.#lose(ended ? "signal-refused" : "signal-unreachable", ended || "stream ended");
    });
  }

  /** Hands out the messages that arrived. */
  #read(): void {
    for (const chunk of this.#arrived.splice(0)) {
      if (this.#over) return;
      try {
        for (const payload of this.#reader.push(chunk)) {
          // A listener may close the connection between two messages.
          if (!this.#over) this.#events.frame(payload);
        }
      } catch (error) {
        this.#lose("signal-refused", messageOf(error), error);
      }
    }
  }

  #request(path: string, metadata: Readonly<Record<string, string>>): ClientHttp2Stream | undefined {
    if (this.#over || !this.#session || this.#session.destroyed || this.#session.closed) return undefined;
    try {
      return this.#session.request({
        ":method": "POST",
        ":path": path,
        "content-type": "application/grpc",
        te: "trailers",
        "user-agent": "perch",
        ...metadata,
      });
    } catch {
      return undefined;
    }
  }

  #lose(code: "signal-unreachable" | "signal-refused" | "signal-silent", message: string, cause?: unknown): void {
    this.#read();
    if (this.#over) return;
    this.close();
    this.#events.lost(new SignalError(code, message, { cause, retryable: true }));
  }
}

type IncomingHeaders = Readonly<Record<string, string | string[] | number | undefined>>;
