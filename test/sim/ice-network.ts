import { type Endpoint, formatEndpoint, parseEndpoint, parseIp } from "#base/ip.ts";
import { ManualClock, type Millis } from "#base/time.ts";
import { type Candidate, formatCandidate, parseCandidate } from "#ice/candidate.ts";
import { StunDispatcher } from "#ice/dispatcher.ts";
import { createIceCredentials, gatherHostCandidates, serverReflexiveCandidate } from "#ice/gather.ts";
import { IceAgent, type IceAgentEvents, type IceCredentials } from "#ice/ice-agent.ts";
import { MappedAddressCache } from "#ice/stun-client.ts";
import { encodeStun, parseStun } from "#ice/stun-message.ts";

/*
 * A small internet in memory for the ICE tests: hosts, a NAT in front of each, STUN servers, one delay for every way, loss
 * by a seeded generator. Time moves only by the ManualClock.
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
}

/** The NAT of one site. Mappings live for ever unless `rebind` forgets them. */
export class Nat {
  readonly kind: NatKind;
  readonly address: string;
  #mappings: Mapping[] = [];
  #nextPort: number;
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
    let mapping = this.#mappings.find(
      ({ inside, sentTo }) =>
        formatEndpoint(inside) === formatEndpoint(from) &&
        (this.kind !== "symmetric" || sentTo.has(formatEndpoint(to))),
    );
    if (!mapping) {
      const outside = { address: parseIp(this.address), port: this.#nextPort++ };
      mapping = { inside: from, outside, sentTo: new Set() };
      this.#mappings.push(mapping);
    }
    mapping.sentTo.add(formatEndpoint(to));
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
}

export interface NetworkOptions {
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

export class Network {
  readonly clock = new ManualClock();
  readonly random: () => number;
  readonly delay: Millis;
  loss: number;
  sent = 0;
  /** Links that are cut: `from site address>to site address`. */
  readonly cut = new Set<string>();
  readonly #hosts = new Map<string, SimHost>();
  readonly #nats: Nat[] = [];

  constructor(options: NetworkOptions = {}) {
    this.random = createRandom(options.seed ?? 1);
    this.delay = options.delay ?? 20;
    this.loss = options.loss ?? 0;
  }

  randomBytes(count: number): Uint8Array {
    return Uint8Array.from({ length: count }, () => Math.floor(this.random() * 256));
  }

  attach(host: SimHost): void {
    this.#hosts.set(formatEndpoint(host.endpoint), host);
    if (!this.#nats.includes(host.nat)) this.#nats.push(host.nat);
  }

  /** A packet from a host's socket. */
  route(host: SimHost, datagram: Uint8Array, to: Endpoint): void {
    this.sent++;
    const neighbour = this.#hosts.get(formatEndpoint(to));
    if (neighbour && neighbour.nat === host.nat && host.nat.kind !== "none") {
      return this.#later(1, () => neighbour.arrive(datagram, host.endpoint));
    }
    const outside = host.nat.translateOut(host.endpoint, to);
    if (!outside || this.cut.has(`${outside.address}>${to.address}`) || this.random() < this.loss) return;
    this.#later(this.delay, () => this.#deliver(datagram, outside, to));
  }

  #deliver(datagram: Uint8Array, from: Endpoint, to: Endpoint): void {
    if (STUN_SERVERS.some((server) => formatEndpoint(server) === formatEndpoint(to))) {
      const request = parseStun(datagram);
      if (request?.class !== "request" || this.random() < this.loss) return;
      const { transactionId } = request;
      const answer = encodeStun({ class: "success", transactionId, xorMappedAddress: from });
      return this.#later(this.delay, () => this.#deliver(answer, to, from));
    }
    const nat = this.#nats.find(({ kind, address }) => kind !== "none" && address === to.address);
    const inside = nat ? nat.translateIn(from, to) : to;
    const host = inside && this.#hosts.get(formatEndpoint(inside));
    // Addresses behind a NAT are not routed on the internet.
    if (host && (nat || host.nat.kind === "none")) host.arrive(datagram, from);
  }

  #later(delay: Millis, run: () => void): void {
    this.clock.after(delay, run);
  }

  /** Moves time in steps, so that promises settle in between. */
  async advance(by: Millis, step: Millis = 5): Promise<void> {
    for (let left = by; left > 0; left -= step) {
      this.clock.advance(Math.min(step, left));
      await Promise.resolve();
      await Promise.resolve();
    }
  }
}

/** One machine with the shared socket, its dispatcher and its mapped-address cache. */
export class SimHost {
  readonly network: Network;
  readonly nat: Nat;
  readonly endpoint: Endpoint;
  readonly cache: MappedAddressCache;
  readonly dispatcher: StunDispatcher;

  constructor(network: Network, address: string, nat: Nat) {
    this.network = network;
    this.nat = nat;
    this.endpoint = { address: parseIp(address), port: 51820 };
    const { clock } = network;
    const random = (bytes: number): Uint8Array => network.randomBytes(bytes);
    this.cache = new MappedAddressCache({ clock, random, send: (datagram, to) => this.send(datagram, to) });
    this.dispatcher = new StunDispatcher({ clock, cache: this.cache });
    network.attach(this);
  }

  send(datagram: Uint8Array, to: Endpoint): void {
    this.network.route(this, datagram, to);
  }

  arrive(datagram: Uint8Array, from: Endpoint): void {
    this.dispatcher.receive(datagram, from, this.endpoint);
  }
}

export type SignalMessage =
  | { readonly kind: "credentials"; readonly credentials: IceCredentials }
  | { readonly kind: "candidate"; readonly payload: string };

export interface SimPeerOptions {
  readonly role: "controlling" | "controlled";
  readonly stock?: boolean;
  /** Ids in candidates, as agents since 0.57 send them; default true. */
  readonly cids?: boolean;
}

/** An agent on a host, with the signalling a peer connection would do for it. */
export class SimPeer {
  readonly host: SimHost;
  readonly agent: IceAgent;
  readonly credentials: IceCredentials = createIceCredentials();
  readonly log: { readonly at: Millis; readonly event: keyof IceAgentEvents; readonly payload: unknown }[] = [];
  readonly #options: SimPeerOptions;
  selected: IceAgentEvents["selected"] | undefined;
  selectedAt: Millis | undefined;
  lostAt: Millis | undefined;
  failedAt: Millis | undefined;

  constructor(host: SimHost, options: SimPeerOptions) {
    this.host = host;
    this.#options = options;
    const { network } = host;
    this.agent = new IceAgent(
      {
        clock: network.clock,
        send: (datagram, to) => host.send(datagram, to),
        random: (bytes) => network.randomBytes(bytes),
      },
      {
        role: options.role,
        stock: options.stock ?? false,
        localUfrag: this.credentials.ufrag,
        localPwd: this.credentials.pwd,
      },
    );
    host.dispatcher.register(this.agent);
    this.agent.events.on("selected", (payload) => {
      this.selected = payload;
      this.selectedAt ??= network.clock.now();
      this.log.push({ at: network.clock.now(), event: "selected", payload });
    });
    this.agent.events.on("lost", (payload) => {
      this.lostAt ??= network.clock.now();
      this.log.push({ at: network.clock.now(), event: "lost", payload });
    });
    this.agent.events.on("failed", (payload) => {
      this.failedAt ??= network.clock.now();
      this.log.push({ at: network.clock.now(), event: "failed", payload });
    });
  }

  /** Sends credentials and every candidate as it is found. */
  start(signal: (message: SignalMessage) => void): void {
    signal({ kind: "credentials", credentials: this.credentials });
    const { ufrag } = this.credentials;
    const { address } = this.host.endpoint;
    const hosts = gatherHostCandidates({
      port: this.host.endpoint.port,
      ufrag,
      interfaces: {
        eth0: [{ address, netmask: "255.255.255.0", family: "IPv4", mac: "", internal: false, cidr: `${address}/24` }],
      },
    });
    const offer = (candidate: Candidate): void => {
      this.agent.addLocalCandidate(candidate);
      const { cid, ...bare } = candidate;
      signal({ kind: "candidate", payload: formatCandidate(this.#options.cids === false ? bare : candidate) });
    };
    hosts.forEach(offer);
    const seen = new Set<string>();
    for (const server of STUN_SERVERS) {
      void this.host.cache.query(server).then((mapped) => {
        if (!mapped || seen.has(formatEndpoint(mapped))) return;
        seen.add(formatEndpoint(mapped));
        const candidate = serverReflexiveCandidate(mapped, hosts, ufrag);
        if (candidate && this.agent.state !== "closed") offer(candidate);
      });
    }
  }

  hear(message: SignalMessage): void {
    if (message.kind === "credentials") this.agent.setRemoteCredentials(message.credentials);
    else {
      const candidate = parseCandidate(message.payload);
      if (candidate) this.agent.addRemoteCandidate(candidate);
    }
  }

  close(): void {
    this.agent.close();
    this.host.dispatcher.unregister(this.agent);
  }
}

export interface ConnectOptions {
  /** One way through the signal server. */
  readonly signalDelay?: Millis;
  /** `offer`: b starts when a's credentials arrive; `both`: both start now. */
  readonly start?: "offer" | "both";
}

/** Connects two peers by signalling with a delay; in order, as one sender's messages are. */
export function signalBetween(a: SimPeer, b: SimPeer, options: ConnectOptions = {}): void {
  const { clock } = a.host.network;
  const { signalDelay = 40, start = "offer" } = options;
  let started = start === "both";
  const toA = (message: SignalMessage): void => void clock.after(signalDelay, () => a.hear(message));
  const toB = (message: SignalMessage): void =>
    void clock.after(signalDelay, () => {
      b.hear(message);
      if (!started) {
        started = true;
        b.start(toA);
      }
    });
  a.start(toB);
  if (start === "both") b.start(toA);
}

/** Two sites with the given NATs and a peer on each, the first one controlling. */
export function createPairOfPeers(
  network: Network,
  kinds: readonly [NatKind, NatKind],
  options: { readonly stock?: boolean } = {},
): [SimPeer, SimPeer] {
  const [a, b] = kinds.map((kind, index) => {
    const outside = `203.0.113.${index + 1}`;
    return new SimHost(network, kind === "none" ? outside : `10.0.${index}.2`, new Nat(kind, outside));
  }) as [SimHost, SimHost];
  return [new SimPeer(a, { role: "controlling", ...options }), new SimPeer(b, { role: "controlled", ...options })];
}
