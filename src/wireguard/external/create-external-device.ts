import { closeUdpPair, openUdpPair } from "#net/udp-linux.ts";
import type { WireGuardDevice } from "../device.ts";
import {
  ExternalDevice,
  type ExternalDeviceDeps,
  type ExternalDeviceOptions,
  type ExternalDeviceParts,
} from "./external-device.ts";

/**
 * Gives the interface its key and its port and puts the device together; the interface stays down and without address: that
 * is the caller's. Port 0 takes a free one. Throws NetError `port-taken` and what the parts throw; the parts are closed then.
 */
export async function createExternalDevice(
  deps: Omit<ExternalDeviceDeps, "checkPort">,
  parts: ExternalDeviceParts,
  options: ExternalDeviceOptions,
): Promise<WireGuardDevice> {
  const { backend, localEnds, sharedPort, rules } = parts;
  try {
    // A device opens its socket when the interface goes up, and tells nobody then that it could not.
    const listenPort = takePort(options.listenPort);
    await backend.control.change({ privateKey: options.privateKey, listenPort, replacePeers: true }, []);
    localEnds.setDevicePort(listenPort);
    sharedPort.setPort(listenPort);
    return new ExternalDevice({ ...deps, checkPort: takePort }, parts, { ...options, listenPort });
  } catch (error) {
    for (const part of [rules, sharedPort, localEnds, backend]) await part[Symbol.asyncDispose]();
    throw error;
  }
}

/** The port, or a free one for 0. Throws NetError `port-taken`. */
function takePort(port: number): number {
  const pair = openUdpPair({ port });
  closeUdpPair(pair);
  return pair.port;
}
