import { once } from "node:events";
import { createSecureServer, createServer, type Http2Server, type ServerHttp2Session } from "node:http2";
import type { AddressInfo, Socket } from "node:net";
import type { SignalServer } from "./signal-server.ts";

/** A port of its own for a signal server; the all-in-one server shares one instead. */
export interface SignalPort extends AsyncDisposable {
  /** `host:port`. */
  readonly uri: string;
  readonly port: number;
  /** Cuts every connection and stops listening; resolves when all is gone. */
  close(): Promise<void>;
}

export interface SignalPortOptions {
  /** Default 127.0.0.1. */
  readonly host?: string;
  /** Default 0, a free one. */
  readonly port?: number;
  /** PEM of certificate and key; without it clear-text HTTP/2 with prior knowledge. */
  readonly tls?: { readonly cert: string; readonly key: string };
}

/** Listens for HTTP/2 and serves signal alone. */
export async function listenSignal(server: SignalServer, options: SignalPortOptions = {}): Promise<SignalPort> {
  const host = options.host ?? "127.0.0.1";
  const http: Http2Server = options.tls ? createSecureServer(options.tls) : createServer();
  const sockets = new Set<Socket>();
  const sessions = new Set<ServerHttp2Session>();
  http.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    socket.setNoDelay(true);
  });
  http.on("session", (session) => {
    sessions.add(session);
    session.on("close", () => sessions.delete(session));
    // A connection that breaks ends its streams; there is nobody to tell.
    session.on("error", () => {});
  });
  http.on("request", (request, response) => {
    if (!server.handle(request, response)) response.writeHead(404).end();
  });
  http.listen(options.port ?? 0, host);
  await once(http, "listening");
  const { port } = http.address() as AddressInfo;
  let closing: Promise<void> | undefined;
  const close = (): Promise<void> => {
    closing ??= new Promise((resolve) => {
      http.close(() => resolve());
      for (const session of sessions) session.destroy();
      for (const socket of sockets) socket.destroy();
    });
    return closing;
  };
  return { uri: `${host.includes(":") ? `[${host}]` : host}:${port}`, port, close, [Symbol.asyncDispose]: close };
}
