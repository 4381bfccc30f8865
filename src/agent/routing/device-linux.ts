import { messageOf, PerchError } from "#base/errors.ts";
import { closeUdpPair, openUdpPair } from "#net/udp-linux.ts";
import { closeTun, openTun } from "#tun/linux.ts";
import {
  createEmbeddedDevice,
  type EmbeddedDeviceDeps,
  type EmbeddedDeviceOptions,
} from "#wireguard/create-embedded-device.ts";
import type { WireGuardDevice } from "#wireguard/device.ts";

/** What somebody who ran `perch up` can do about a device that cannot be made. */
const ADVICE: Readonly<Record<string, string>> = {
  "interface-taken": "choose another with --interface-name",
  "interface-name-invalid": "choose another with --interface-name",
  "port-taken": "choose another with --wireguard-port, 0 for any",
};

/** The embedded device; its errors say which flag helps. Throws TunError, NetError and what the data worker throws. */
export function createDevice(deps: EmbeddedDeviceDeps, options: EmbeddedDeviceOptions): Promise<WireGuardDevice> {
  return createEmbeddedDevice(deps, options).catch((error: unknown) => {
    throw advised(error);
  });
}

/**
 * Whether this machine lets us have the interface and the UDP port: makes both and takes them away again. Asked before a
 * setup key is spent, which nobody gives back when the tunnel then cannot be built. Throws as `createDevice`.
 */
export function probeDevice(interfaceName: string, port: number): void {
  try {
    closeUdpPair(openUdpPair({ port }));
    closeTun(openTun({ name: interfaceName }));
  } catch (error) {
    throw advised(error);
  }
}

function advised(error: unknown): unknown {
  const advice = error instanceof PerchError ? ADVICE[error.code] : undefined;
  if (error instanceof PerchError && advice) {
    const { code, retryable } = error;
    return new PerchError(code, `${messageOf(error)}; ${advice}`, { cause: error, retryable });
  }
  return error;
}
