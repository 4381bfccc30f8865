import { type Endpoint, formatEndpoint, parseEndpoint, parseIp } from "#base/ip.ts";
import type { Clock, Millis } from "#base/time.ts";
import { encodeStun, parseStun } from "#ice/stun-message.ts";

/*
 * A small internet in memory: hosts, a NAT in front of each, STUN servers, one delay for every way, loss, jitter and repeated
 * packets by a seeded generator. It moves by the clock it is given.
 */

/** Mapping and filtering (RFC 4787, 4 and 5). `endpoint-independent`, `address` and `port` name the filtering. */
export const NAT_KINDS = ["none", "endpoint-independent", "address", "port", "symmetric", "blocked"] as const;
export type NatKind = (typeof NAT_KINDS)[number];

/** Direct is possible in principle, without guessing ports. */
export function isDirectPossible(a: NatKind, b: NatKind): boolean {
  if (a === "blocked" || b === "blocked") return false;
  if (a === "symmetric") return b !== "port" && b !== "symmetric";
  if (b === "symmetric") return a !== "port";
  return true;
}

/** A small seeded generator (mulberry32). */
export function createRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

interface Mapping {
  readonly inside: Endpoint;
  readonly outside: Endpoint;
  readonly sentTo: Set<string>;
  usedAt: Millis;
}

/** The NAT of one site. Mappings live until `rebind` forgets them, or until nothing was sent for `lifetime`. */
export class Nat {
  readonly kind: NatKind;
  readonly address: string;
  #mappings: Mapping[] = [];
  #nextPort: number;
  /** A mapping without use for this long is forgotten; 0 = never. Needs `now`. */
  lifetime: Millis = 0;
  now: () => Millis = () => 0;
  readonly #forwards = new Map<number, { readonly inside: Endpoint; readonly reachedBy: Set<string> }>();

  constructor(kind: NatKind, address: string, firstPort = 40_000) {
    this.kind = kind;
    this.address = address;
    this.#nextPort = firstPort;
  }

  /** The source the internet sees; undefined when the packet is dropped. */
  translateOut(from: Endpoint, to: Endpoint): Endpoint | undefined {
    if (this.kind === "blocked") return undefined;
    if (this.kind === "none") return from;
    // Answers to what came through a forward leave from the forwarded port.
    if (this.#forwards.get(from.port)?.reachedBy.has(formatEndpoint(to)))
      return { address: parseIp(this.address), port: from.port };
    this.#expire();
    let mapping = this.#mappings.find(
      ({ inside, sentTo }) =>
        formatEndpoint(inside) === formatEndpoint(from) &&
        (this.kind !== "symmetric" || sentTo.has(formatEndpoint(to))),
    );
    if (!mapping) {
      const outside = { address: parseIp(this.address), port: this.#nextPort++ };
      mapping = { inside: from, outside, sentTo: new Set(), usedAt: 0 };
      this.#mappings.push(mapping);
    }
    mapping.sentTo.add(formatEndpoint(to));
    mapping.usedAt = this.now();
    return mapping.outside;
  }

  /** The inside destination of a packet from the internet; undefined when it is filtered. */
  translateIn(from: Endpoint, to: Endpoint): Endpoint | undefined {
    if (this.kind === "blocked") return undefined;
    if (this.kind === "none") return to;
    const forwarded = this.#forwards.get(to.port);
    if (forwarded) {
      forwarded.reachedBy.add(formatEndpoint(from));
      return forwarded.inside;
    }
    this.#expire();
    const mapping = this.#mappings.find(({ outside }) => formatEndpoint(outside) === formatEndpoint(to));
    if (!mapping) return undefined;
    const sentTo = [...mapping.sentTo];
    const open =
      this.kind === "endpoint-independent" ||
      (this.kind === "address"
        ? sentTo.some((peer) => parseEndpoint(peer).address === from.address)
        : sentTo.includes(formatEndpoint(from)));
    return open ? mapping.inside : undefined;
  }

  /** A static forward of the same port to an inside endpoint. */
  forward(inside: Endpoint): void {
    this.#forwards.set(inside.port, { inside, reachedBy: new Set() });
  }

  /** Forgets every mapping, as a router that restarts. */
  rebind(): void {
    this.#mappings = [];
  }

  #expire(): void {
    if (this.lifetime === 0) return;
    const oldest = this.now() - this.lifetime;
    this.#mappings = this.#mappings.filter(({ usedAt }) => usedAt >= oldest);
  }
}

/** A machine as the internet sees it: one UDP socket behind a NAT. */
export interface NetworkHost {
  readonly endpoint: Endpoint;
  readonly nat: Nat;
  arrive(datagram: Uint8Array, from: Endpoint): void;
}

export interface InternetOptions {
  readonly seed?: number;
  /** One way between any two sites. */
  readonly delay?: Millis;
  /** Probability of each packet. */
  readonly loss?: number;
}

export const STUN_SERVERS: readonly Endpoint[] = [
  parseEndpoint("198.51.100.1:3478"),
  parseEndpoint("198.51.100.2:3478"),
];

export class Internet<Time extends Clock = Clock> {
  readonly clock: Time;
  readonly random: () => number;
  readonly delay: Millis;
  loss: number;
  /** Added to `delay` at random; packets overtake each other. */
  jitter: Millis = 0;
  /** Probability that a packet arrives twice. */
  repetition = 0;
  sent = 0;
  /** Links that are cut: `from site address>to site address`. */
  readonly cut = new Set<string>();
  /** Sees every packet that does not arrive, whatever the reason. */
  onDrop: (datagram: Uint8Array, why: string) => void = () => {};
  readonly #hosts = new Map<string, NetworkHost>();
  readonly #nats: Nat[] = [];

  constructor(clock: Time, options: InternetOptions = {}) {
    this.clock = clock;
    this.random = createRandom(options.seed ?? 1);
    this.delay = options.delay ?? 20;
    this.loss = options.loss ?? 0;
  }

  randomBytes(count: number): Uint8Array {
    return Uint8Array.from({ length: count }, () => Math.floor(this.random() * 256));
  }

  attach(host: NetworkHost): void {
    this.#hosts.set(formatEndpoint(host.endpoint), host);
    if (!this.#nats.includes(host.nat)) this.#nats.push(host.nat);
  }

  /** The host is gone from the network; its NAT stays. */
  detach(host: NetworkHost): void {
    const key = formatEndpoint(host.endpoint);
    if (this.#hosts.get(key) === host) this.#hosts.delete(key);
  }

  /** A packet from a host's socket. */
  route(host: NetworkHost, datagram: Uint8Array, to: Endpoint): void {
    this.sent++;
    const neighbour = this.#hosts.get(formatEndpoint(to));
    if (neighbour && neighbour.nat === host.nat && host.nat.kind !== "none") {
      const from = host.endpoint;
      this.clock.after(1, () => neighbour.arrive(datagram, from));
      return;
    }
    const outside = host.nat.translateOut(host.endpoint, to);
    if (!outside) return this.onDrop(datagram, "blocked");
    if (this.cut.has(`${outside.address}>${to.address}`)) return this.onDrop(datagram, "cut");
    if (this.random() < this.loss) return this.onDrop(datagram, "lost");
    this.#later(() => this.#deliver(datagram, outside, to));
    if (this.repetition > 0 && this.random() < this.repetition)
      this.#later(() => this.#deliver(datagram.slice(), outside, to));
  }

  #deliver(datagram: Uint8Array, from: Endpoint, to: Endpoint): void {
    if (STUN_SERVERS.some((server) => server.address === to.address && server.port === to.port)) {
      const request = parseStun(datagram);
      if (request?.class !== "request" || this.random() < this.loss) return;
      const { transactionId } = request;
      const answer = encodeStun({ class: "success", transactionId, xorMappedAddress: from });
      return this.#later(() => this.#deliver(answer, to, from));
    }
    const nat = this.#nats.find(({ kind, address }) => kind !== "none" && address === to.address);
    const inside = nat ? nat.translateIn(from, to) : to;
    const host = inside && this.#hosts.get(formatEndpoint(inside));
    // Addresses behind a NAT are not routed on the internet.
    if (host && (nat ? host.nat === nat : host.nat.kind === "none")) host.arrive(datagram, from);
    else this.onDrop(datagram, "filtered");
  }

  #later(run: () => void): void {
    this.clock.after(this.delay + (this.jitter > 0 ? Math.round(this.jitter * this.random()) : 0), run);
  }
}
