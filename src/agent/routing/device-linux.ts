import { messageOf, PerchError } from "#base/errors.ts";
import type { Logger } from "#base/log.ts";
import type { Clock } from "#base/time.ts";
import { closeUdpPair, openUdpPair } from "#net/udp-linux.ts";
import { closeTun, openTun } from "#tun/linux.ts";
import { createEmbeddedDevice, type EmbeddedDeviceOptions } from "#wireguard/create-embedded-device.ts";
import type { WireGuardDevice } from "#wireguard/device.ts";
import { openExternalDevice, probeExternalDevice } from "#wireguard/external/open-external-device.ts";
import type { AgentSettings } from "../control.ts";
import { AgentError } from "../errors.ts";
import { DeviceRecordStore } from "./device-record.ts";

export interface DeviceDeps {
  readonly clock: Clock;
  readonly log: Logger;
  readonly stateDir: string;
}

export interface DeviceOptions
  extends Pick<EmbeddedDeviceOptions, "interfaceName" | "privateKey" | "listenPort" | "mtu" | "timestampMark"> {
  readonly device: AgentSettings["device"];
}

/** What somebody who ran `perch up` can do about a device that cannot be made. */
const ADVICE: Readonly<Record<string, string>> = {
  "interface-taken": "choose another with --interface-name",
  "interface-name-invalid": "choose another with --interface-name",
  "port-taken": "choose another with --wireguard-port, 0 for any",
  "program-missing": "install it, or choose --device embedded, which needs no other program",
  "kernel-unsupported": "choose --device embedded, which needs nothing of the kernel but TUN",
};

/**
 * The device of the chosen kind; its errors say which flag helps. Throws ExternalDeviceError, TunError, NetError, AgentError
 * and what the data worker throws.
 */
export async function createDevice(deps: DeviceDeps, options: DeviceOptions): Promise<WireGuardDevice> {
  try {
    const { clock, log } = deps;
    const kind = chooseKind(options.device);
    if (kind === "embedded") return await createEmbeddedDevice({ clock, log }, options);
    return await openExternalDevice({ clock, log, record: new DeviceRecordStore(deps.stateDir) }, { ...options, kind });
  } catch (error) {
    throw advised(error);
  }
}

/**
 * Whether this machine lets us have the interface, the UDP port and what else the chosen device needs: makes them and takes them
 * away again. Asked before a setup key is spent, which nobody gives back when the tunnel then cannot be built. Throws as
 * `createDevice`.
 */
export async function probeDevice(
  deps: Omit<DeviceDeps, "stateDir">,
  { device, interfaceName, wireguardPort }: Pick<AgentSettings, "device" | "interfaceName" | "wireguardPort">,
): Promise<void> {
  try {
    const kind = chooseKind(device);
    if (kind === "embedded") {
      closeUdpPair(openUdpPair({ port: wireguardPort }));
      closeTun(openTun({ name: interfaceName }));
    } else await probeExternalDevice(deps, { kind, interfaceName, listenPort: wireguardPort });
  } catch (error) {
    throw advised(error);
  }
}

/** What `auto` means here. */
function chooseKind(device: AgentSettings["device"]): "embedded" | "wireguard-go" {
  switch (device) {
    case "kernel":
      throw new AgentError("unsupported-device", "--device kernel is not supported yet; use wireguard-go or embedded");
    case "auto":
      return "embedded";
    default:
      return device;
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
