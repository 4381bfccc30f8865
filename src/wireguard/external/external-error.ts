import { PerchError } from "#base/errors.ts";

/**
 * `program-missing`: wireguard-go, `wg`, `ip` or `nft` is not installed, or may not be run. `interface-taken`: there is an interface
 * of that name already. `kernel-unsupported`: no WireGuard in this kernel, or no nftables. `control-failed`: the device refused a
 * change, or nft a rule. `not-permitted`: the process lacks a privilege. `closed`: the device is closed.
 */
export type ExternalErrorCode =
  | "program-missing"
  | "interface-taken"
  | "kernel-unsupported"
  | "control-failed"
  | "not-permitted"
  | "closed";

export class ExternalDeviceError extends PerchError<ExternalErrorCode> {}
