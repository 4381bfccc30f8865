import type { Http2ServerRequest, Http2ServerResponse } from "node:http2";
import { constants } from "node:http2";
import { encodeMessage } from "#base/flagged-messages.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis } from "#base/time.ts";
import { encodeGrpcMessage, GrpcFrameReader, GrpcStatus, GrpcWireError } from "../protocol/grpc-wire.ts";
import { parseEncryptedMessage } from "../protocol/sealed-message.ts";
import {
  DELIVERED_HEADER,
  DUMMY_RECIPIENT,
  ORDERED_HEADER,
  PEER_ID_HEADER,
  REGISTERED_HEADER,
  SIGNAL_MESSAGE_MAX_BYTES,
  SIGNAL_PATH_PREFIX,
  SIGNAL_SEND_PATH,
  SIGNAL_STREAM_PATH,
} from "../protocol/signal-service.ts";

/** Longest key taken as a registration, characters; real ones have 44. */
const PEER_ID_MAX_LENGTH = 256;

export interface SignalServerDeps {
  readonly clock: Clock;
  readonly log: Logger;
}

export interface SignalServerOptions {
  /** A message not written to its recipient after this time is lost and ends the recipient's stream. Default 10 s. */
  readonly writeTimeoutMs?: Millis;
  /** Bytes waiting for one recipient; a message beyond is lost, the stream stays. Default 8 MiB. */
  readonly queueMaxBytes?: number;
}

export interface SignalServerCounters {
  /** Streams registered now. */
  readonly registered: number;
  readonly registrations: number;
  /** Registrations that ended an older stream of the same key. */
  readonly replaced: number;
  readonly received: number;
  readonly delivered: number;
  /** Messages for keys that are not registered. */
  readonly unknownRecipient: number;
  /** Messages lost because a recipient did not read. */
  readonly lost: number;
}

/** One live ConnectStream. */
interface Registration {
  readonly key: string;
  readonly response: Http2ServerResponse;
  /** Waiting to be written, bytes. */
  queued: number;
  /** One per message that waits: ends the waiting as lost. */
  readonly waiting: Set<() => void>;
}

/**
 * The signal service: agents register with ConnectStream and pass messages to each other with Send (section 1 of
 * signal-and-peer-connection.md). It holds nothing but live streams; bodies are opaque and travel unchanged, keys are
 * opaque strings.
 *
 *   handle(request) ── path ──> ConnectStream: HEADERS at once, then whatever Send brings, trailers at the end
 *                          └──> Send: parse, find the stream of remoteKey, write, answer
 *
 * It owns no socket: a server that shares a port hands it requests, and ends connections that died, as the front does.
 */
export class SignalServer {
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #options: Required<SignalServerOptions>;
  readonly #registrations = new Map<string, Registration>();
  readonly #counters = { registrations: 0, replaced: 0, received: 0, delivered: 0, unknownRecipient: 0, lost: 0 };
  #closed = false;

  constructor(deps: SignalServerDeps, options: SignalServerOptions = {}) {
    this.#clock = deps.clock;
    this.#log = deps.log;
    this.#options = {
      writeTimeoutMs: options.writeTimeoutMs ?? 10_000,
      queueMaxBytes: options.queueMaxBytes ?? 8 * 1024 * 1024,
    };
  }

  /** Takes a request of the signal service; false when it is for somebody else, untouched then. */
  handle(request: Http2ServerRequest, response: Http2ServerResponse): boolean {
    if (request.httpVersionMajor < 2 || !request.url.startsWith(SIGNAL_PATH_PREFIX)) return false;
    // A stream that breaks is closed by 'close'; without a listener its error would end the process.
    request.on("error", () => {});
    response.on("error", () => {});
    if (request.method !== "POST" || !request.headers["content-type"]?.startsWith("application/grpc")) {
      response.writeHead(415).end();
      return true;
    }
    if (this.#closed) {
      finish(begin(response), GrpcStatus.unavailable, "server is shutting down");
    } else if (request.url === SIGNAL_STREAM_PATH) {
      this.#register(request, response);
    } else if (request.url === SIGNAL_SEND_PATH) {
      this.#receive(request, response);
    } else {
      finish(begin(response), GrpcStatus.unimplemented, `unknown method ${request.url}`);
    }
    return true;
  }

  counters(): SignalServerCounters {
    return { registered: this.#registrations.size, ...this.#counters };
  }

  isRegistered(key: string): boolean {
    return this.#registrations.has(key);
  }

  /** Ends all streams and refuses new ones; agents reconnect elsewhere. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const { response } of this.#registrations.values())
      finish(response, GrpcStatus.unavailable, "server is shutting down");
    this.#registrations.clear();
  }

  /** ConnectStream. The newest stream of a key wins. */
  #register(request: Http2ServerRequest, response: Http2ServerResponse): void {
    // Agents send nothing upstream; what comes is discarded so that it cannot fill the window of the connection.
    request.resume();
    const key = request.headers[PEER_ID_HEADER];
    if (typeof key !== "string" || key === "" || key.length > PEER_ID_MAX_LENGTH) {
      finish(begin(response), GrpcStatus.failedPrecondition, `missing or invalid metadata ${PEER_ID_HEADER}`);
      return;
    }
    const registration: Registration = { key, response, queued: 0, waiting: new Set() };
    const previous = this.#registrations.get(key);
    this.#registrations.set(key, registration);
    this.#counters.registrations++;
    response.stream.on("close", () => {
      if (this.#registrations.get(key) === registration) this.#registrations.delete(key);
      for (const lose of [...registration.waiting]) lose();
    });
    begin(response, { [REGISTERED_HEADER]: "1", [ORDERED_HEADER]: "1" });
    if (previous) {
      this.#counters.replaced++;
      this.#log.info("signal stream replaced", {
        peer: key,
        from: remoteOf(previous.response),
        to: remoteOf(response),
      });
      finish(previous.response, GrpcStatus.unknown, "peer registered again");
    }
  }

  /** Send. */
  #receive(request: Http2ServerRequest, response: Http2ServerResponse): void {
    const reader = new GrpcFrameReader(SIGNAL_MESSAGE_MAX_BYTES);
    let complete = false;
    request.on("data", (chunk: Buffer) => {
      if (complete) return;
      try {
        const [payload] = reader.push(chunk);
        if (!payload) return;
        complete = true;
        this.#pass(payload, response);
      } catch (error) {
        if (!(error instanceof GrpcWireError)) throw error;
        complete = true;
        finish(begin(response), error.status, error.message);
      }
    });
    request.on("end", () => {
      if (!complete) finish(begin(response), GrpcStatus.internal, "request ends within a message");
    });
  }

  /** Handles the message of one Send. It is not put off to the end of the request: the order of arrival is kept. */
  #pass(payload: Uint8Array, response: Http2ServerResponse): void {
    const message = parseEncryptedMessage(payload);
    if (!message) {
      finish(begin(response), GrpcStatus.internal, "request is no EncryptedMessage");
      return;
    }
    this.#counters.received++;
    if (message.remoteKey === DUMMY_RECIPIENT) reply(response, undefined);
    else this.#deliver(message.remoteKey, payload, (delivered) => reply(response, delivered));
  }

  /** Writes a message to its recipient's stream and says once what became of it. */
  #deliver(key: string, payload: Uint8Array, done: (delivered: boolean) => void): void {
    const registration = this.#registrations.get(key);
    if (!registration) {
      this.#counters.unknownRecipient++;
      done(false);
      return;
    }
    const frame = encodeMessage(payload);
    if (registration.queued > 0 && registration.queued + frame.length > this.#options.queueMaxBytes) {
      this.#counters.lost++;
      done(false);
      return;
    }
    registration.queued += frame.length;
    const settle = (delivered: boolean): void => {
      if (!registration.waiting.delete(lose)) return;
      timer.cancel();
      registration.queued -= frame.length;
      this.#counters[delivered ? "delivered" : "lost"]++;
      done(delivered);
    };
    const lose = (): void => settle(false);
    registration.waiting.add(lose);
    const timer = this.#clock.after(this.#options.writeTimeoutMs, () => this.#cut(registration));
    registration.response.write(frame, (error?: Error | null) => settle(!error));
  }

  /** Ends the stream of a recipient that does not read; the agent reconnects. */
  #cut(registration: Registration): void {
    const { key, response } = registration;
    this.#log.info("signal stream does not take messages, ended", { peer: key, from: remoteOf(response) });
    if (this.#registrations.get(key) === registration) this.#registrations.delete(key);
    // Trailers would wait behind the data that does not move.
    response.stream.close(constants.NGHTTP2_INTERNAL_ERROR);
    for (const lose of [...registration.waiting]) lose();
  }
}

/** Sends the response HEADERS now. */
function begin(response: Http2ServerResponse, metadata: Readonly<Record<string, string>> = {}): Http2ServerResponse {
  if (response.stream?.destroyed === false)
    response.writeHead(200, { "content-type": "application/grpc", ...metadata });
  return response;
}

/**
 * Sends the trailers and ends the stream, also the half of a client that does not end it. A reset before the trailers are
 * handed over would swallow them, so it waits for that.
 */
function finish(response: Http2ServerResponse, status: GrpcStatus, message = ""): void {
  const { stream } = response;
  if (stream?.destroyed !== false) return;
  response.addTrailers({
    "grpc-status": String(status),
    ...(message && { "grpc-message": encodeGrpcMessage(message) }),
  });
  stream.once("wantTrailers", () => setImmediate(() => stream.close(constants.NGHTTP2_NO_ERROR)));
  response.end();
}

const EMPTY_REPLY = encodeMessage(new Uint8Array(0));

/** The empty answer to Send. */
function reply(response: Http2ServerResponse, delivered: boolean | undefined): void {
  if (response.stream?.destroyed !== false) return;
  begin(response, delivered === undefined ? {} : { [DELIVERED_HEADER]: delivered ? "1" : "0" });
  response.write(EMPTY_REPLY);
  finish(response, GrpcStatus.ok);
}

function remoteOf(response: Http2ServerResponse): string | undefined {
  return response.stream?.session?.socket?.remoteAddress;
}

/** The signal service as a plain handler for a server that routes by path. */
export function createSignalServer(deps: SignalServerDeps, options?: SignalServerOptions): SignalServer {
  return new SignalServer(deps, options);
}
