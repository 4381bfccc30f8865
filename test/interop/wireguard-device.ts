/**
 * The embedded device as a process of its own, so that a test can put it into a network namespace: requests come and
 * answers and events go over the IPC channel. Started by wireguard-lab.ts only.
 */
import { parseEndpoint, parsePrefix } from "#base/ip.ts";
import { PresharedKey, PrivateKey, type PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { systemClock } from "#base/time.ts";
import { createEmbeddedDevice, type EmbeddedDeviceOptions } from "#wireguard/create-embedded-device.ts";
import type { DeviceEvents, DevicePath } from "#wireguard/device.ts";
import { serveRequests } from "./lab-child.ts";

export interface DeviceSetup {
  readonly interfaceName: string;
  readonly privateKey: string;
  readonly listenPort: number;
  readonly mtu: number;
  readonly sessionLimits?: NonNullable<EmbeddedDeviceOptions["sessionLimits"]>;
  readonly handshakeRetry?: NonNullable<EmbeddedDeviceOptions["handshakeRetry"]>;
}

/** A path as text: `none`, `relay` or `ADDRESS:PORT`. */
export type PathText = string;

export type DeviceRequest =
  | { readonly op: "start"; readonly setup: DeviceSetup }
  | {
      readonly op: "setPeer";
      readonly key: string;
      readonly mode: "asleep" | "awake";
      readonly allowedIps: readonly string[];
      readonly presharedKey?: string | undefined;
      readonly keepalive?: number;
    }
  | { readonly op: "removePeer"; readonly key: string }
  | { readonly op: "setPath"; readonly key: string; readonly path: PathText }
  | { readonly op: "initiate"; readonly key: string; readonly paths: readonly PathText[] }
  | { readonly op: "inject"; readonly key: string; readonly datagram: string }
  | { readonly op: "stats"; readonly key: string }
  | { readonly op: "counters" }
  | { readonly op: "close" };

export interface DeviceEvent {
  readonly kind: "event";
  readonly name: keyof DeviceEvents;
  readonly payload: Record<string, unknown>;
}

const EVENTS = ["wake", "established", "path-hint", "relay-out", "path-error", "handshake-failed", "gone"] as const;

const parsePath = (text: PathText): DevicePath =>
  text === "none" || text === "relay" ? { kind: text } : { kind: "udp", endpoint: parseEndpoint(text) };

let device: Awaited<ReturnType<typeof createEmbeddedDevice>> | undefined;

async function perform(request: DeviceRequest): Promise<unknown> {
  if (request.op === "start") {
    const { setup } = request;
    device = await createEmbeddedDevice(
      { clock: systemClock, log: silentLogger },
      { ...setup, privateKey: PrivateKey.parse(setup.privateKey) },
    );
    for (const name of EVENTS) {
      device.events.on(name, (payload) => {
        const datagram = "datagram" in payload ? Buffer.from(payload.datagram).toString("base64") : undefined;
        tell({ kind: "event", name, payload: { ...payload, ...(datagram === undefined ? {} : { datagram }) } });
      });
    }
    return { interfaceName: device.interfaceName, listenPort: device.listenPort, features: device.features };
  }
  if (!device) throw new Error("not started");
  switch (request.op) {
    case "setPeer":
      device.setPeer(request.key as PublicKey, {
        mode: request.mode,
        allowedIps: request.allowedIps.map(parsePrefix),
        presharedKey: request.presharedKey === undefined ? undefined : PresharedKey.parse(request.presharedKey),
        persistentKeepalive: request.keepalive ?? 0,
      });
      return undefined;
    case "removePeer":
      device.removePeer(request.key as PublicKey);
      return undefined;
    case "setPath":
      device.setPath(request.key as PublicKey, parsePath(request.path));
      return undefined;
    case "initiate":
      return device.initiate(request.key as PublicKey, request.paths.map(parsePath));
    case "inject":
      device.injectRelayed(request.key as PublicKey, Buffer.from(request.datagram, "base64"));
      return undefined;
    case "stats":
      return device.peerStats(request.key as PublicKey);
    case "counters":
      return Object.fromEntries(device.counters());
    case "close":
      await device.close();
      return undefined;
  }
}

const tell = serveRequests<DeviceRequest, DeviceEvent>(perform);
