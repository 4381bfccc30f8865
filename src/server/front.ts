import { createPrivateKey, X509Certificate } from "node:crypto";
import {
  createServer as createHttpServer,
  type Server as HttpServer,
  type IncomingMessage,
  type ServerResponse,
} from "node:http";
import {
  createServer as createHttp2Server,
  type Http2Server,
  type Http2ServerRequest,
  type Http2ServerResponse,
} from "node:http2";
import { type AddressInfo, createServer as createTcpServer, type Socket, type Server as TcpServer } from "node:net";
import type { Duplex } from "node:stream";
import { createSecureContext, createServer as createTlsServer, type Server as TlsServer } from "node:tls";
import { messageOf } from "#base/errors.ts";
import { type Endpoint, formatEndpoint, parseIp } from "#base/ip.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import { Http2Sessions, type SessionOwner } from "./http2-sessions.ts";
import { decideOpening } from "./opening.ts";
import { RequestBodies, type RequestBodyLimits } from "./request-bodies.ts";
import { listenError, ServerError } from "./server-error.ts";
import { type Admission, SourceLimits } from "./source-limits.ts";

export type FrontRequest = IncomingMessage | Http2ServerRequest;
export type FrontResponse = ServerResponse | Http2ServerResponse;

/**
 * Where requests go. The path is without its query. Each returns whether it took the request; what nobody takes is
 * answered 404, which a gRPC client reads as UNIMPLEMENTED.
 */
export interface FrontRoutes {
  request(path: string, request: FrontRequest, response: FrontResponse): boolean;
  /** The client may leave the body of this request open for ever; the handler keeps nothing of it. */
  isEndless(path: string): boolean;
  /** A WebSocket upgrade; HTTP/1.1 only. */
  upgrade(path: string, request: IncomingMessage, socket: Duplex, head: Buffer): boolean;
}

/** Certificate chain and private key, PEM. */
export interface TlsMaterial {
  readonly cert: string;
  readonly key: string;
}

export interface FrontOptions {
  /** Port 0 takes a free one. */
  readonly listen: Endpoint;
  /** With it TLS is understood beside plaintext, on the same port. */
  readonly tls?: TlsMaterial;
  readonly limits?: Partial<FrontLimits>;
}

export interface FrontLimits extends RequestBodyLimits {
  /** From the connection to its first byte, and from its first byte to its first complete request. */
  readonly openingMs: Millis;
  /** Silence of an HTTP/1.1 connection inside or between requests. */
  readonly http1IdleMs: Millis;
  /** An HTTP/2 connection without a call is closed after this. One with a call lives for ever. */
  readonly http2IdleMs: Millis;
  /** Every HTTP/2 connection is pinged this often; one that has not answered by the next ping is dropped. */
  readonly pingEveryMs: Millis;
  readonly maxUnprovenPerSource: number;
  readonly maxConnectionsPerSource: number;
  readonly maxStreamsPerConnection: number;
}

export const FRONT_LIMITS: FrontLimits = {
  openingMs: 10_000,
  http1IdleMs: 30_000,
  http2IdleMs: 300_000,
  pingEveryMs: 25_000,
  maxUnprovenPerSource: 256,
  maxConnectionsPerSource: 4096,
  maxStreamsPerConnection: 256,
  bodyMs: 15_000,
  maxBodyBytesPerConnection: 8 * 1024 * 1024,
  maxBodyBytes: 256 * 1024 * 1024,
};

/** Counters since the start; `connections`, `sessions` and `bodyBytes` are now. */
export interface FrontStats {
  readonly connections: number;
  readonly sessions: number;
  readonly accepted: number;
  readonly refusedBySourceLimit: number;
  readonly openingTimeouts: number;
  readonly deadSessions: number;
  readonly tlsFailures: number;
  readonly unrouted: number;
  /** Held by unfinished HTTP/2 request bodies. */
  readonly bodyBytes: number;
  readonly bodyTimeouts: number;
  readonly bodiesRefused: number;
}

/** An accepted TCP connection, whatever it speaks. */
class Connection implements SessionOwner {
  readonly socket: Socket;
  readonly admission: Admission;
  deadline: Timer | undefined;

  constructor(socket: Socket, admission: Admission) {
    this.socket = socket;
    this.admission = admission;
  }

  noteRequest(): void {
    this.deadline?.cancel();
    this.admission.noteProven();
  }

  noteClosed(): void {
    this.deadline?.cancel();
    this.admission.noteClosed();
  }

  cut(): void {
    this.socket.destroy();
  }
}

/**
 * One TCP port for everything: each connection's first bytes say what it is, and the socket goes, with those bytes put
 * back, to the parser for it.
 *
 *                          .-- 0x16 --> TLS --- ALPN h2 ----> HTTP/2 --.
 *     accept --> opening --+-- "PRI * HTTP/2.0" ------------> HTTP/2 --+--> FrontRoutes
 *        |          |      '-- else -----------------> HTTP/1.1 (+ws) -'
 *      limit     deadline         TLS without ALPN h2 --> HTTP/1.1
 *
 * A connection is unproven until its first complete request and has `openingMs` twice to get there. Node's HTTP and TLS
 * servers are used without listening themselves: emitting "connection" on one is its documented way to be given a socket,
 * and all three read what was put back with `unshift` (HTTP/2 since nodejs/node#41185).
 */
export class Front {
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #routes: FrontRoutes;
  readonly #limits: FrontLimits;
  readonly #sources: SourceLimits;
  readonly #tcp: TcpServer;
  readonly #http1: HttpServer;
  readonly #http2: Http2Server;
  readonly #tls: TlsServer | undefined;
  readonly #connections = new Map<Socket, Connection>();
  /** The same by the ends of the TCP connection, which is how a finished TLS handshake is matched. */
  readonly #byEnds = new Map<string, Connection>();
  readonly #sessions: Http2Sessions;
  readonly #bodies: RequestBodies;
  /** The connection that a plaintext or a TLS socket belongs to. */
  readonly #under = new WeakMap<Duplex, Connection>();
  /** Set while a socket is handed to the HTTP/2 server, which announces the session before it returns. */
  #handing: Connection | undefined;
  #unlistened: Promise<void> | undefined;
  #closing: Promise<void> | undefined;
  #accepted = 0;
  #refusedBySourceLimit = 0;
  #openingTimeouts = 0;
  #tlsFailures = 0;
  #unrouted = 0;

  /** Call `listen` next. Throws ServerError `tls-material` when certificate and key are unusable. */
  constructor(deps: { readonly clock: Clock; readonly log: Logger }, options: FrontOptions, routes: FrontRoutes) {
    this.#clock = deps.clock;
    this.#log = deps.log;
    this.#routes = routes;
    this.#limits = { ...FRONT_LIMITS, ...options.limits };
    this.#sources = new SourceLimits({
      maxUnproven: this.#limits.maxUnprovenPerSource,
      maxConnections: this.#limits.maxConnectionsPerSource,
    });
    this.#sessions = new Http2Sessions(deps, {
      pingEveryMs: this.#limits.pingEveryMs,
      idleMs: this.#limits.http2IdleMs,
    });
    this.#bodies = new RequestBodies(deps, this.#limits);
    this.#http1 = this.#createHttp1();
    this.#http2 = this.#createHttp2();
    this.#tls = options.tls ? this.#createTls(options.tls) : undefined;
    // A client may end its sending side before it has read the answer (HTTP/1.1 allows it), hence allowHalfOpen; the
    // parsers end our side themselves.
    this.#tcp = createTcpServer({ noDelay: true, keepAlive: true, allowHalfOpen: true }, (socket) =>
      this.#accept(socket),
    );
  }

  /** Throws ServerError `listen-*`. */
  async listen(endpoint: Endpoint): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#tcp.once("error", (error) => reject(listenError(error, formatEndpoint(endpoint))));
      this.#tcp.listen({ host: endpoint.address, port: endpoint.port, backlog: 4096 }, resolve);
    });
    this.#tcp.removeAllListeners("error");
    this.#tcp.on("error", (err) => this.#log.error("front port failed", { err }));
  }

  /** The port that was taken. */
  get endpoint(): Endpoint {
    const { address, port } = this.#tcp.address() as AddressInfo;
    return { address: parseIp(address), port };
  }

  get stats(): FrontStats {
    return {
      connections: this.#connections.size,
      sessions: this.#sessions.size,
      accepted: this.#accepted,
      refusedBySourceLimit: this.#refusedBySourceLimit,
      openingTimeouts: this.#openingTimeouts,
      deadSessions: this.#sessions.dead,
      tlsFailures: this.#tlsFailures,
      unrouted: this.#unrouted,
      bodyBytes: this.#bodies.bytes,
      bodyTimeouts: this.#bodies.timeouts,
      bodiesRefused: this.#bodies.refused,
    };
  }

  /** New connections see the new certificate. Throws ServerError `tls-material` and keeps the old one. */
  reloadTls(material: TlsMaterial): void {
    if (!this.#tls) throw new ServerError("tls-material", "this server was started without a certificate");
    checkMaterial(material);
    this.#tls.setSecureContext(material);
  }

  /** Refuses new connections, and keeps the ones that are there; the first step of a shutdown. Idempotent. */
  stopListening(): void {
    this.#unlistened ??= new Promise((resolve) => {
      this.#tcp.close(() => resolve());
    });
  }

  /**
   * Refuses new connections at once, sends GOAWAY, gives open calls `graceMs` and then cuts what is left. The owner of
   * the routes ends its long streams first. Idempotent; resolves when every socket is closed.
   */
  close(graceMs: Millis = 1_000): Promise<void> {
    this.#closing ??= this.#shutDown(graceMs);
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #shutDown(graceMs: Millis): Promise<void> {
    this.stopListening();
    const closed = [
      this.#unlistened,
      ...[...this.#connections.keys()].map((socket) => new Promise<void>((resolve) => socket.once("close", resolve))),
    ];
    const busy = this.#sessions.closeAll();
    for (const connection of this.#connections.values()) if (!busy.has(connection)) connection.cut();
    const cutAll = (): void => {
      for (const connection of this.#connections.values()) connection.cut();
    };
    const timer = graceMs > 0 ? this.#clock.after(graceMs, cutAll) : undefined;
    if (!timer) cutAll();
    await Promise.all(closed);
    timer?.cancel();
  }

  // --- accepting

  #accept(socket: Socket): void {
    // Errors of a socket end it; who uses it hears of that by "close". Without a listener they would end the process.
    socket.on("error", () => {});
    const address = socket.remoteAddress;
    if (address === undefined) return void socket.destroy();
    const admission = this.#sources.admit(parseIp(address.replace(/%.*$/, "")));
    if (!admission) {
      this.#refusedBySourceLimit++;
      this.#log.debug("connection refused: too many from one source", { source: address });
      return void socket.destroy();
    }
    this.#accepted++;
    const connection = new Connection(socket, admission);
    const ends = endsOf(socket);
    this.#connections.set(socket, connection);
    this.#byEnds.set(ends, connection);
    this.#under.set(socket, connection);
    socket.once("close", () => {
      connection.noteClosed();
      this.#connections.delete(socket);
      if (this.#byEnds.get(ends) === connection) this.#byEnds.delete(ends);
    });
    this.#armDeadline(connection);
    this.#awaitOpening(connection);
  }

  #awaitOpening(connection: Connection): void {
    const { socket } = connection;
    let held: Buffer = Buffer.alloc(0);
    const look = (): void => {
      const chunk: Buffer | null = socket.read();
      // "readable" without data is the end of the stream (or a spurious wake, after which it comes again).
      if (chunk === null) {
        if (socket.readableEnded) connection.cut();
        return;
      }
      if (held.length === 0) this.#armDeadline(connection);
      held = held.length === 0 ? chunk : Buffer.concat([held, chunk]);
      const opening = decideOpening(held);
      if (opening === "more") return;
      socket.off("readable", look);
      socket.off("end", ended);
      socket.unshift(held);
      this.#handOver(connection, opening);
    };
    // Ended inside the opening: no request can follow.
    const ended = (): void => connection.cut();
    socket.on("readable", look);
    socket.once("end", ended);
  }

  #handOver(connection: Connection, opening: "tls" | "h2" | "http1"): void {
    switch (opening) {
      case "tls":
        if (!this.#tls) {
          this.#tlsFailures++;
          this.#log.debug("TLS client on a server without a certificate", { source: connection.socket.remoteAddress });
          connection.cut();
        } else {
          // Half a TLS connection is of no use; left half open, a client gone in the handshake would hold its place.
          connection.socket.allowHalfOpen = false;
          this.#tls.emit("connection", connection.socket);
        }
        break;
      case "h2":
        this.#serveHttp2(connection, connection.socket);
        break;
      case "http1":
        this.#http1.emit("connection", connection.socket);
        break;
    }
  }

  #armDeadline(connection: Connection): void {
    connection.deadline?.cancel();
    connection.deadline = this.#clock.after(this.#limits.openingMs, () => {
      this.#openingTimeouts++;
      connection.cut();
    });
  }

  // --- the three parsers

  #createTls(material: TlsMaterial): TlsServer {
    checkMaterial(material);
    const server = createTlsServer({
      ...material,
      ALPNProtocols: ["h2", "http/1.1"],
      minVersion: "TLSv1.2",
      handshakeTimeout: this.#limits.openingMs,
    });
    server.on("tlsClientError", (error, socket) => {
      this.#tlsFailures++;
      this.#log.debug("TLS handshake failed", { source: socket.remoteAddress, err: error });
      socket.destroy();
    });
    server.on("secureConnection", (socket) => {
      socket.on("error", () => {});
      const connection = this.#byEnds.get(endsOf(socket));
      if (!connection) return void socket.destroy();
      this.#under.set(socket, connection);
      if (socket.alpnProtocol === "h2") this.#serveHttp2(connection, socket);
      else this.#http1.emit("connection", socket);
    });
    return server;
  }

  #createHttp1(): HttpServer {
    const server = createHttpServer(
      {
        noDelay: true,
        // An upgrade to anything else (h2c) is answered as the plain request it also is, as RFC 9110 section 7.8 allows.
        shouldUpgradeCallback: (request) => request.headers.upgrade?.toLowerCase() === "websocket",
      },
      (request, response) => {
        this.#under.get(request.socket)?.noteRequest();
        this.#route(request, response);
      },
    );
    server.setTimeout(this.#limits.http1IdleMs);
    server.on("upgrade", (request, socket, head) => {
      this.#under.get(socket)?.noteRequest();
      // The relay looks after its connections itself.
      (socket as Socket).setTimeout(0);
      if (this.#routes.upgrade(pathOf(request), request, socket, head)) return;
      this.#unrouted++;
      socket.end("HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", () => socket.destroy());
    });
    return server;
  }

  #createHttp2(): Http2Server {
    const server = createHttp2Server(
      {
        settings: {
          maxConcurrentStreams: this.#limits.maxStreamsPerConnection,
          initialWindowSize: HTTP2_WINDOW_BYTES,
          enablePush: false,
        },
        maxSessionMemory: HTTP2_SESSION_MEMORY_MB,
        Http2ServerRequest: this.#bodies.requestClass,
      },
      (request, response) => {
        const timeout = request.headers["grpc-timeout"];
        if (!this.#routes.isEndless(pathOf(request)))
          this.#bodies.begin(request.stream, Array.isArray(timeout) ? undefined : timeout);
        this.#route(request, response);
      },
    );
    server.on("session", (session) => {
      const connection = this.#handing;
      if (!connection) return void session.destroy();
      session.setLocalWindowSize(HTTP2_WINDOW_BYTES);
      this.#sessions.add(session, connection);
    });
    server.on("sessionError", (error) => this.#log.debug("HTTP/2 connection failed", { err: error }));
    return server;
  }

  #serveHttp2(connection: Connection, socket: Socket): void {
    // HTTP/2 has no half-closed connections: the client's FIN ends ours too.
    connection.socket.allowHalfOpen = false;
    socket.allowHalfOpen = false;
    this.#handing = connection;
    this.#http2.emit("connection", socket);
    this.#handing = undefined;
  }

  // --- routing

  #route(request: FrontRequest, response: FrontResponse): void {
    const path = pathOf(request);
    try {
      if (this.#routes.request(path, request, response)) return;
    } catch (err) {
      this.#log.error("request handler failed", { path, err });
      answer(response, 500, "internal error");
      return;
    }
    this.#unrouted++;
    answer(response, 404, "not found");
  }
}

/** Room a client may fill before we read: large offers (Rosenpass, about 0.5 MB) go up without waiting for a round trip. */
const HTTP2_WINDOW_BYTES = 1024 * 1024;

/** What one HTTP/2 connection may hold in memory: above the 16 MiB that the largest network map takes. */
const HTTP2_SESSION_MEMORY_MB = 64;

/** Creates and listens. Throws ServerError `tls-material` and `listen-*`; nothing is left open then. */
export async function createFront(
  deps: { readonly clock: Clock; readonly log: Logger },
  options: FrontOptions,
  routes: FrontRoutes,
): Promise<Front> {
  const front = new Front(deps, options, routes);
  await front.listen(options.listen);
  return front;
}

/** Answers in plain text; drops the rest of the request's body. */
export function answer(response: FrontResponse, status: number, text: string): void {
  if (response.headersSent) return void response.end();
  response.statusCode = status;
  response.setHeader("content-type", "text/plain; charset=utf-8");
  response.end(`${text}\n`);
}

function pathOf(request: FrontRequest): string {
  const url = request.url ?? "/";
  const query = url.indexOf("?");
  return query < 0 ? url : url.slice(0, query);
}

function endsOf(socket: Socket): string {
  return `${socket.remoteAddress} ${socket.remotePort} ${socket.localAddress}`;
}

/** Node takes an empty certificate, and a key of another one, and fails at each handshake; here it is noticed at once. */
function checkMaterial({ cert, key }: TlsMaterial): void {
  let fits: boolean;
  try {
    fits = new X509Certificate(cert).checkPrivateKey(createPrivateKey(key));
    createSecureContext({ cert, key });
  } catch (cause) {
    throw new ServerError("tls-material", `certificate and key cannot be used: ${messageOf(cause)}`, { cause });
  }
  if (!fits) throw new ServerError("tls-material", "the private key is not that of the certificate");
}
