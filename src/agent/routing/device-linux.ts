import { messageOf, PerchError } from "#base/errors.ts";
import type { Logger } from "#base/log.ts";
import type { Clock } from "#base/time.ts";
import { closeUdpPair, openUdpPair } from "#net/udp-linux.ts";
import { closeTun, openTun } from "#tun/linux.ts";
import { createEmbeddedDevice, type EmbeddedDeviceOptions } from "#wireguard/create-embedded-device.ts";
import type { WireGuardDevice } from "#wireguard/device.ts";
import {
  type OpenExternalDeps,
  openExternalDevice,
  probeExternalDevice,
} from "#wireguard/external/open-external-device.ts";
import type { TimestampMark } from "#wireguard/timestamp-mark.ts";
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

/** Up to so many peers of a device that is not ours have a local socket each; 0: all share one. Default: the device's own. */
export const LOCAL_SOCKETS_VARIABLE = "PERCH_LOCAL_SOCKETS_MAX";
/** More than any process may have open. */
const LOCAL_SOCKETS_BOUND = 1_000_000;

/** What somebody who ran `perch up` can do about a device that cannot be made. */
const ADVICE: Readonly<Record<string, string>> = {
  "interface-taken": "choose another with --interface-name",
  "interface-name-invalid": "choose another with --interface-name",
  "port-taken": "choose another with --wireguard-port, 0 for any",
  "program-missing": "install it, or choose --device embedded, which needs no program but ip",
  "kernel-unsupported": "choose --device embedded, which needs nothing of the kernel but TUN",
};

/**
 * The device of the chosen kind, `auto` being the kernel's where it works and else the embedded one; errors say which flag helps.
 * Throws ExternalDeviceError, TunError, NetError, AgentError and what the data worker throws.
 */
export async function createDevice(deps: DeviceDeps, options: DeviceOptions): Promise<WireGuardDevice> {
  try {
    const { device: choice } = options;
    const { clock, log } = deps;
    if (choice === "embedded") return await createEmbeddedDevice({ clock, log }, options);
    const localSocketsMax = readLocalSocketsMax();
    const external = await openExternalDevice(externalDeps(deps), {
      ...options,
      choice,
      closed: true,
      localSocketsMax,
    });
    if (!external) return await createEmbeddedDevice({ clock, log }, options);
    warnOfEarlierTimestamps(deps, options.timestampMark);
    return external;
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
  deps: DeviceDeps,
  {
    device: choice,
    interfaceName,
    wireguardPort: listenPort,
  }: Pick<AgentSettings, "device" | "interfaceName" | "wireguardPort">,
): Promise<void> {
  try {
    if (choice !== "embedded") {
      readLocalSocketsMax();
      if (await probeExternalDevice(externalDeps(deps), { choice, interfaceName, listenPort })) return;
    }
    closeUdpPair(openUdpPair({ port: listenPort }));
    closeTun(openTun({ name: interfaceName }));
  } catch (error) {
    throw advised(error);
  }
}

/** Throws AgentError `setting-invalid`. */
function readLocalSocketsMax(): number | undefined {
  const text = process.env[LOCAL_SOCKETS_VARIABLE] ?? "";
  if (text === "") return undefined;
  if (/^\d{1,7}$/.test(text) && Number(text) <= LOCAL_SOCKETS_BOUND) return Number(text);
  const what = `${LOCAL_SOCKETS_VARIABLE} in the daemon's environment`;
  throw new AgentError("setting-invalid", `${what} must be 0 to ${LOCAL_SOCKETS_BOUND}, got ${JSON.stringify(text)}`);
}

function externalDeps({ clock, log, stateDir }: DeviceDeps): OpenExternalDeps {
  return { clock, log, record: new DeviceRecordStore(stateDir) };
}

/** The embedded device may have sent timestamps that are ahead of the clock, after which peers refuse the clock's own. */
function warnOfEarlierTimestamps({ clock, log }: DeviceDeps, mark: TimestampMark | undefined): void {
  const aheadMs = (mark?.load() ?? 0) - clock.wall();
  if (aheadMs > 0) log.warn("peers that ran meanwhile may refuse handshakes that begin here for a while", { aheadMs });
}

function advised(error: unknown): unknown {
  const advice = error instanceof PerchError ? ADVICE[error.code] : undefined;
  if (error instanceof PerchError && advice) {
    const { code, retryable } = error;
    return new PerchError(code, `${messageOf(error)}; ${advice}`, { cause: error, retryable });
  }
  return error;
}
