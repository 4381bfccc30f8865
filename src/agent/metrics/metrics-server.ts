import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { messageOf } from "#base/errors.ts";
import { parseEndpoint } from "#base/ip.ts";
import type { Logger } from "#base/log.ts";
import type { AgentControl } from "../control.ts";
import { agentMetrics } from "./agent-metrics.ts";
import { EXPOSITION_TYPE, formatFamilies } from "./exposition.ts";

export interface MetricsServerDeps {
  readonly agent: Pick<AgentControl, "status">;
  readonly log: Logger;
  readonly version: string;
  /** Wall clock ms. */
  readonly startedAt: number;
}

interface Listening {
  readonly server: Server;
  readonly at: string;
  readonly delays: ReturnType<typeof monitorEventLoopDelay>;
}

/** How often the delay of the event loop is measured, in ms: only while metrics are served. */
const LOOP_RESOLUTION = 20;
const CONNECTIONS_MAX = 16;
const HEAD_MAX_BYTES = 8 * 1024;
/** A name that a web page elsewhere could point to loopback is not let in (DNS rebinding). */
const HOSTS = /^(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?$/i;

/**
 * Serves `GET /metrics` on loopback, where and as long as the setting says. Whoever can reach loopback may read: there are numbers and
 * no names of peers.
 */
export class MetricsServer implements AsyncDisposable {
  readonly #deps: MetricsServerDeps;
  #listening: Listening | undefined;
  #tail: Promise<void> = Promise.resolve();

  constructor(deps: MetricsServerDeps) {
    this.#deps = deps;
  }

  /** `ADDRESS:PORT`; undefined while nothing is served. */
  get at(): string | undefined {
    return this.#listening?.at;
  }

  /**
   * Serves there, or with undefined nowhere; where it served before is given up only when the new place is had. One call after
   * the other. Rejects with what the system says.
   */
  serveAt(at: string | undefined): Promise<void> {
    const next = this.#tail.then(() => this.#serveAt(at));
    this.#tail = next.catch(() => {});
    return next;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.serveAt(undefined);
  }

  async #serveAt(at: string | undefined): Promise<void> {
    const before = this.#listening;
    if (before?.at === at) return;
    this.#listening = at === undefined ? undefined : await this.#listen(at);
    if (!before) return;
    before.delays.disable();
    before.server.closeAllConnections();
    await new Promise<void>((resolve) => before.server.close(() => resolve()));
  }

  async #listen(at: string): Promise<Listening> {
    const { address, port } = parseEndpoint(at);
    const { log } = this.#deps;
    const options = { maxHeaderSize: HEAD_MAX_BYTES, requestTimeout: 10_000, keepAliveTimeout: 120_000 };
    const server = createServer(options, (request, response) => this.#answer(request, response));
    server.maxConnections = CONNECTIONS_MAX;
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen({ host: address, port, exclusive: true }, resolve);
    });
    server.removeAllListeners("error");
    server.on("error", (error) => log.warn("the metrics' server failed", { err: messageOf(error) }));
    server.unref();
    const delays = monitorEventLoopDelay({ resolution: LOOP_RESOLUTION });
    delays.enable();
    log.info("serving metrics", { at });
    return { server, at, delays };
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const refuse = (status: number, text: string): void => {
      response.writeHead(status, { "content-type": "text/plain; charset=utf-8" }).end(`${text}\n`);
    };
    if (!HOSTS.test(request.headers.host ?? "")) return refuse(421, "metrics are served on loopback");
    if (request.method !== "GET" && request.method !== "HEAD") return refuse(405, "GET is what works here");
    if (request.url?.split("?", 1)[0] !== "/metrics") return refuse(404, "the metrics are at /metrics");
    response.writeHead(200, { "content-type": EXPOSITION_TYPE, "cache-control": "no-store" });
    response.end(request.method === "HEAD" ? undefined : this.#text());
  }

  #text(): string {
    const { agent, version, startedAt } = this.#deps;
    return formatFamilies(
      agentMetrics(agent.status(), {
        version,
        runtime: process.version,
        startedAt,
        loopDelay: this.#loopDelay(),
        residentBytes: process.memoryUsage.rss(),
      }),
    );
  }

  /** Beyond the interval of measuring; nothing measured is no delay. */
  #loopDelay(): { readonly p50: number; readonly p99: number; readonly max: number } {
    const delays = this.#listening?.delays;
    if (!delays || delays.count === 0) return { p50: 0, p99: 0, max: 0 };
    const beyond = (nanoseconds: number): number => Math.max(0, nanoseconds / 1e9 - LOOP_RESOLUTION / 1000);
    const found = { p50: beyond(delays.percentile(50)), p99: beyond(delays.percentile(99)), max: beyond(delays.max) };
    delays.reset();
    return found;
  }
}
