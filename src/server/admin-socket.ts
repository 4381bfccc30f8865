import { rmSync, statSync } from "node:fs";
import { createServer, type IncomingMessage, request, type ServerResponse } from "node:http";
import { connect } from "node:net";
import type { z } from "zod";
import { messageOf, PerchError } from "#base/errors.ts";
import type { Logger } from "#base/log.ts";
import { listenError, ServerError } from "./server-error.ts";

/** One thing an administrator may ask: how its JSON input must look, and what to do. */
export interface AdminMethod<Input = never> {
  readonly input: z.ZodType<Input>;
  run(input: Input): Promise<unknown>;
}

/** Largest request that is read, bytes. */
const REQUEST_MAX_BYTES = 64 * 1024;

export interface AdminSocket extends AsyncDisposable {
  readonly path: string;
  /** Idempotent; removes the socket. */
  close(): Promise<void>;
}

/**
 * Serves methods on a unix socket that its owner alone may open (0600): `POST /<method>` with a JSON object, answered with
 * JSON, or with `{code, message}` and status 400 (the input), 404 (no such method), 409 (refused) or 500. The caller holds
 * the data directory's lock, so a socket that is there is a dead server's. Throws ServerError `listen-*`.
 */
export async function serveAdmin(
  deps: { readonly log: Logger },
  path: string,
  methods: Readonly<Record<string, AdminMethod>>,
): Promise<AdminSocket> {
  if (statSync(path, { throwIfNoEntry: false })?.isSocket()) rmSync(path);
  const server = createServer((incoming, response) => {
    void respond(incoming, response, methods, deps.log);
  });
  server.requestTimeout = 10_000;
  const listening = new Promise<void>((resolve, reject) => {
    server.once("listening", resolve);
    server.once("error", (error) => reject(listenError(error, path)));
  });
  // Node binds inside `listen`, so the mask covers exactly the moment in which the file appears.
  const mask = process.umask(0o177);
  try {
    server.listen(path);
  } finally {
    process.umask(mask);
  }
  await listening;
  let closing: Promise<void> | undefined;
  const close = (): Promise<void> => {
    closing ??= new Promise((resolve) => {
      server.close(() => resolve());
      server.closeAllConnections();
    });
    return closing;
  };
  return { path, close, [Symbol.asyncDispose]: close };
}

async function respond(
  incoming: IncomingMessage,
  response: ServerResponse,
  methods: Readonly<Record<string, AdminMethod>>,
  log: Logger,
): Promise<void> {
  const send = (status: number, body: unknown): void => {
    response.writeHead(status, { "content-type": "application/json" });
    response.end(`${JSON.stringify(body)}\n`);
  };
  const name = incoming.url?.slice(1) ?? "";
  const method = incoming.method === "POST" && Object.hasOwn(methods, name) ? methods[name] : undefined;
  if (!method) {
    incoming.resume();
    return send(404, { code: "unknown-method", message: `this server knows no ${name.slice(0, 64)}` });
  }
  try {
    const body = JSON.parse(await readBody(incoming)) as unknown;
    const parsed = method.input.safeParse(body);
    if (!parsed.success) return send(400, { code: "option-invalid", message: describeIssues(parsed.error) });
    send(200, (await method.run(parsed.data)) ?? {});
    log.info("admin request", { method: name });
  } catch (error) {
    if (error instanceof PerchError) return send(409, { code: error.code, message: error.message });
    if (error instanceof SyntaxError) return send(400, { code: "option-invalid", message: "the request is not JSON" });
    log.error("admin request failed", { method: name, err: error });
    send(500, { code: "internal", message: "internal error; the server's log has it" });
  }
}

async function readBody(incoming: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of incoming) {
    length += (chunk as Buffer).length;
    if (length > REQUEST_MAX_BYTES)
      throw new ServerError("option-invalid", `the request is longer than ${REQUEST_MAX_BYTES} bytes`);
    chunks.push(chunk as Buffer);
  }
  return Buffer.concat(chunks).toString("utf8");
}

function describeIssues(error: z.ZodError): string {
  return error.issues.map((issue) => `${issue.path.join(".") || "request"}: ${issue.message}`).join("; ");
}

/** True when a server answers on the socket. */
export function hasAdmin(path: string): Promise<boolean> {
  const { promise, resolve, reject } = Promise.withResolvers<boolean>();
  const socket = connect({ path });
  socket.once("connect", () => {
    socket.destroy();
    resolve(true);
  });
  socket.once("error", (cause: NodeJS.ErrnoException) => {
    if (cause.code === "ENOENT" || cause.code === "ECONNREFUSED") resolve(false);
    else
      reject(new ServerError("admin-refused", `cannot talk to the server on ${path}: ${messageOf(cause)}`, { cause }));
  });
  return promise;
}

/**
 * Asks a running server. `parse` reads the answer. Throws ServerError `admin-refused` with the server's own message, and
 * when the connection breaks.
 */
export async function callAdmin<Output>(
  path: string,
  method: string,
  input: unknown,
  output: z.ZodType<Output>,
): Promise<Output> {
  const { status, body } = await post(path, method, JSON.stringify(input));
  if (status === 200) return output.parse(body);
  const message =
    typeof body === "object" && body !== null && "message" in body ? String(body.message) : `status ${status}`;
  throw new ServerError(status === 400 ? "option-invalid" : "admin-refused", message);
}

function post(path: string, method: string, text: string): Promise<{ status: number; body: unknown }> {
  const { promise, resolve, reject } = Promise.withResolvers<{ status: number; body: unknown }>();
  const fail = (cause: unknown): void =>
    reject(new ServerError("admin-refused", `the server on ${path} did not answer: ${messageOf(cause)}`, { cause }));
  const outgoing = request({ socketPath: path, path: `/${method}`, method: "POST", timeout: 10_000 });
  outgoing.once("timeout", () => outgoing.destroy(new Error("no answer within 10 s")));
  outgoing.once("error", fail);
  outgoing.once("response", (response) => {
    const chunks: Buffer[] = [];
    response.on("data", (chunk: Buffer) => chunks.push(chunk));
    response.once("error", fail);
    response.once("end", () => {
      try {
        resolve({ status: response.statusCode ?? 0, body: JSON.parse(Buffer.concat(chunks).toString("utf8")) });
      } catch (cause) {
        fail(cause);
      }
    });
  });
  outgoing.end(text);
  return promise;
}
