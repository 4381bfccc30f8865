import { PerchError } from "#base/errors.ts";

/** What a caller of a device did wrong, or too often; the device is as it was. */
export class DeviceError extends PerchError<"too-many-peers" | "keepalive-out-of-range" | "peer-unknown" | "closed"> {}
