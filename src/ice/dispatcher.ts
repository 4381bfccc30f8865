import type { Endpoint } from "#base/ip.ts";
import type { Clock, Millis } from "#base/time.ts";
import { TRANSACTION_TAG_DIGITS } from "./ice-agent.ts";
import { parseStun, type StunMessage } from "./stun-message.ts";

/** What the dispatcher needs to know of an agent; IceAgent is one. */
export interface StunReceiver {
  readonly localUfrag: string;
  /** The first hexadecimal digits of all its transaction ids. */
  readonly transactionTag: string;
  receive(message: StunMessage, from: Endpoint, to?: Endpoint): void;
}

export interface StunDispatcherDeps {
  readonly clock: Clock;
  /** The mapped-address cache: true when the answer was one it waits for. */
  readonly cache?: { receive(message: StunMessage, from: Endpoint): boolean };
}

/** How long a request for an agent that does not exist yet is kept: an answer may overtake the offer by this much. */
export const EARLY_REQUEST_LIFETIME: Millis = 3_000;
/** Most requests kept in all; when full the oldest goes. At most STUN_MAX_BYTES each. */
export const EARLY_REQUESTS_MAX = 128;
/** Most requests kept for one ufrag; when full the oldest of it goes. */
export const EARLY_REQUESTS_PER_UFRAG = 8;

interface EarlyRequest {
  readonly ufrag: string;
  readonly datagram: Uint8Array;
  readonly from: Endpoint;
  readonly to: Endpoint | undefined;
  readonly at: Millis;
}

/**
 * Hands every STUN datagram of the WireGuard port to the one it belongs to, in constant time: requests by the ufrag in
 * front of USERNAME's colon, answers by the tag in front of the transaction id, other answers to the mapped-address cache.
 * What belongs to nobody is counted and dropped, except requests: an agent that registers within 3 s gets them.
 */
export class StunDispatcher {
  readonly #deps: StunDispatcherDeps;
  readonly #byUfrag = new Map<string, StunReceiver>();
  readonly #byTag = new Map<string, StunReceiver>();
  /** Oldest first. */
  #early: EarlyRequest[] = [];
  readonly #counters = new Map<string, number>();

  constructor(deps: StunDispatcherDeps) {
    this.#deps = deps;
  }

  /** Takes the place of an earlier agent with the same ufrag. Kept requests for it are delivered before this returns. */
  register(receiver: StunReceiver): void {
    this.#byUfrag.set(receiver.localUfrag, receiver);
    this.#byTag.set(receiver.transactionTag, receiver);
    this.#forgetOld();
    const kept = this.#early.filter((request) => request.ufrag === receiver.localUfrag);
    if (kept.length === 0) return;
    this.#early = this.#early.filter((request) => request.ufrag !== receiver.localUfrag);
    for (const { datagram, from, to } of kept) {
      const message = parseStun(datagram);
      if (message) receiver.receive(message, from, to);
    }
  }

  /** Only an agent that is still the registered one is removed; idempotent. */
  unregister(receiver: StunReceiver): void {
    if (this.#byUfrag.get(receiver.localUfrag) === receiver) this.#byUfrag.delete(receiver.localUfrag);
    if (this.#byTag.get(receiver.transactionTag) === receiver) this.#byTag.delete(receiver.transactionTag);
  }

  /** The buffer is only read before this returns. */
  receive(datagram: Uint8Array, from: Endpoint, to?: Endpoint): void {
    const message = parseStun(datagram);
    if (!message) return this.#count("malformed");
    if (message.class === "request") return this.#receiveRequest(message, from, to);
    if (message.class === "indication") return this.#count("indication");
    const receiver = this.#byTag.get(message.transactionId.slice(0, TRANSACTION_TAG_DIGITS));
    if (receiver) receiver.receive(message, from, to);
    else if (!this.#deps.cache?.receive(message, from)) this.#count("answer-unknown");
  }

  /** Registered agents; for tests and diagnosis. */
  get size(): number {
    return this.#byUfrag.size;
  }

  counters(): ReadonlyMap<string, number> {
    return this.#counters;
  }

  #receiveRequest(message: StunMessage, from: Endpoint, to: Endpoint | undefined): void {
    // The WireGuard port is no public STUN server: a request without a name is nobody's.
    const colon = message.username?.indexOf(":") ?? -1;
    if (message.username === undefined || colon <= 0 || !message.hasIntegrity) return this.#count("request-unnamed");
    const ufrag = message.username.slice(0, colon);
    const receiver = this.#byUfrag.get(ufrag);
    if (receiver) return receiver.receive(message, from, to);
    this.#count("request-early");
    this.#forgetOld();
    const same = this.#early.filter((request) => request.ufrag === ufrag);
    const victim =
      same.length >= EARLY_REQUESTS_PER_UFRAG
        ? same[0]
        : this.#early.length >= EARLY_REQUESTS_MAX
          ? this.#early[0]
          : undefined;
    if (victim) {
      this.#early = this.#early.filter((request) => request !== victim);
      this.#count("request-early-dropped");
    }
    this.#early.push({ ufrag, datagram: message.bytes.slice(), from, to, at: this.#deps.clock.now() });
  }

  #forgetOld(): void {
    const oldest = this.#deps.clock.now() - EARLY_REQUEST_LIFETIME;
    while (this.#early[0] && this.#early[0].at < oldest) {
      this.#early.shift();
      this.#count("request-early-expired");
    }
  }

  #count(name: string): void {
    this.#counters.set(name, (this.#counters.get(name) ?? 0) + 1);
  }
}
