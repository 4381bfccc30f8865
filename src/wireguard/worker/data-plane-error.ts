import { PerchError } from "#base/errors.ts";

/** `worker-failed`: the data worker does not start; nothing is left open. The message has the cause. */
export class DataPlaneError extends PerchError<"worker-failed" | "mtu-out-of-range" | "closed"> {}
