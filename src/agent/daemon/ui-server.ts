import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { messageOf } from "#base/errors.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis, Timer } from "#base/time.ts";
import { DaemonError } from "./daemon-error.ts";
import { ActivityLog, type ActivitySource } from "./ui-activity.ts";
import { readUiFiles, type UiFile, WEB_FOLDER } from "./ui-files.ts";
import { judge, SECURITY_HEADERS, sessionCookie } from "./ui-gate.ts";
import { TOKEN_LIFE, type UiPass, UiSessions } from "./ui-sessions.ts";

/** Bytes of a request's head, and of the body that carries a token. */
const HEAD_MAX_BYTES = 16 * 1024;
const TOKEN_BODY_MAX_BYTES = 1024;

/** Answers calls of the daemon's API over HTTP. */
export type ApiHandler = (request: IncomingMessage, response: ServerResponse) => void;

export interface UiServerDeps {
  readonly agent: ActivitySource;
  readonly clock: Clock;
  readonly log: Logger;
  /** Called every few seconds while the page is served, so that watchers of the status see counters move. */
  readonly pulse?: () => void;
  /** The daemon's API; asked for when the page is first served. */
  readonly api: () => ApiHandler;
}

export interface UiServerOptions {
  /** The built page; default `web/dist`. */
  readonly folder?: string;
  /** Connections at a time and address; more are closed at once. Default 64. */
  readonly connectionsMax?: number;
  /** A connection that did not send a whole head within this is closed. Default 5 s. */
  readonly headPatience?: Millis;
}

/** What opens the page once. */
export interface UiLink {
  readonly url: string;
  /** Wall clock ms. */
  readonly expiresAt: number;
}

interface Listening {
  readonly servers: readonly Server[];
  readonly port: number;
  readonly hosts: ReadonlySet<string>;
  readonly files: ReadonlyMap<string, UiFile>;
  readonly api: ApiHandler;
}

/**
 * The web page on loopback. Nothing listens until a link is asked for over the unix socket, and nothing listens any more when
 * no link and no session is left.
 */
export class UiServer implements AsyncDisposable {
  readonly activity: ActivityLog;
  readonly #deps: UiServerDeps;
  readonly #options: UiServerOptions;
  readonly #sessions: UiSessions;
  #listening: Listening | undefined;
  #timer: Timer | undefined;
  /** Opening and closing one after the other. */
  #last: Promise<unknown> = Promise.resolve();
  #closed: Promise<void> | undefined;

  constructor(deps: UiServerDeps, options: UiServerOptions = {}) {
    this.#deps = deps;
    this.#options = options;
    this.#sessions = new UiSessions(deps.clock);
    this.activity = new ActivityLog(deps.agent, deps.clock, deps.pulse);
  }

  /** The port that is served, undefined while none is. */
  get port(): number | undefined {
    return this.#listening?.port;
  }

  /**
   * A link that opens the page once; starts to serve it if necessary. Port 0: the one in use, or any free one. Throws
   * DaemonError `value-invalid` for another port than the one in use, `ui-listen`, `daemon-path` without a built page.
   */
  open(port: number): Promise<UiLink> {
    return this.#inTurn(async () => {
      if (this.#closed) throw new DaemonError("superseded", "the daemon is ending");
      this.#listening ??= await this.#listen(port);
      const { port: served } = this.#listening;
      if (port !== 0 && port !== served)
        throw new DaemonError("value-invalid", `--port ${port}: the page is served on port ${served} already`);
      this.activity.start();
      const token = this.#sessions.issueToken();
      this.#arm();
      return {
        url: `http://127.0.0.1:${served}/#token=${token}`,
        expiresAt: this.#deps.clock.wall() + TOKEN_LIFE,
      };
    });
  }

  /** Ends sessions and streams and stops to listen; idempotent. */
  close(): Promise<void> {
    this.#closed ??= this.#inTurn(() => this.#stop());
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #inTurn<Result>(job: () => Promise<Result>): Promise<Result> {
    const turn = this.#last.then(job);
    this.#last = turn.catch(() => {});
    return turn;
  }

  async #listen(port: number): Promise<Listening> {
    const files = readUiFiles(this.#options.folder ?? WEB_FOLDER);
    const servers = [this.#createServer()];
    const bound = await listenOn(servers[0]!, "127.0.0.1", port);
    const hosts = new Set([`127.0.0.1:${bound}`]);
    const second = this.#createServer();
    try {
      await listenOn(second, "::1", bound);
      servers.push(second);
      hosts.add(`[::1]:${bound}`);
    } catch (error) {
      // A machine without IPv6, or somebody else's port there: links name 127.0.0.1 anyway.
      this.#deps.log.debug("the web page is not served on ::1", { err: messageOf(error) });
    }
    this.#deps.log.info("web page served", { port: bound });
    return { servers, port: bound, hosts, files, api: this.#deps.api() };
  }

  #createServer(): Server {
    const headersTimeout = this.#options.headPatience ?? 5000;
    const server = createServer(
      {
        maxHeaderSize: HEAD_MAX_BYTES,
        headersTimeout,
        // Of receiving a request; answers, which are streams, last as long as somebody watches.
        requestTimeout: 2 * headersTimeout,
        connectionsCheckingInterval: headersTimeout / 2,
        keepAliveTimeout: 5000,
      },
      (request, response) => this.#answer(request, response),
    );
    server.on("error", (error) => this.#deps.log.warn("the web page's listener failed", { err: error.message }));
    server.maxConnections = this.#options.connectionsMax ?? 64;
    return server;
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const listening = this.#listening;
    if (!listening) return void response.destroy();
    for (const [name, value] of Object.entries(SECURITY_HEADERS)) response.setHeader(name, value);
    const { method = "", url = "", headers } = request;
    const verdict = judge({ method, url, headers }, listening.hosts);
    switch (verdict.kind) {
      case "refuse":
        return this.#refuse(request, response, verdict.status, verdict.why);
      case "file": {
        const file = listening.files.get(verdict.path);
        if (!file) return this.#refuse(request, response, 404, "no such file");
        response.writeHead(200, { "content-type": file.type, "content-length": file.content.length });
        return void response.end(method === "HEAD" ? undefined : file.content);
      }
      case "exchange":
        return this.#exchange(request, response, verdict.cookie);
      case "call":
        return this.#call(request, response, verdict.pass, listening.api);
      default:
        return verdict satisfies never;
    }
  }

  #refuse(request: IncomingMessage, response: ServerResponse, status: number, why: string): void {
    this.#deps.log.debug("the web page refused a request", { status, why });
    // What comes of the body is not waited for.
    response.writeHead(status, { "content-type": "text/plain; charset=utf-8", connection: "close" });
    response.end(`${why}\n`);
    request.resume();
  }

  #exchange(request: IncomingMessage, response: ServerResponse, cookie: string | undefined): void {
    let body = "";
    request.setEncoding("utf8");
    request.on("data", (text: string) => {
      body += text;
      if (body.length <= TOKEN_BODY_MAX_BYTES) return;
      request.removeAllListeners("data");
      this.#refuse(request, response, 413, `a token has at most ${TOKEN_BODY_MAX_BYTES} bytes`);
    });
    request.on("end", () => {
      if (response.writableEnded) return;
      const pass = this.#sessions.exchange(body, cookie);
      if (!pass) return this.#refuse(request, response, 401, "this link was used or has expired: run perch ui again");
      this.#arm();
      this.#deps.log.info("web page opened", {});
      response.writeHead(200, {
        "content-type": "application/json",
        "set-cookie": sessionCookie(request.headers.host!, pass.cookie),
      });
      response.end(JSON.stringify({ pageKey: pass.pageKey }));
    });
  }

  #call(request: IncomingMessage, response: ServerResponse, pass: UiPass, api: ApiHandler): void {
    const session = this.#sessions.find(pass);
    if (!session) return this.#refuse(request, response, 401, "no session");
    const end = session.begin();
    const cut = (): void => void response.destroy();
    session.ended.addEventListener("abort", cut, { once: true });
    response.once("close", () => {
      session.ended.removeEventListener("abort", cut);
      end();
      this.#arm();
    });
    api(request, response);
  }

  /** Looks again when the next link or session expires; without any, nobody is there to serve. */
  #arm(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
    if (!this.#listening || this.#closed) return;
    const next = this.#sessions.nextExpiry;
    if (next === undefined) {
      // A link may be given out before the turn comes.
      void this.#inTurn(async () => {
        if (this.#sessions.nextExpiry === undefined) await this.#stop();
      });
    } else {
      this.#timer = this.#deps.clock.after(Math.max(0, next - this.#deps.clock.now()), () => this.#arm());
    }
  }

  async #stop(): Promise<void> {
    this.#timer?.cancel();
    this.#timer = undefined;
    this.#sessions.clear();
    this.activity.stop();
    const listening = this.#listening;
    this.#listening = undefined;
    if (!listening) return;
    await Promise.all(
      listening.servers.map((server) => {
        const closed = new Promise<void>((resolve) => server.close(() => resolve()));
        server.closeAllConnections();
        return closed;
      }),
    );
    this.#deps.log.info("web page no longer served", { port: listening.port });
  }
}

/** Returns the port. Throws DaemonError `ui-listen`. */
function listenOn(server: Server, host: string, port: number): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  const fail = (cause: Error): void =>
    reject(
      new DaemonError("ui-listen", `cannot serve the web page on ${host}, port ${port}: ${cause.message}`, { cause }),
    );
  server.once("error", fail);
  server.listen({ host, port, exclusive: true }, () => {
    server.off("error", fail);
    resolve((server.address() as { readonly port: number }).port);
  });
  return promise;
}
