import { PerchError } from "#base/errors.ts";

/** Names in the host's own resolver: the tunnel works without. */
export class DnsError extends PerchError<"resolver" | "resolver-record"> {}
