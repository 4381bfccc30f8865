import { PerchError } from "#base/errors.ts";

/** What a caller of a device did wrong, or too often; the device is as it was. */
export class DeviceError extends PerchError<"too-many-peers" | "keepalive-out-of-range" | "peer-unknown" | "closed"> {}

const MAX_KEEPALIVE_SECONDS = 65_535;

/** Seconds, 0 when there is none. Throws DeviceError `keepalive-out-of-range`. */
export function checkKeepalive(keepalive = 0): number {
  if (Number.isInteger(keepalive) && keepalive >= 0 && keepalive <= MAX_KEEPALIVE_SECONDS) return keepalive;
  throw new DeviceError(
    "keepalive-out-of-range",
    `persistent keepalive of ${keepalive} s is not between 0 and ${MAX_KEEPALIVE_SECONDS}`,
  );
}

/** Of sending: the kernel had no room just now, the path is not to blame. */
export const TRANSIENT_ERRORS: ReadonlySet<string> = new Set(["EAGAIN", "ENOBUFS", "EINTR"]);
