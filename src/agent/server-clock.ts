import { request as requestHttp } from "node:http";
import { request as requestHttps } from "node:https";
import type { Clock, Millis } from "#base/time.ts";

/** Time for the answer. */
const TIMEOUT: Millis = 3_000;

/** How this machine's clock stands to a server's. */
export interface ClockReading {
  /** Positive: this machine is ahead. */
  readonly aheadMs: Millis;
  /** The true difference is within this of it: the server tells whole seconds, and the answer was on its way. */
  readonly uncertaintyMs: Millis;
}

/**
 * Compares the clock with the `Date` header of a server's answer to HEAD (RFC 9110, section 6.6.1), whatever the answer.
 * Undefined when there is none in 3 s; never rejects.
 */
export function readServerClock(url: string, clock: Clock, signal?: AbortSignal): Promise<ClockReading | undefined> {
  return new Promise((resolve) => {
    let target: URL;
    try {
      target = new URL(url);
    } catch {
      return resolve(undefined);
    }
    const began = clock.now();
    const send = target.protocol === "https:" ? requestHttps : requestHttp;
    const stop = AbortSignal.any([AbortSignal.timeout(TIMEOUT), ...(signal ? [signal] : [])]);
    // No connection is kept: its end is not ours to watch.
    const request = send(target, { method: "HEAD", agent: false, signal: stop }, (response) => {
      response.resume();
      const told = Date.parse(response.headers.date ?? "");
      const roundTrip = clock.now() - began;
      request.destroy();
      // The header cuts fractions off: on average half a second is missing.
      const aheadMs = clock.wall() - roundTrip / 2 - (told + 500);
      resolve(Number.isNaN(told) ? undefined : { aheadMs, uncertaintyMs: 500 + roundTrip / 2 });
    });
    request.on("error", () => resolve(undefined));
    request.end();
  });
}
