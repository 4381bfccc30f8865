import { once } from "node:events";
import { createServer } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo, Socket } from "node:net";
import type { RelayServer } from "./relay-server.ts";

/** A port of its own for a relay server; the all-in-one server shares one instead. */
export interface RelayPort extends AsyncDisposable {
  readonly port: number;
  /** Cuts every connection and stops listening; resolves when all is gone. */
  close(): Promise<void>;
}

export interface RelayPortOptions {
  /** Default 127.0.0.1. */
  readonly host?: string;
  /** Default 0, a free one. */
  readonly port?: number;
  /** PEM of certificate and key. */
  readonly tls?: { readonly cert: string; readonly key: string };
}

/** Time for the headers of a request (relay.md, 2.2). */
const HEADERS_TIMEOUT_MS = 5_000;

/** Listens for HTTP/1.1 and serves the relay alone. The server is asked for at the first upgrade, so it may know the port. */
export async function listenRelay(server: () => RelayServer, options: RelayPortOptions = {}): Promise<RelayPort> {
  const http = options.tls
    ? createTlsServer({ ...options.tls, ALPNProtocols: ["http/1.1"], headersTimeout: HEADERS_TIMEOUT_MS })
    : createServer({ headersTimeout: HEADERS_TIMEOUT_MS });
  const sockets = new Set<Socket>();
  http.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });
  http.on("request", (_, response) => response.writeHead(404).end());
  http.on("upgrade", (request, socket, head) => {
    // Until the relay takes over, a reset by the other side must not end the process.
    socket.on("error", () => {});
    if (!server().handleUpgrade(request, socket, head)) socket.destroy();
  });
  http.listen(options.port ?? 0, options.host ?? "127.0.0.1");
  await once(http, "listening");
  let closing: Promise<void> | undefined;
  const close = (): Promise<void> => {
    closing ??= new Promise((resolve) => {
      http.close(() => resolve());
      for (const socket of sockets) socket.destroy();
    });
    return closing;
  };
  return { port: (http.address() as AddressInfo).port, close, [Symbol.asyncDispose]: close };
}
