import type { Millis } from "#base/time.ts";
import {
  KEEPALIVE_TIMEOUT,
  REJECT_AFTER_TIME,
  REKEY_AFTER_TIME,
  REKEY_TIMEOUT,
  REKEY_TIMEOUT_JITTER,
} from "../constants.ts";

/** Longer than most round trips with a delayed TCP acknowledgement (40 ms on Linux, 200 ms elsewhere) in them. */
const SILENCE: Millis = 400;

/**
 * When sessions are renewed and given up. The defaults are the protocol's; tests lower them. Counters are numbers here:
 * 2^53 packets cannot be sent within a session's 180 s, so the paper's 2^60 and 2^64 are never the limit that is met.
 */
export interface SessionLimits {
  readonly rekeyAfterTime: Millis;
  readonly rejectAfterTime: Millis;
  readonly keepaliveTimeout: Millis;
  readonly rekeyTimeout: Millis;
  readonly jitter: Millis;
  /** Data was sent and nothing came back for so long: worth a report, not worth a handshake. Not the protocol's. */
  readonly silence: Millis;
  readonly rekeyAfterMessages: number;
  readonly rejectAfterMessages: number;
}

export const PROTOCOL_LIMITS: SessionLimits = {
  rekeyAfterTime: REKEY_AFTER_TIME,
  rejectAfterTime: REJECT_AFTER_TIME,
  keepaliveTimeout: KEEPALIVE_TIMEOUT,
  rekeyTimeout: REKEY_TIMEOUT,
  jitter: REKEY_TIMEOUT_JITTER,
  silence: SILENCE,
  rekeyAfterMessages: 2 ** 52,
  rejectAfterMessages: 2 ** 53 - 2 ** 13 - 1,
};
