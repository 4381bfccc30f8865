import { DaemonError } from "./daemon-error.ts";

/** Where the daemon listens unless told otherwise. */
export const DEFAULT_DAEMON_ADDRESS = "unix:///var/run/perch.sock";
/** Where the daemon keeps what must survive it. */
export const DEFAULT_STATE_DIR = "/var/lib/perch";

/** Bytes of a path that fit a unix socket address on Linux (sun_path without the final zero, unix(7)). */
export const SOCKET_PATH_MAX_BYTES = 107;

/** `unix:///absolute/path` or a bare absolute path; returns the path. Throws DaemonError `value-invalid`. */
export function parseDaemonAddress(text: string): string {
  const path = text.startsWith("unix://") ? text.slice("unix://".length) : text;
  if (!path.startsWith("/") || path.includes("\0")) {
    throw new DaemonError(
      "value-invalid",
      `--daemon-addr must be unix:///absolute/path, got ${JSON.stringify(text.slice(0, 200))}`,
    );
  }
  const bytes = Buffer.byteLength(path);
  if (bytes > SOCKET_PATH_MAX_BYTES) {
    throw new DaemonError(
      "value-invalid",
      `--daemon-addr: a socket path has at most ${SOCKET_PATH_MAX_BYTES} bytes, ${JSON.stringify(path.slice(0, 200))} has ${bytes}`,
    );
  }
  return path;
}
