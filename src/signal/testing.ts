import { once } from "node:events";
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect,
  createServer,
  type Http2Server,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from "node:http2";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { encodeMessage } from "#base/flagged-messages.ts";
import { PrivateKey, type PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { type Clock, systemClock } from "#base/time.ts";
import { type Body, Body_Type, BodySchema } from "#gen/signal_pb.ts";
import { SignalClient, type SignalClientOptions } from "./client/signal-client.ts";
import { GrpcFrameReader } from "./protocol/grpc-wire.ts";
import { REGISTERED_HEADER, SIGNAL_SEND_PATH, SIGNAL_STREAM_PATH } from "./protocol/signal-service.ts";
import { listenSignal, type SignalPort } from "./server/signal-port.ts";
import { createSignalServer, type SignalServer, type SignalServerOptions } from "./server/signal-server.ts";

/* Support for the tests of this folder. */

export const deps = { clock: systemClock, log: silentLogger };

export interface Host extends AsyncDisposable {
  readonly server: SignalServer;
  readonly port: SignalPort;
}

export async function host(options: SignalServerOptions = {}, port = 0, clock: Clock = systemClock): Promise<Host> {
  const server = createSignalServer({ clock, log: silentLogger }, options);
  const listening = await listenSignal(server, { port });
  return {
    server,
    port: listening,
    async [Symbol.asyncDispose]() {
      server.close();
      await listening.close();
    },
  };
}

export function agent(uri: string, options: Partial<SignalClientOptions> = {}, clock: Clock = systemClock) {
  const key = options.key ?? PrivateKey.generate();
  const client = new SignalClient({ clock, log: silentLogger }, { uri, tls: false, key, ...options });
  const received: { from: PublicKey; body: Body }[] = [];
  client.events.on("message", (message) => received.push(message));
  client.start();
  return { client, key, received, [Symbol.asyncDispose]: () => client.close() };
}

export async function until(what: string, check: () => boolean, limitMs = 5000): Promise<void> {
  const end = performance.now() + limitMs;
  while (!check()) {
    if (performance.now() > end) throw new Error(`waited ${limitMs} ms for: ${what}`);
    await sleep(2);
  }
}

/** A gRPC client that knows nothing of ours but the path. */
export function raw(uri: string, settings = {}): ClientHttp2Session & Disposable {
  const session = connect(`http://${uri}`, { settings });
  session.on("error", () => {});
  return Object.assign(session, { [Symbol.dispose]: () => session.destroy() });
}

export function call(
  session: ClientHttp2Session,
  path: string,
  metadata: Record<string, string> = {},
): ClientHttp2Stream {
  const stream = session.request({
    ":method": "POST",
    ":path": path,
    "content-type": "application/grpc",
    te: "trailers",
    ...metadata,
  });
  stream.on("error", () => {});
  return stream;
}

export interface Answer {
  readonly headers: Record<string, unknown>;
  readonly trailers: Record<string, unknown>;
  readonly data: Buffer;
}

export async function answerOf(stream: ClientHttp2Stream): Promise<Answer> {
  let headers = {};
  let trailers = {};
  const chunks: Buffer[] = [];
  stream.on("response", (value) => {
    headers = value;
  });
  stream.on("trailers", (value) => {
    trailers = value;
  });
  stream.on("data", (chunk: Buffer) => chunks.push(chunk));
  if (!stream.closed) await once(stream, "close");
  return { headers, trailers, data: Buffer.concat(chunks) };
}

export function send(session: ClientHttp2Session, payload: Uint8Array): Promise<Answer> {
  const stream = call(session, SIGNAL_SEND_PATH);
  stream.end(encodeMessage(payload));
  return answerOf(stream);
}

export const numbered = (number: number, type: Body_Type = Body_Type.OFFER): Body =>
  create(BodySchema, { type, payload: String(number) });

/** A server that registers everyone and then does as it is told. */
export async function fakeServer(onSend: (payload: Uint8Array) => void) {
  const streams: ServerHttp2Stream[] = [];
  const http: Http2Server = createServer();
  const sessions = new Set<ServerHttp2Session>();
  http.on("session", (session) => void sessions.add(session));
  http.on("stream", (stream, headers) => {
    stream.on("error", () => {});
    if (headers[":path"] === SIGNAL_STREAM_PATH) {
      streams.push(stream);
      stream.respond({ ":status": 200, "content-type": "application/grpc", [REGISTERED_HEADER]: "1" });
      return;
    }
    const reader = new GrpcFrameReader(1 << 20);
    stream.on("data", (chunk: Buffer) => {
      for (const payload of reader.push(chunk)) onSend(payload);
    });
    stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
    stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
    stream.end(Buffer.alloc(5));
  });
  http.listen(0, "127.0.0.1");
  await once(http, "listening");
  return {
    uri: `127.0.0.1:${(http.address() as AddressInfo).port}`,
    streams,
    async [Symbol.asyncDispose]() {
      for (const session of sessions) session.destroy();
      await new Promise<void>((resolve) => http.close(() => resolve()));
    },
  };
}
