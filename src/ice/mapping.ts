import { type Endpoint, formatEndpoint, type IpAddress, ipToBytes, isV6, sameEndpoint } from "#base/ip.ts";
import type { Clock, Millis } from "#base/time.ts";

/**
 * How the NAT in front of the socket maps it, seen from the answers of different destinations. `none`: it does not, the
 * address outside is our own. `endpoint-dependent`: every destination sees another address ("symmetric"), hole punching
 * needs a peer that is easier to reach.
 */
export type MappingBehaviour = "unknown" | "none" | "endpoint-independent" | "endpoint-dependent";

/** What one destination saw as the address of our socket. */
export interface MappingObservation {
  readonly destination: Endpoint;
  readonly mapped: Endpoint;
  /** Clock of the newest answer. */
  readonly at: Millis;
  /** A STUN server, or a peer's answer to an ICE check. */
  readonly by: "server" | "peer";
  /** False where the destination saw an address of this machine itself. */
  readonly translated: boolean;
}

/** Answers further apart than this say nothing about the NAT when they differ: it may have given the mapping up between. */
export const MAPPING_COMPARE_WINDOW: Millis = 60_000;
/** Most destinations remembered; the one that answered longest ago goes. */
export const MAPPING_OBSERVATIONS_MAX = 32;

export interface MappingObserverDeps {
  readonly clock: Clock;
  /** Whether this is an address of this machine and the socket's port. */
  readonly isOwn: (mapped: Endpoint) => boolean;
}

/**
 * Collects what destinations see as our address and concludes how the NAT behaves. One STUN server alone cannot tell; a
 * second server, another port of it, or one answered ICE check of a peer elsewhere can. A conclusion holds until a newer one
 * or `forget`. Observing costs no packet.
 */
export class MappingObserver {
  readonly #deps: MappingObserverDeps;
  /** Oldest answer first. */
  readonly #known = new Map<string, MappingObservation>();
  readonly #concluded = new Map<4 | 6, MappingBehaviour>();

  constructor(deps: MappingObserverDeps) {
    this.#deps = deps;
  }

  /** An authenticated answer, or one to a query of ours, named our address. */
  note(destination: Endpoint, mapped: Endpoint, by: MappingObservation["by"]): void {
    const key = formatEndpoint(destination);
    const before = this.#known.get(key);
    const same = sameEndpoint(before?.mapped, mapped);
    const translated = before && same ? before.translated : !this.#deps.isOwn(mapped);
    this.#known.delete(key);
    this.#known.set(key, { destination, mapped, at: this.#deps.clock.now(), by, translated });
    if (this.#known.size > MAPPING_OBSERVATIONS_MAX) this.#known.delete(this.#known.keys().next().value!);
    const family = familyOf(destination);
    const concluded = concludeMapping(this.observations(family));
    if (concluded !== "unknown") this.#concluded.set(family, concluded);
  }

  behaviour(family: 4 | 6 = 4): MappingBehaviour {
    return this.#concluded.get(family) ?? "unknown";
  }

  /** Oldest answer first. */
  observations(family?: 4 | 6): MappingObservation[] {
    const all = [...this.#known.values()];
    return family === undefined ? all : all.filter(({ destination }) => familyOf(destination) === family);
  }

  /** The network changed: what is known is wrong. */
  forget(): void {
    this.#known.clear();
    this.#concluded.clear();
  }
}

/**
 * What observations of one address family prove. Destinations in private ranges count only where there are no others: one
 * behind the same outer NAT sees us through the inner one alone.
 */
export function concludeMapping(observations: readonly MappingObservation[]): MappingBehaviour {
  const outside = observations.filter(({ destination }) => !isPrivate(destination.address));
  const counting = outside.length > 0 ? outside : observations;
  const newest = Math.max(...counting.map(({ at }) => at));
  const recent = counting.filter(({ at }) => newest - at <= MAPPING_COMPARE_WINDOW);
  if (recent.length === 0) return "unknown";
  const translated = recent.filter((observation) => observation.translated);
  const [first, ...others] = translated;
  if (!first) return "none";
  if (others.length === 0) return "unknown";
  return others.every(({ mapped }) => sameEndpoint(mapped, first.mapped))
    ? "endpoint-independent"
    : "endpoint-dependent";
}

function familyOf({ address }: Endpoint): 4 | 6 {
  return isV6(address) ? 6 : 4;
}

/** RFC 1918, RFC 6598 (a provider's NAT), link-local, loopback, and fc00::/7. */
export function isPrivate(address: IpAddress): boolean {
  // Asked for all that is remembered with each answer: of IPv4 the text says enough.
  const isLong = isV6(address);
  const [a = 0, b = 0] = isLong ? ipToBytes(address) : address.split(".", 2).map(Number);
  if (isLong) return (a & 0xfe) === 0xfc || (a === 0xfe && (b & 0xc0) === 0x80);
  if (a === 10 || a === 127) return true;
  if (a === 172) return b >= 16 && b < 32;
  if (a === 192) return b === 168;
  if (a === 169) return b === 254;
  return a === 100 && b >= 64 && b < 128;
}
