/**
 * The embedded WireGuard, usable alone: `import { createEmbeddedDevice } from "perch/wireguard"`. See README.md for an
 * example. Everything a caller needs is exported here; other files of the folder may change without notice.
 */
export { PerchError } from "#base/errors.ts";
export {
  type Endpoint,
  formatEndpoint,
  formatPrefix,
  type IpAddress,
  type Prefix,
  parseEndpoint,
  parseIp,
  parsePrefix,
} from "#base/ip.ts";
export { KeyError, PresharedKey, PrivateKey, PublicKey } from "#base/keys.ts";
export { createLogger, type Logger, type LogSink, silentLogger } from "#base/log.ts";
export { type Clock, type Millis, systemClock } from "#base/time.ts";
export type { CaptureEnd, CaptureOptions, CaptureSummary, PacketCapture } from "./capture.ts";
export { DEFAULT_MTU } from "./constants.ts";
export { createEmbeddedDevice, type EmbeddedDeviceDeps, type EmbeddedDeviceOptions } from "./create-embedded-device.ts";
export type {
  DeviceEvents,
  DevicePath,
  DevicePeerConfig,
  DevicePeerStats,
  PacketSource,
  PacketSummary,
  WakeCause,
  WireGuardDevice,
} from "./device.ts";
export { DeviceError } from "./device-error.ts";
export {
  FILTER_RULES_PER_SOURCE,
  FilterError,
  type FilterProtocol,
  type FilterRule,
  type FilterRules,
  type FilterVerdict,
  type PortRange,
  type SourceRule,
} from "./filter.ts";
export type { TimestampMark } from "./timestamp-mark.ts";
