import type { IncomingMessage } from "node:http";
import {
  create,
  type DescMessage,
  type DescMethod,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import type { PerchError } from "#base/errors.ts";
import { encodeMessage } from "#base/flagged-messages.ts";
import { Daemon } from "#gen/daemon_pb.ts";
import { CONTENT_TYPES, EnvelopeReader, MESSAGE_MAX_BYTES, parseError, RemoteError } from "./connect-wire.ts";
import { DaemonError } from "./daemon-error.ts";

// An import reads every member of the module, one of which loads fetch: as long as a fifth of `perch status`.
const http = process.getBuiltinModule("node:http");

const NOT_FOUND = 404;

export interface CallOptions {
  /** Ends the call: the daemon gives up what it can, and the caller gets the signal's reason thrown. */
  readonly signal?: AbortSignal;
}

type Methods = typeof Daemon.method;
type Request<Name extends keyof Methods> = MessageInitShape<Methods[Name]["input"]>;
type Answer<Name extends keyof Methods> = MessageShape<Methods[Name]["output"]>;

/**
 * The calls of the daemon's API. They throw RemoteError for what the daemon reports, DaemonError `daemon-lost` when it is not
 * there or ends before the call does. A stream asks when it is read for the first time; leaving it ends the call.
 */
export type DaemonClient = {
  readonly [Name in keyof Methods]: Methods[Name]["methodKind"] extends "unary"
    ? (request: Request<Name>, options?: CallOptions) => Promise<Answer<Name>>
    : (request: Request<Name>, options?: CallOptions) => AsyncIterable<Answer<Name>>;
};

/** A client of the daemon's API on a unix socket: a connection for each call, none before the first. */
export function createDaemonClient(socketPath: string): DaemonClient {
  const calls = Object.entries(Daemon.method).map(([name, method]) => {
    const call = method.methodKind === "unary" ? callUnary : callStream;
    return [name, (request: object, options: CallOptions = {}) => call(socketPath, method, request, options)];
  });
  return Object.fromEntries(calls) as DaemonClient;
}

async function callUnary(
  socketPath: string,
  method: DescMethod,
  request: object,
  { signal }: CallOptions,
): Promise<MessageShape<DescMessage>> {
  try {
    const response = await post(socketPath, method, CONTENT_TYPES.unary, encode(method, request), signal);
    const body = await readAll(response);
    if (response.statusCode !== 200) throw refusal(response, body, method);
    return fromBinary(method.output, body);
  } catch (error) {
    throw failure(error, socketPath, signal);
  }
}

async function* callStream(
  socketPath: string,
  method: DescMethod,
  request: object,
  { signal }: CallOptions,
): AsyncGenerator<MessageShape<DescMessage>> {
  let response: IncomingMessage | undefined;
  try {
    const body = encodeMessage(encode(method, request));
    response = await post(socketPath, method, CONTENT_TYPES.stream, body, signal);
    if (response.statusCode !== 200) throw refusal(response, await readAll(response), method);
    const reader = new EnvelopeReader();
    for await (const chunk of response as AsyncIterable<Uint8Array>) {
      for (const envelope of reader.push(chunk)) {
        if (envelope.kind === "message") yield fromBinary(method.output, envelope.bytes);
        else if (envelope.error) throw envelope.error;
        else return;
      }
    }
    throw new DaemonError("daemon-lost", "the stream has no end");
  } catch (error) {
    throw failure(error, socketPath, signal);
  } finally {
    response?.destroy();
  }
}

function encode(method: DescMethod, request: object): Uint8Array {
  return toBinary(method.input, create(method.input, request as MessageInitShape<DescMessage>));
}

/** Resolves with the head of the answer. */
function post(
  socketPath: string,
  method: DescMethod,
  contentType: string,
  body: Uint8Array,
  signal: AbortSignal | undefined,
): Promise<IncomingMessage> {
  const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
  const request = http.request({
    socketPath,
    path: `/${method.parent.typeName}/${method.name}`,
    method: "POST",
    agent: false,
    headers: {
      "content-type": contentType,
      "content-length": body.length,
      "connect-protocol-version": "1",
    },
    ...(signal && { signal }),
  });
  request.once("response", resolve).on("error", reject).end(body);
  return promise;
}

async function readAll(response: IncomingMessage): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of response as AsyncIterable<Uint8Array>) {
    size += chunk.length;
    if (size > MESSAGE_MAX_BYTES)
      throw new DaemonError("daemon-lost", `a message is at most ${MESSAGE_MAX_BYTES} bytes, got more`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

/** Every error of the API is JSON; a call that nobody serves is answered without. */
function refusal({ statusCode, headers }: IncomingMessage, body: Uint8Array, method: DescMethod): PerchError {
  if (statusCode !== NOT_FOUND || headers["content-type"] === "application/json") return parseError(body);
  return new RemoteError(
    "daemon-lost",
    `the daemon does not know ${method.name}: it is of another version, restart it`,
  );
}

/** What to throw for what went wrong in a call. */
function failure(error: unknown, socketPath: string, signal: AbortSignal | undefined): unknown {
  if (signal?.aborted) return signal.reason;
  if (error instanceof RemoteError) return error;
  return new DaemonError("daemon-lost", `the daemon on ${socketPath} ended before it was done`, { cause: error });
}
