import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { unreachable } from "#base/errors.ts";
import type { Millis } from "#base/time.ts";
import { type Body, Body_Type, BodySchema, PerchSleep_Step, type PerchSleepSchema } from "#gen/signal_pb.ts";

/**
 * A step of an agreement about sleep between two Perch agents (docs/adr/0004). Travels as GO_IDLE: no agent wakes for that,
 * and one that does not know the step takes it for what it would follow anyway.
 */
export type SleepMessage =
  /** The sender would sleep and waits for the answer. `idle`: how long it saw no traffic; 0: a user asked for it. */
  | { readonly kind: "propose"; readonly epoch: number; readonly idle: Millis }
  /** The sender sleeps now. */
  | { readonly kind: "agree"; readonly epoch: number }
  /** The sender stays awake; asking again is of no use for `wait`, ever when undefined. */
  | { readonly kind: "refuse"; readonly epoch: number; readonly wait: Millis | undefined };

const UINT32_MAX = 2 ** 32 - 1;

/** Durations are rounded to whole milliseconds and cut at 49 days. */
export function createSleepBody(message: SleepMessage): Body {
  return create(BodySchema, { type: Body_Type.GO_IDLE, perch: { agreesOnSleep: true, sleep: encode(message) } });
}

function encode(message: SleepMessage): MessageInitShape<typeof PerchSleepSchema> {
  const { epoch } = message;
  switch (message.kind) {
    case "propose":
      return { step: PerchSleep_Step.PROPOSE, epoch, idleMs: toUint32(message.idle) };
    case "agree":
      return { step: PerchSleep_Step.AGREE, epoch };
    case "refuse":
      return {
        step: PerchSleep_Step.REFUSE,
        epoch,
        ...(message.wait !== undefined && { waitMs: toUint32(message.wait) }),
      };
    default:
      return unreachable(message);
  }
}

/** The step in a GO_IDLE. "asleep": the sender sleeps already. Undefined: a step of a later version. */
export function parseSleepBody(body: Body): SleepMessage | "asleep" | undefined {
  const sleep = body.perch?.sleep;
  if (sleep === undefined) return "asleep";
  const { epoch, idleMs: idle, waitMs: wait } = sleep;
  switch (sleep.step) {
    case PerchSleep_Step.PROPOSE:
      return { kind: "propose", epoch, idle };
    case PerchSleep_Step.AGREE:
      return { kind: "agree", epoch };
    case PerchSleep_Step.REFUSE:
      return { kind: "refuse", epoch, wait };
    default:
      return undefined;
  }
}

function toUint32(ms: Millis): number {
  return Math.min(UINT32_MAX, Math.max(0, Math.round(ms)));
}
