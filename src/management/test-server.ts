/** For tests: a management server on a real HTTP/2 port of loopback, and agents for it. */
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Http2Server, type ServerHttp2Session } from "node:http2";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { PrivateKey } from "#base/keys.ts";
import { type Logger, silentLogger } from "#base/log.ts";
import { type Clock, systemClock } from "#base/time.ts";
import { PeerCapability, type PeerSystemMeta, PeerSystemMetaSchema, type SyncResponse } from "#gen/management_pb.ts";
import { ManagementClient } from "./client/management-client.ts";
import {
  createManagementServer,
  type ManagementServer,
  type ManagementServerOptions,
} from "./server/management-server.ts";
import { ManagementStore } from "./server/store.ts";

export const TEST_OPTIONS: ManagementServerOptions = {
  domain: "perch.internal",
  signal: { uri: "127.0.0.1:10000", tls: false },
  relayUrls: ["rel://127.0.0.1:10001"],
  stunUris: ["stun:127.0.0.1:3478"],
};

/** Fields of a PeerSystemMeta that a test sets itself. */
export type MetaFields = Extract<MessageInitShape<typeof PeerSystemMetaSchema>, { $typeName?: never }>;

export function testMeta(hostname: string, more: MetaFields = {}): PeerSystemMeta {
  return create(PeerSystemMetaSchema, {
    hostname,
    goOS: "linux",
    OS: "Debian",
    netbirdVersion: "0.65.0",
    flags: {},
    environment: {},
    capabilities: [PeerCapability.PeerCapabilitySourcePrefixes, PeerCapability.PeerCapabilityIPv6Overlay],
    ...more,
  });
}

/** A directory that is removed with `using`. */
export function temporaryDirectory(): { readonly path: string; [Symbol.dispose](): void } {
  const path = mkdtempSync(join(tmpdir(), "perch-management-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

export interface TestServerOptions {
  readonly clock?: Clock;
  readonly log?: Logger;
  /** Default: in memory. */
  readonly path?: string;
  /** Default: any free one. */
  readonly port?: number;
  readonly options?: Partial<ManagementServerOptions>;
}

export class TestServer {
  readonly server: ManagementServer;
  readonly store: ManagementStore;
  readonly url: string;
  readonly port: number;
  readonly #http: Http2Server;
  readonly #sessions: Set<ServerHttp2Session>;

  private constructor(
    server: ManagementServer,
    store: ManagementStore,
    http: Http2Server,
    sessions: Set<ServerHttp2Session>,
  ) {
    this.server = server;
    this.store = store;
    this.#http = http;
    this.#sessions = sessions;
    this.port = (http.address() as AddressInfo).port;
    this.url = `http://127.0.0.1:${this.port}`;
  }

  static async start(setup: TestServerOptions = {}): Promise<TestServer> {
    const { clock = systemClock, log = silentLogger, path = ":memory:", port = 0, options } = setup;
    const store = await ManagementStore.open({ clock }, { path });
    const server = await createManagementServer({ clock, log, store }, { ...TEST_OPTIONS, ...options });
    const http = createServer(connectNodeAdapter({ routes: (router) => server.routes(router) }));
    const sessions = new Set<ServerHttp2Session>();
    http.on("session", (session) => {
      sessions.add(session);
      session.on("close", () => sessions.delete(session));
    });
    await new Promise<void>((resolve, reject) => {
      http.on("error", reject);
      http.listen(port, "127.0.0.1", resolve);
    });
    return new TestServer(server, store, http, sessions);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server.close();
    for (const session of this.#sessions) session.destroy();
    await new Promise<void>((resolve) => this.#http.close(() => resolve()));
    await this.store.close();
  }
}

/** An agent that keeps every message it gets. */
export class TestAgent {
  readonly key: PrivateKey;
  readonly client: ManagementClient;
  readonly updates: SyncResponse[] = [];
  readonly #stop = new AbortController();
  readonly #arrivals = new Set<() => void>();
  /** Settles when `sync` does. */
  syncing: Promise<void> = Promise.resolve();

  constructor(url: string, key: PrivateKey = PrivateKey.generate()) {
    this.key = key;
    this.client = new ManagementClient({ clock: systemClock, log: silentLogger }, { url, key });
  }

  /** Opens the stream and keeps it open until the agent is disposed of. */
  sync(meta: PeerSystemMeta): void {
    this.syncing = this.client.sync(
      () => meta,
      (update) => {
        this.updates.push(update);
        for (const arrived of this.#arrivals) arrived();
      },
      this.#stop.signal,
    );
    // The test awaits `syncing` where it expects an end.
    this.syncing.catch(() => {});
  }

  /** The first message, past or future, that satisfies `wanted`. */
  async until(wanted: (update: SyncResponse) => boolean, withinMs = 5_000): Promise<SyncResponse> {
    const { promise, resolve, reject } = Promise.withResolvers<SyncResponse>();
    const look = (): void => {
      const found = this.updates.find(wanted);
      if (found) resolve(found);
    };
    const timer = setTimeout(() => reject(new Error(`no such update among ${this.updates.length}`)), withinMs);
    this.#arrivals.add(look);
    look();
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      this.#arrivals.delete(look);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.client.close();
  }
}

/** Keys of the remote peers of a message's map; empty for a message without one. */
export function remoteKeys(update: SyncResponse): readonly string[] {
  return (update.NetworkMap?.remotePeers ?? []).map((peer) => peer.wgPubKey);
}
