import { type Endpoint, formatEndpoint, parseIp } from "#base/ip.ts";
import { ManualClock, type Millis } from "#base/time.ts";
import { type Candidate, formatCandidate, parseCandidate } from "#ice/candidate.ts";
import { StunDispatcher } from "#ice/dispatcher.ts";
import { createIceCredentials, gatherHostCandidates, serverReflexiveCandidate } from "#ice/gather.ts";
import { IceAgent, type IceAgentEvents, type IceCredentials } from "#ice/ice-agent.ts";
import { MappedAddressCache } from "#ice/stun-client.ts";
import { Internet, type InternetOptions, Nat, type NatKind, STUN_SERVERS } from "./internet.ts";

/* ICE agents alone on the virtual internet. Time moves only by the ManualClock. */

export class Network extends Internet<ManualClock> {
  constructor(options: InternetOptions = {}) {
    super(new ManualClock(), options);
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
