import { existsSync, readFileSync, rmSync } from "node:fs";
import type { Http2ServerRequest, Http2ServerResponse } from "node:http2";
import { networkInterfaces } from "node:os";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { writeFileAtomically } from "#base/atomic-file.ts";
import { messageOf } from "#base/errors.ts";
import { type Endpoint, formatEndpoint } from "#base/ip.ts";
import type { Logger } from "#base/log.ts";
import { relayTokenKey } from "#base/relay-token.ts";
import type { Clock, Millis } from "#base/time.ts";
import { StunServer, StunServerError } from "#ice/stun-server.ts";
import { createManagementServer, type ManagementServer } from "#management/server/management-server.ts";
import { countAdminTokens } from "#management/server/setup-keys.ts";
import { ManagementStore } from "#management/server/store.ts";
import { createRelayServer, type RelayServer } from "#relay/server/relay-server.ts";
import { SIGNAL_STREAM_PATH } from "#signal/protocol/signal-service.ts";
import { createSignalServer, type SignalServer } from "#signal/server/signal-server.ts";
import { adminMethods } from "./admin.ts";
import { serveAdmin } from "./admin-socket.ts";
import { openDataDir } from "./data-dir.ts";
import {
  answer,
  Front,
  type FrontLimits,
  type FrontRequest,
  type FrontResponse,
  type FrontRoutes,
  type TlsMaterial,
} from "./front.ts";
import { decidePublicEndpoints, type PublicEndpoints, parsePublicUrl } from "./public-endpoints.ts";
import { listenError, ServerError } from "./server-error.ts";

/** What one server process can be. */
export const SERVER_ROLES = ["management", "signal", "relay", "stun"] as const;
export type ServerRole = (typeof SERVER_ROLES)[number];

export interface PerchServerDeps {
  readonly clock: Clock;
  readonly log: Logger;
}

export interface PerchServerOptions {
  readonly listen: Endpoint;
  readonly stunListen: Endpoint;
  /** Default: made from `listen`, see decidePublicEndpoints. */
  readonly publicUrl?: string | undefined;
  readonly dataDir: string;
  /** Default: in the data directory. */
  readonly databasePath?: string | undefined;
  /** Default: all. */
  readonly roles?: readonly ServerRole[] | undefined;
  /** PEM files. */
  readonly tls?: { readonly certFile: string; readonly keyFile: string } | undefined;
  /** Gets a reusable setup key at the first start, and later when it is missing. */
  readonly setupKeyFile?: string | undefined;
  /** Domain of the peers' names, without a dot at the end. Default `perch.internal`. */
  readonly domain?: string | undefined;
  readonly limits?: Partial<FrontLimits> | undefined;
}

/** What only the first start of a data directory shows. */
export interface FirstStart {
  readonly adminToken: string;
  readonly setupKey: string;
}

export interface PerchServer extends AsyncDisposable {
  /** The TCP port that was taken. */
  readonly listen: Endpoint;
  readonly endpoints: PublicEndpoints;
  readonly firstStart: FirstStart | undefined;
  /** Undefined without the role. */
  readonly management: ManagementServer | undefined;
  /** Reads the certificate's files again. Throws ServerError `tls-material` and keeps the old certificate. */
  reloadTls(): void;
  /** Ends streams in order, stores what is to be stored, closes the ports; idempotent. */
  close(): Promise<void>;
}

/** Lifetime of the setup key that the first start makes. */
export const FIRST_SETUP_KEY_TTL: Millis = 24 * 3_600_000;

const DEFAULT_DOMAIN = "perch.internal";

interface Parts {
  readonly management: ManagementServer | undefined;
  readonly signal: SignalServer | undefined;
  readonly relay: RelayServer | undefined;
}

/**
 * Starts a server: its data directory, its ports, then store, management, signal and relay, and last the admin socket. The
 * ports come before anything is stored, so that a taken one leaves nothing behind; requests in between are answered 503.
 * Throws ServerError and StoreError; nothing is left running or made then.
 */
export async function createPerchServer(deps: PerchServerDeps, options: PerchServerOptions): Promise<PerchServer> {
  const { clock, log } = deps;
  const roles = checkRoles(options.roles ?? SERVER_ROLES);
  if (options.publicUrl !== undefined) parsePublicUrl(options.publicUrl);
  const tls = options.tls && readTls(options.tls);
  await using stack = new AsyncDisposableStack();

  const dataDir = roles.has("management") ? openDataDir(options.dataDir) : undefined;
  let started = false;
  if (dataDir) stack.defer(() => dataDir.close({ undo: !started }));
  const databasePath = options.databasePath ?? dataDir?.databasePath ?? "";
  const databaseIsNew = dataDir !== undefined && !existsSync(databasePath);
  stack.defer(() => {
    if (started || !databaseIsNew) return;
    for (const suffix of ["", "-wal", "-shm"]) rmSync(`${databasePath}${suffix}`, { force: true });
  });
  let routes = UNREADY;
  const front = new Front(
    deps,
    { listen: options.listen, ...(tls && { tls }), ...(options.limits && { limits: options.limits }) },
    {
      request: (path, request, response) => routes.request(path, request, response),
      isEndless: (path) => routes.isEndless(path),
      upgrade: (path, request, socket, head) => routes.upgrade(path, request, socket, head),
    },
  );
  await front.listen(options.listen);
  stack.use(front);
  const stun = roles.has("stun") ? await startStun(log, options.stunListen) : undefined;
  if (stun) stack.use(stun);

  const endpoints = decidePublicEndpoints({
    publicUrl: options.publicUrl,
    listen: front.endpoint,
    stunListen: stun?.addresses[0],
    hasTls: tls !== undefined,
    interfaces: networkInterfaces(),
  });
  if (endpoints.guessed) log.warn(endpoints.guessed, { managementUrl: endpoints.managementUrl });

  const store = dataDir && (await ManagementStore.open({ clock }, { path: databasePath }));
  if (store) stack.use(store);
  const management =
    store &&
    (await createManagementServer(
      { clock, log: log.with({ part: "management" }), store },
      {
        domain: options.domain ?? DEFAULT_DOMAIN,
        signal: { uri: endpoints.signalUri, tls: endpoints.tls },
        relayUrls: roles.has("relay") ? [endpoints.relayUrl] : [],
        stunUris: endpoints.stunUri ? [endpoints.stunUri] : [],
      },
    ));
  if (management) stack.use(management);
  const signal = roles.has("signal") ? createSignalServer({ clock, log: log.with({ part: "signal" }) }) : undefined;
  if (signal) stack.defer(() => signal.close());
  const relay =
    store && roles.has("relay")
      ? createRelayServer(
          { clock, log: log.with({ part: "relay" }) },
          { instanceUrl: endpoints.relayUrl, tokenKey: relayTokenKey(store.relaySecret) },
        )
      : undefined;
  if (relay) stack.use(relay);

  const firstStart = store && management && (await prepareFirstStart(store, management, options.setupKeyFile));
  if (dataDir && management) stack.use(await serveAdmin({ log }, dataDir.socketPath, adminMethods(management)));
  routes = routesOf({ management, signal, relay });
  started = true;
  stack.defer(() => {
    routes = UNREADY;
    front.stopListening();
  });
  const running = stack.move();
  return {
    listen: front.endpoint,
    endpoints,
    firstStart,
    management,
    reloadTls: () => {
      if (options.tls) front.reloadTls(readTls(options.tls));
    },
    close: () => running.disposeAsync(),
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  };
}

/** Throws ServerError `option-unsupported` for combinations that cannot work. */
function checkRoles(roles: readonly ServerRole[]): ReadonlySet<ServerRole> {
  const set = new Set(roles);
  if (set.has("relay") && !set.has("management"))
    throw new ServerError(
      "option-unsupported",
      "--roles: relay without management in the same process is not supported yet",
    );
  if (set.has("management") && !set.has("signal"))
    throw new ServerError(
      "option-unsupported",
      "--roles: management without signal in the same process is not supported yet",
    );
  return set;
}

function readTls(files: { readonly certFile: string; readonly keyFile: string }): TlsMaterial {
  const read = (flag: string, path: string): string => {
    try {
      return readFileSync(path, "utf8");
    } catch (cause) {
      throw new ServerError("tls-material", `${flag} cannot be read: ${messageOf(cause)}`, { cause });
    }
  };
  return { cert: read("--tls-cert", files.certFile), key: read("--tls-key", files.keyFile) };
}

async function startStun(log: Logger, listen: Endpoint): Promise<StunServer> {
  const stun = new StunServer({ log: log.with({ part: "stun" }) }, { listen: [listen] });
  try {
    await stun.start();
    return stun;
  } catch (error) {
    throw error instanceof StunServerError ? listenError(error.cause, `UDP ${formatEndpoint(listen)}`) : error;
  }
}

/**
 * The first start makes a setup key and then an admin token, whose being there says that the start was complete; a crash in
 * between repeats it. Later starts make a setup key only if its file is missing.
 */
async function prepareFirstStart(
  store: ManagementStore,
  management: ManagementServer,
  setupKeyFile: string | undefined,
): Promise<FirstStart | undefined> {
  const isFirst = (await countAdminTokens(store)) === 0;
  if (!isFirst && (setupKeyFile === undefined || isThere(setupKeyFile))) return undefined;
  const { key, info } = await management.createSetupKey({
    name: isFirst ? "first start" : "setup key file",
    reusable: true,
    expiresInMs: FIRST_SETUP_KEY_TTL,
  });
  if (setupKeyFile !== undefined) {
    try {
      writeFileAtomically(setupKeyFile, `${key}\n`, 0o600);
    } catch (cause) {
      await management.revokeSetupKey(info.id);
      const text = `--setup-key-file ${setupKeyFile} cannot be written: ${messageOf(cause)}`;
      throw new ServerError("setup-key-file", text, { cause });
    }
  }
  if (!isFirst) return undefined;
  const { token } = await management.createAdminToken({ name: "first start" });
  return { adminToken: token, setupKey: key };
}

function isThere(path: string): boolean {
  try {
    return readFileSync(path, "utf8").trim() !== "";
  } catch {
    return false;
  }
}

/** Before everything is started, and from the first moment of a shutdown on. */
const UNREADY: FrontRoutes = {
  request(_, request, response) {
    request.resume();
    answer(response, 503, "starting or shutting down");
    return true;
  },
  isEndless: () => false,
  upgrade(_, __, socket) {
    socket.end("HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", () =>
      socket.destroy(),
    );
    return true;
  },
};

function routesOf({ management, signal, relay }: Parts): FrontRoutes {
  // Agents never compress, and stock ones know no encoding but identity.
  const grpc =
    management &&
    connectNodeAdapter({
      routes: (router) => management.routes(router),
      acceptCompression: [],
      connect: false,
      grpcWeb: false,
    });
  return {
    request(path, request, response) {
      if (path === "/health") return answerHealth(request, response);
      if (request.httpVersionMajor < 2) return false;
      if (grpc && path.startsWith("/management.ManagementService/")) {
        void grpc(request, response);
        return true;
      }
      return signal?.handle(request as Http2ServerRequest, response as Http2ServerResponse) ?? false;
    },
    isEndless: (path) => path === SIGNAL_STREAM_PATH,
    upgrade: (_, request, socket, head) => relay?.handleUpgrade(request, socket, head) ?? false,
  };
}

function answerHealth(request: FrontRequest, response: FrontResponse): boolean {
  if (request.method !== "GET" && request.method !== "HEAD") return false;
  answer(response, 200, "ok");
  return true;
}
