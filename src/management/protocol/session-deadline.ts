/**
 * The login deadline as a Timestamp with three states. Source: protocol/management.md, section 3.9.
 *
 *     absent                       nothing new
 *     present, 0 s and 0 ns        there is no deadline
 *     present, anything else       the deadline
 */
import { create } from "@bufbuild/protobuf";
import { type Timestamp, TimestampSchema } from "@bufbuild/protobuf/wkt";

export type SessionDeadline =
  | { readonly kind: "unchanged" }
  | { readonly kind: "none" }
  /** `at` in milliseconds since the Unix epoch. */
  | { readonly kind: "at"; readonly at: number };

const DAY_MS = 86_400_000;
/** A deadline further ahead, or longer past, than this is taken for nonsense and cleared. */
export const DEADLINE_MAX_AHEAD_MS = 3652 * DAY_MS;
export const DEADLINE_MAX_PAST_MS = 30 * DAY_MS;

export function encodeSessionDeadline(deadline: SessionDeadline): Timestamp | undefined {
  switch (deadline.kind) {
    case "unchanged":
      return undefined;
    case "none":
      // A message without fields: it must be there (3a 00), not left out.
      return create(TimestampSchema);
    case "at":
      return create(TimestampSchema, {
        seconds: BigInt(Math.floor(deadline.at / 1000)),
        nanos: Math.floor(((deadline.at % 1000) + 1000) % 1000) * 1_000_000,
      });
  }
}

/** `wall` is the reader's clock in milliseconds since the Unix epoch. */
export function decodeSessionDeadline(timestamp: Timestamp | undefined, wall: number): SessionDeadline {
  if (!timestamp) return { kind: "unchanged" };
  if (timestamp.seconds === 0n && timestamp.nanos === 0) return { kind: "none" };
  const at = Number(timestamp.seconds) * 1000 + timestamp.nanos / 1_000_000;
  if (at < 0 || at > wall + DEADLINE_MAX_AHEAD_MS || at < wall - DEADLINE_MAX_PAST_MS) return { kind: "none" };
  return { kind: "at", at };
}
