import { type IpAddress, ipToBytes, isV6 } from "#base/ip.ts";
import type { Millis } from "#base/time.ts";
import { RATE_LIMIT_BURST, RATE_LIMIT_PER_SECOND } from "./constants.ts";

const COST: Millis = 1000 / RATE_LIMIT_PER_SECOND;
const CAPACITY: Millis = COST * RATE_LIMIT_BURST;
/** A bucket unused this long is full again and forgotten. */
const COLLECT_AFTER: Millis = 1_000;

/** Sources remembered at a time; more are refused until old ones are collected. */
export const RATE_LIMIT_MAX_SOURCES = 16_384;

interface Bucket {
  credit: Millis;
  at: Millis;
}

/**
 * A token bucket per source, asked only under load and only for messages whose mac2 proved the source address: 20 a
 * second, 5 at once. Buckets live for a second after their last use; when the table is full, new sources are refused.
 */
export class RateLimiter {
  readonly #buckets = new Map<string, Bucket>();
  #collectAt: Millis = 0;

  get size(): number {
    return this.#buckets.size;
  }

  allow(source: string, now: Millis): boolean {
    if (now >= this.#collectAt) this.#collect(now);
    const bucket = this.#buckets.get(source);
    if (!bucket) {
      if (this.#buckets.size >= RATE_LIMIT_MAX_SOURCES) return false;
      this.#buckets.set(source, { credit: CAPACITY - COST, at: now });
      return true;
    }
    const credit = Math.min(CAPACITY, bucket.credit + (now - bucket.at));
    bucket.at = now;
    const allowed = credit >= COST;
    bucket.credit = allowed ? credit - COST : credit;
    return allowed;
  }

  #collect(now: Millis): void {
    for (const [source, bucket] of this.#buckets) if (now - bucket.at >= COLLECT_AFTER) this.#buckets.delete(source);
    this.#collectAt = now + COLLECT_AFTER;
  }
}

/** What shares a bucket: one IPv4 address, or one IPv6 /64 (what a single host is commonly given; the kernel's choice). */
export function rateLimitKey(address: IpAddress): string {
  return isV6(address) ? Buffer.from(ipToBytes(address).subarray(0, 8)).toString("hex") : address;
}
