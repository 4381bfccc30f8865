import type { DevicePath } from "#wireguard/device.ts";
import type { AwakeState, PeerConnectionState, PeerEffect, Step } from "./peer-state.ts";

/* What the transitions of a peer are put together from. */

/** The path that packets of this state take. */
export function choosePath(state: PeerConnectionState): DevicePath {
  if (state.kind === "idle") return { kind: "none" };
  if (state.direct) return { kind: "udp", endpoint: state.direct.endpoint };
  return state.relay ? { kind: "relay" } : { kind: "none" };
}

export function unchanged(state: AwakeState): Step {
  return { state, effects: [] };
}

export function chain(first: Step, next: (state: AwakeState) => Step): Step {
  if (first.state.kind === "idle") return first;
  const second = next(first.state);
  return { state: second.state, effects: [...first.effects, ...second.effects] };
}

export function append(first: Step, effects: readonly PeerEffect[]): Step {
  return { state: first.state, effects: [...first.effects, ...effects] };
}
