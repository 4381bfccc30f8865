import { readFileSync } from "node:fs";
import { INTERFACE_NAME_MAX_BYTES, TunError } from "#tun/linux.ts";
import { ExternalDeviceError } from "./external-error.ts";

/** Whether there is an interface of this name in our network namespace, up or down. proc(5), net/dev. */
export function interfaceExists(name: string): boolean {
  return readFileSync("/proc/self/net/dev", "latin1")
    .split("\n")
    .some((line) => line.slice(0, line.lastIndexOf(":")).trim() === name);
}

/** Throws ExternalDeviceError `interface-taken`, or TunError `interface-name-invalid`. */
export function needFreeInterfaceName(name: string): void {
  // net/core/dev.c, dev_valid_name; a `%` would be a number that the kernel chooses.
  if (
    !/^[^/:%\s\0]+$/.test(name) ||
    name === "." ||
    name === ".." ||
    Buffer.byteLength(name) > INTERFACE_NAME_MAX_BYTES
  )
    throw new TunError(
      "interface-name-invalid",
      `${JSON.stringify(name.slice(0, 64))} is no interface name of at most ${INTERFACE_NAME_MAX_BYTES} bytes`,
    );
  if (interfaceExists(name))
    throw new ExternalDeviceError(
      "interface-taken",
      `there is an interface ${name} already, which is not ours (\`ip link delete ${name}\` would remove it)`,
    );
}
