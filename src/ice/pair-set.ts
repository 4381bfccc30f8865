import { type Endpoint, isV6, sameEndpoint } from "#base/ip.ts";
import type { Candidate } from "./candidate.ts";
import { compareValid, isValid, type Pair, pairKey, type ValidPair } from "./pair.ts";
import { localReflexive } from "./reflexive.ts";
import { MAX_REMOTE_REFLEXIVE, MAX_REMOTE_SIGNALLED } from "./timing.ts";

/** The local candidates and the pairs of one check list, and what can be looked up in them. */
export class PairSet {
  /** Highest priority first. */
  readonly #locals: Candidate[] = [];
  /** In order of arrival; key is the remote endpoint. */
  readonly #pairs = new Map<string, Pair>();

  get size(): number {
    return this.#pairs.size;
  }

  [Symbol.iterator](): IterableIterator<Pair> {
    return this.#pairs.values();
  }

  addLocal(candidate: Candidate): void {
    if (this.#locals.some((known) => sameEndpoint(known.endpoint, candidate.endpoint))) return;
    this.#locals.push(candidate);
    this.#locals.sort((a, b) => b.priority - a.priority);
  }

  add(pair: Pair): void {
    this.#pairs.set(pair.key, pair);
  }

  of(remote: Endpoint): Pair | undefined {
    return this.#pairs.get(pairKey(remote));
  }

  /** Whether there is room for one more remote candidate that was signalled, or learned from a check. */
  hasRoom(kind: "signalled" | "reflexive"): boolean {
    let count = 0;
    for (const pair of this) if ((pair.remote.type === "prflx") === (kind === "reflexive")) count++;
    return count < (kind === "reflexive" ? MAX_REMOTE_REFLEXIVE : MAX_REMOTE_SIGNALLED);
  }

  valid(): ValidPair[] {
    return [...this].filter(isValid);
  }

  bestValid(): ValidPair | undefined {
    return this.valid().sort(compareValid)[0];
  }

  /** The local candidate that stands for the socket of the remote's family: its highest host candidate. */
  baseOf(remote: Candidate): Candidate | undefined {
    return this.#locals.find(
      (local) => local.type === "host" && isV6(local.endpoint.address) === isV6(remote.endpoint.address),
    );
  }

  /** The local candidate a mapped address belongs to; an unknown one is peer-reflexive (RFC 8445, 7.2.5.3.1). */
  localOf(mapped: Endpoint | undefined, remote: Candidate): Candidate {
    const known = mapped && this.#locals.find((local) => sameEndpoint(local.endpoint, mapped));
    if (known) return known;
    const base = this.baseOf(remote);
    return localReflexive(mapped ?? base?.endpoint ?? remote.endpoint, base);
  }
}
