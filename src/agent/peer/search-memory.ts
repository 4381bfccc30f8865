import { formatPrefix, type IpAddress, isV6, maskPrefix } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import type { Clock, Millis } from "#base/time.ts";
import { parseCandidate } from "#ice/candidate.ts";
import type { RemoteSession } from "./peer-state.ts";

/** Failed searches between the same two networks before the next one is put off ... */
export const SEARCHES_BEFORE_HOLD = 3;
/** ... by this long, then by twice as much each time. */
export const FIRST_HOLD: Millis = 10 * 60_000;
export const LONGEST_HOLD: Millis = 6 * 3_600_000;
/** Pairs of networks remembered; the one that failed longest ago goes. */
export const SEARCH_MEMORY_MAX = 256;

/** Searches between a peer's network and ours are put off: they would only fill the tables of two firewalls. */
export interface SearchHold {
  readonly failures: number;
  /** Clock; the first search after it is made. */
  readonly until: Millis;
}

interface Failed {
  readonly failures: number;
  readonly until: Millis | undefined;
}

/**
 * Remembers with which peers searches for a direct way fail, for each pair of networks: carried elsewhere, either side begins
 * anew, and back again it still knows. A search that succeeds forgets. In memory only: what was true before a restart may
 * not be any more, and learning it again costs three searches.
 */
export class SearchMemory {
  readonly #clock: Clock;
  /** Oldest failure first. */
  readonly #failed = new Map<string, Failed>();

  constructor(deps: { readonly clock: Clock }) {
    this.#clock = deps.clock;
  }

  noteFailed(peer: PublicKey, here: string, there: string): void {
    const key = keyOf(peer, here, there);
    const failures = (this.#failed.get(key)?.failures ?? 0) + 1;
    const over = failures - SEARCHES_BEFORE_HOLD;
    const until = over < 0 ? undefined : this.#clock.now() + Math.min(LONGEST_HOLD, FIRST_HOLD * 2 ** over);
    this.#failed.delete(key);
    this.#failed.set(key, { failures, until });
    if (this.#failed.size > SEARCH_MEMORY_MAX) this.#failed.delete(this.#failed.keys().next().value!);
  }

  noteFound(peer: PublicKey, here: string, there: string): void {
    this.#failed.delete(keyOf(peer, here, there));
  }

  /** Undefined: search. */
  holdOf(peer: PublicKey, here: string, there: string): SearchHold | undefined {
    const { failures, until } = this.#failed.get(keyOf(peer, here, there)) ?? {};
    if (failures === undefined || until === undefined || until <= this.#clock.now()) return undefined;
    return { failures, until };
  }

  clear(): void {
    this.#failed.clear();
  }
}

/** The network an address is in, as far as it tells one place from another: privacy addresses of IPv6 change by the day. */
export function networkOf(address: IpAddress): string {
  return isV6(address) ? formatPrefix(maskPrefix({ address, bits: 64 })) : address;
}

/** Where a remote is, from what it names: a Perch agent all its addresses; of a stock one they are not known in time. */
export function remoteNetwork({ perch }: RemoteSession): string {
  if (!perch) return "stock";
  const addresses = perch.candidates.flatMap((text) => parseCandidate(text)?.endpoint.address ?? []);
  return [...new Set(addresses.map(networkOf))]
    .sort()
    .concat(perch.nat?.udp ?? "")
    .join();
}

function keyOf(peer: PublicKey, here: string, there: string): string {
  return `${peer} ${here} ${there}`;
}
