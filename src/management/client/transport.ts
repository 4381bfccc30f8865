import type { Transport } from "@connectrpc/connect";
import { createGrpcTransport, type GrpcTransportOptions, Http2SessionManager } from "@connectrpc/connect-node";
import type { Millis } from "#base/time.ts";
import { ManagementError } from "../errors.ts";

/** Largest message taken from the server, in bytes (protocol/management.md, section 1.1). */
export const MAX_RECEIVE_BYTES = 16 * 1024 * 1024;

/**
 * What the server may send before it must wait for us, in bytes. With HTTP/2's own 64 KiB the map of 50,000 peers, 13 MB, takes
 * 200 round trips.
 */
const WINDOW_BYTES = 1024 * 1024;

/** Keepalive of the HTTP/2 connection while a call is open (section 1.4); a dead server is known after their sum. */
export const PING_INTERVAL: Millis = 30_000;
export const PING_TIMEOUT: Millis = 10_000;

export interface TransportOptions {
  /** `http://host[:port]` (HTTP/2 with prior knowledge) or `https://host[:port]`; path and query are ignored. */
  readonly url: string;
  /** Certificate authority in PEM instead of the system's. */
  readonly ca?: string | undefined;
  readonly pingIntervalMs?: Millis | undefined;
  readonly pingTimeoutMs?: Millis | undefined;
}

export interface ManagementTransport {
  /** The origin that is dialled, for messages. */
  readonly url: string;
  readonly transport: Transport;
  /** Drops the connection and every call on it; the next call dials anew. */
  abort(reason?: Error): void;
}

/** One HTTP/2 connection, dialled by the first call. Throws ManagementError `url-malformed`. */
export function createTransport(options: TransportOptions): ManagementTransport {
  const url = parseManagementUrl(options.url);
  const sessions = new Http2SessionManager(
    url,
    {
      pingIntervalMs: options.pingIntervalMs ?? PING_INTERVAL,
      pingTimeoutMs: options.pingTimeoutMs ?? PING_TIMEOUT,
    },
    { settings: { initialWindowSize: WINDOW_BYTES }, ...(options.ca !== undefined && { ca: options.ca }) },
  );
  const transport = createGrpcTransport({
    baseUrl: url,
    sessionManager: prepareSessions(sessions),
    readMaxBytes: MAX_RECEIVE_BYTES,
    acceptCompression: [],
  });
  return { url, transport, abort: (reason) => sessions.abort(reason) };
}

/**
 * Opens the window of every session, and keeps an error listener on it. Http2SessionManager takes its own away when it is aborted, even from a session that
 * has failed and is about to say so; without a listener that report would end the process.
 */
function prepareSessions(sessions: Http2SessionManager): NonNullable<GrpcTransportOptions["sessionManager"]> {
  const guarded = new WeakSet<object>();
  return {
    authority: sessions.authority,
    async request(method, path, headers, options) {
      const stream = await sessions.request(method, path, headers, options);
      const { session } = stream;
      if (session && !guarded.has(session)) {
        guarded.add(session);
        session.on("error", () => {});
        // Of the streams the setting opens the window, of the connection only this call does.
        if (!session.destroyed) session.setLocalWindowSize(WINDOW_BYTES);
      }
      return stream;
    },
    notifyResponseByteRead: (stream) => sessions.notifyResponseByteRead(stream),
  };
}

/** The origin of a management URL, ports 443 and 80 by default. Throws ManagementError `url-malformed`. */
export function parseManagementUrl(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (!url || (url.protocol !== "https:" && url.protocol !== "http:") || url.hostname === "") {
    throw new ManagementError(
      "url-malformed",
      `${JSON.stringify(text.slice(0, 200))} is no management URL: want http://HOST[:PORT] or https://HOST[:PORT]`,
    );
  }
  return url.origin;
}
