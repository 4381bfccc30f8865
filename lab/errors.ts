import { PerchError } from "#base/errors.ts";

/**
 * What can go wrong with a lab. The lab is unusable after `router-failed`; every other error leaves it as it was.
 *
 * - `topology-invalid`: the description contradicts itself, or a name or address is unknown or taken
 * - `privileges-missing`: neither root nor user namespaces; the message says what to do
 * - `tool-missing`: a program the lab calls (`ip`, `unshare`) is not installed
 * - `command-failed`: a program inside or outside a host ended with an error
 * - `command-timeout`: it did not end in time and was killed
 * - `router-failed`: the process that carries the packets ended
 * - `lab-closed`: the lab was used after it was disposed
 */
export class LabError extends PerchError<
  | "topology-invalid"
  | "privileges-missing"
  | "tool-missing"
  | "command-failed"
  | "command-timeout"
  | "router-failed"
  | "lab-closed"
> {}
