import type { DeviceEvents, WireGuardDevice } from "../device.ts";

export interface RecordedEvent {
  readonly name: keyof DeviceEvents;
  readonly payload: unknown;
}

/** All there are: the compiler misses one that is left out. */
const NAMES: { readonly [Name in keyof DeviceEvents]: Name } = {
  wake: "wake",
  established: "established",
  "path-hint": "path-hint",
  silent: "silent",
  "relay-out": "relay-out",
  stun: "stun",
  "path-error": "path-error",
  "handshake-failed": "handshake-failed",
  "worker-restarted": "worker-restarted",
  gone: "gone",
};

/** What a device tells from now on, in order. */
export function recordDeviceEvents(device: Pick<WireGuardDevice, "events">): RecordedEvent[] {
  const events: RecordedEvent[] = [];
  for (const name of Object.values(NAMES)) device.events.on(name, (payload) => events.push({ name, payload }));
  return events;
}
