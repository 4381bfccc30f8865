import { type Client, Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { PerchError } from "#base/errors.ts";
import { Daemon, ErrorDetailSchema } from "#gen/daemon_pb.ts";
import { DaemonError } from "./daemon-error.ts";

export type DaemonClient = Client<typeof Daemon>;

/** A failure that the daemon reported, with the code it gave. */
export class RemoteError extends PerchError {}

/** A client of the daemon's API on a unix socket. Nothing is sent before the first call. */
export function createDaemonClient(socketPath: string): DaemonClient {
  return createClient(
    Daemon,
    createConnectTransport({
      baseUrl: "http://perch",
      httpVersion: "1.1",
      useBinaryFormat: true,
      acceptCompression: [],
      nodeOptions: { socketPath, agent: false },
    }),
  );
}

/** What went wrong in a call, as an error of ours: RemoteError from the daemon, DaemonError `daemon-lost` without it. */
export function callError(reason: unknown, socketPath: string): Error {
  if (!(reason instanceof ConnectError)) return reason instanceof Error ? reason : new Error(String(reason));
  const [detail] = reason.findDetails(ErrorDetailSchema);
  if (detail) return new RemoteError(detail.code, reason.rawMessage, { retryable: detail.retryable, cause: reason });
  if (reason.code === Code.Canceled) return reason;
  return new DaemonError("daemon-lost", `the daemon on ${socketPath} ended before it was done`, {
    cause: reason,
  });
}
