import type { PrivateKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import type { Clock } from "#base/time.ts";
import { type HandshakeTiming, PROTOCOL_TIMING } from "./constants.ts";
import type { WireGuardDevice } from "./device.ts";
import { DEFAULT_PEER_CAPACITY, EmbeddedDevice } from "./embedded-device.ts";
import { LocalIdentity } from "./identity.ts";
import { type TimestampMark, wallAfter } from "./timestamp-mark.ts";
import { DataPlane, type DataPlaneOptions } from "./worker/data-plane.ts";

export interface EmbeddedDeviceDeps {
  readonly clock: Clock;
  readonly log: Logger;
}

export interface EmbeddedDeviceOptions {
  /** May contain `%d`. Taken names, missing privileges and the like are errors of `createEmbeddedDevice`. */
  readonly interfaceName: string;
  readonly privateKey: PrivateKey;
  /** 0 takes a free one. */
  readonly listenPort: number;
  /** Inner MTU, bytes. */
  readonly mtu: number;
  readonly fwmark?: number;
  /** Most peers, default 131,072. */
  readonly peerCapacity?: number;
  readonly offload?: NonNullable<DataPlaneOptions["offload"]>;
  /** Keeps peers from refusing our handshakes after a restart with a clock that was set back. */
  readonly timestampMark?: TimestampMark;
  /** Protocol times, lowered by tests only; the data worker's 5 s and jitter follow `handshakeRetry`. */
  readonly handshakeRetry?: Partial<HandshakeTiming>;
  readonly sessionLimits?: NonNullable<DataPlaneOptions["limits"]>;
}

/**
 * Opens the interface and the sockets and starts the data worker. The interface is down and has no address: that is the
 * caller's. Throws what the TUN, the sockets or the worker throw; nothing is left open then.
 */
export async function createEmbeddedDevice(
  deps: EmbeddedDeviceDeps,
  options: EmbeddedDeviceOptions,
): Promise<WireGuardDevice> {
  const { interfaceName, listenPort, mtu, fwmark, peerCapacity = DEFAULT_PEER_CAPACITY, offload } = options;
  const { rekeyTimeout, jitter } = { ...PROTOCOL_TIMING, ...options.handshakeRetry };
  const plane = await DataPlane.start({
    interfaceName,
    listenPort,
    mtu,
    peerCapacity,
    logger: deps.log,
    mac1Key: new LocalIdentity(options.privateKey).mac1Key,
    limits: { rekeyTimeout, jitter, ...options.sessionLimits },
    ...(fwmark === undefined ? {} : { fwmark }),
    ...(offload === undefined ? {} : { offload }),
  });
  const wall = (): number => deps.clock.wall();
  const timestampWall = options.timestampMark ? wallAfter(options.timestampMark, wall) : wall;
  return new EmbeddedDevice({ ...deps, plane, timestampWall }, { ...options, peerCapacity });
}
