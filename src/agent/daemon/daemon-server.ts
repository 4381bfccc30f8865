import { createServer } from "node:http";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { Daemon } from "#gen/daemon_pb.ts";
import { createDaemonService, type DaemonServiceDeps } from "./daemon-service.ts";
import { listenOnUnix, type UnixListener } from "./unix-listener.ts";

/** Bytes of one request; none of ours comes near. */
const READ_MAX_BYTES = 64 * 1024;

/**
 * Serves the daemon's API (Connect, HTTP/1.1) on a unix socket; whoever may open the socket may use all of it. Throws
 * DaemonError `daemon-running` or `daemon-path`.
 */
export function serveDaemon(deps: DaemonServiceDeps, socketPath: string): Promise<UnixListener> {
  // Streams last as long as somebody watches.
  return listenOnUnix(createServer({ requestTimeout: 0, keepAliveTimeout: 5000 }, daemonHandler(deps)), socketPath);
}

/** Answers the calls of the daemon's API, whoever makes them: the caller of this decides who may. */
export function daemonHandler(deps: DaemonServiceDeps): ReturnType<typeof connectNodeAdapter> {
  return connectNodeAdapter({
    routes: (router) => router.service(Daemon, createDaemonService(deps)),
    grpc: false,
    grpcWeb: false,
    // Nothing leaves the machine: compressing took more time than all the rest of an answer.
    acceptCompression: [],
    readMaxBytes: READ_MAX_BYTES,
    shutdownSignal: deps.closing,
  });
}
