import { sameEndpoint } from "#base/ip.ts";
import type { Millis } from "#base/time.ts";
import type { PacketSource } from "../device.ts";
import { type CounterActivity, judgeGrowth } from "./counter-activity.ts";
import type { ExternalPeer, PeerUse, RawCounters } from "./external-peer.ts";
import type { PeerReading } from "./parts.ts";

/** When a reading took place, and what the device had been told by then. */
export interface ReadingTime {
  readonly start: Millis;
  readonly now: Millis;
  /** Wall clock of `now`. */
  readonly wall: number;
  /** Last batch of changes that was in the device when it began. */
  readonly settled: number;
}

/** What a reading says of a peer. */
export interface ReadingFacts {
  /** Since the reading before, bytes. */
  readonly growth: RawCounters;
  readonly activity: CounterActivity;
  /** A handshake was completed since the reading before. */
  readonly handshake: boolean;
  /** Where the device sends now: it roams by itself. */
  readonly source: PacketSource | undefined;
  /** That is not what it was told, and it was told before the reading began. */
  readonly strayed: boolean;
  /** When the reading before began. */
  readonly since: Millis;
}

/** Takes a reading over into what is known of the peer; undefined when it was begun before the device forgot the peer. */
export function takeReading(
  { use, local }: ExternalPeer,
  reading: PeerReading,
  time: ReadingTime,
): ReadingFacts | undefined {
  if (!use) return undefined;
  if (time.settled < use.resetIn) return undefined;
  const { rxBytes, txBytes, lastHandshake, endpoint } = reading;
  // Counters that went back belong to a life that we did not begin.
  if (rxBytes < use.seen.rx || txBytes < use.seen.tx) forgetLife(use);
  const handshake = lastHandshake > 0 && lastHandshake !== use.seenHandshake;
  const growth = { rx: rxBytes - use.seen.rx, tx: txBytes - use.seen.tx };
  const activity = judgeGrowth({
    ...growth,
    span: time.start - use.seenAt,
    handshake: handshake || use.tryingSince !== undefined || (use.initiation?.at ?? 0) >= use.seenAt,
  });
  const since = use.seenAt;
  use.seen = { rx: rxBytes, tx: txBytes };
  use.seenAt = time.start;
  if (handshake) {
    use.seenHandshake = lastHandshake;
    use.lastHandshake = lastHandshake;
    use.sessionSince = time.now - Math.max(0, time.wall - lastHandshake);
  }
  if (activity.rx) use.lastRx = time.now;
  if (activity.rxData) use.lastDataRx = time.now;
  if (activity.txData) use.lastDataTx = time.now;
  if (activity.rx) use.unansweredSince = undefined;
  else if (activity.txData) use.unansweredSince ??= time.start;
  const isLocal = local !== undefined && sameEndpoint(endpoint, local);
  const source: PacketSource | undefined = isLocal ? { kind: "relay" } : endpoint && { kind: "udp", endpoint };
  const isAsTold = use.told === "local" ? isLocal : sameEndpoint(endpoint, use.told);
  return { growth, activity, handshake, source, strayed: !isAsTold && time.settled >= use.toldIn, since };
}

/** The device forgot the peer: counters go on from what they were, sessions are gone. */
export function forgetLife(use: PeerUse): void {
  use.past = { rx: use.past.rx + use.seen.rx, tx: use.past.tx + use.seen.tx };
  use.seen = { rx: 0, tx: 0 };
  use.seenHandshake = 0;
  use.sessionSince = undefined;
  use.initiation = undefined;
  use.unansweredSince = undefined;
}
