import { networkInterfaces } from "node:os";
import type { Endpoint, IpAddress, Prefix } from "#base/ip.ts";
import { prefixContains } from "#base/ip.ts";
import type { PublicKey } from "#base/keys.ts";
import type { Logger } from "#base/log.ts";
import type { Clock, Millis } from "#base/time.ts";
import type { Candidate } from "#ice/candidate.ts";
import { StunDispatcher } from "#ice/dispatcher.ts";
import { gatherHostCandidates, serverReflexiveCandidate } from "#ice/gather.ts";
import { IceAgent } from "#ice/ice-agent.ts";
import {
  MAPPING_COMPARE_WINDOW,
  type MappingBehaviour,
  type MappingObservation,
  MappingObserver,
} from "#ice/mapping.ts";
import { MappedAddressCache, type StunServerReport } from "#ice/stun-client.ts";
import { createCredentials, type NatReport, SessionId } from "#signal/protocol/offer.ts";
import type { WireGuardDevice } from "#wireguard/device.ts";
import { type DirectAttempt, DirectAttempts, outcomeOf } from "./direct-attempts.ts";
import type { IceSession, IceSessionHandlers } from "./peer-connection.ts";
import type { LocalSession } from "./peer-state.ts";
import { networkOf, type SearchHold, SearchMemory } from "./search-memory.ts";

export interface DirectPathsDeps {
  readonly clock: Clock;
  readonly log: Logger;
  readonly device: Pick<WireGuardDevice, "events" | "sendDatagram" | "listenPort" | "interfaceName">;
  /** The machine's interfaces; default os.networkInterfaces. */
  readonly interfaces?: typeof networkInterfaces;
}

export interface DirectPathsOptions {
  /** False: never leave the relay. */
  readonly allowed: boolean;
  /** Ranges of the overlay: neither offered, nor checked, nor heard. */
  readonly overlay: readonly Prefix[];
  /** What failed here may work now, for the reason given: UDP passes again, or the world sees another address of ours. */
  readonly improved?: (reason: string) => void;
}

/** A suspicion is decided by then. */
const SUSPICION: Millis = 2_000;
/** Between two looks at our mapped addresses on behalf of probes, those of all peers together. */
const PROBE_STUN_GAP: Millis = 2000;
/** A server that was silent is sent a single request then. */
const PROBE_SCHEDULE: readonly Millis[] = [0];

/** What is known of UDP between this machine and the world; for diagnosis. */
export interface NatView extends NatReport {
  readonly mapping6: MappingBehaviour;
  readonly servers: readonly StunServerReport[];
  readonly observations: readonly MappingObservation[];
  /** Local addresses that are offered to peers, with the port of the socket. */
  readonly addresses: readonly Endpoint[];
}

interface OpenSession {
  readonly ufrag: string;
  hosts: readonly Candidate[];
  add(candidate: Candidate): void;
}

interface OpenAttempt {
  readonly agent: IceAgent;
  readonly at: number;
  readonly candidates: Candidate[];
}

/**
 * The direct side of all peers: one STUN dispatcher and one cache of mapped addresses on the device's socket, one ICE agent
 * per awake peer. Nothing here costs anything for a peer that sleeps.
 */
export class DirectPaths {
  readonly allowed: boolean;
  readonly #deps: DirectPathsDeps;
  readonly #overlay: readonly Prefix[];
  readonly #cache: MappedAddressCache;
  readonly #mapping: MappingObserver;
  readonly #dispatcher: StunDispatcher;
  readonly #unsubscribe: () => void;
  #servers: readonly Endpoint[] = [];
  /** A path died or was not found: the NAT may map us differently now, whatever the cache says. */
  #doubtMapping = false;
  /** The open ICE agent of each awake peer, and what became of the one before. */
  readonly #open = new Map<PublicKey, OpenAttempt>();
  readonly #attempts = new DirectAttempts();
  readonly #sessions = new Set<OpenSession>();
  readonly #memory: SearchMemory;
  readonly #improved: (reason: string) => void;
  /** What was read of `interfaces` last, and the addresses in it that peers could use. */
  #seen: { readonly interfaces: unknown; readonly addresses: ReadonlySet<IpAddress> } | undefined;
  /** No STUN server answered when they were asked last. */
  #wasSilent = false;
  #probedAt: Millis = Number.NEGATIVE_INFINITY;

  constructor(deps: DirectPathsDeps, options: DirectPathsOptions) {
    this.#deps = deps;
    this.allowed = options.allowed;
    this.#overlay = options.overlay;
    const send = (datagram: Uint8Array, to: Endpoint, from?: Endpoint): void =>
      deps.device.sendDatagram(datagram, to, from);
    this.#cache = new MappedAddressCache({ clock: deps.clock, send });
    this.#memory = new SearchMemory(deps);
    this.#improved = options.improved ?? (() => {});
    this.#mapping = new MappingObserver({
      clock: deps.clock,
      isOwn: ({ address, port }) => port === deps.device.listenPort && this.#addresses().has(address),
    });
    this.#cache.events.on("answered", ({ server, mapped }) => {
      this.#mapping.note(server, mapped, "server");
      if (this.#wasSilent) this.#improve("UDP gets through again");
    });
    this.#cache.events.on("silent", () => {
      this.#wasSilent = this.#udp() === "silent";
    });
    this.#cache.events.on("changed", ({ mapped, previous }) => {
      // Another port alone is what many NATs give after a pause.
      if (previous && previous.address !== mapped.address) this.#improve(`the world sees us at ${mapped.address}`);
    });
    this.#dispatcher = new StunDispatcher({ clock: deps.clock, cache: this.#cache });
    this.#unsubscribe = deps.device.events.on("stun", ({ datagram, from, to }) => {
      if (!this.#isOverlay(from.address)) this.#dispatcher.receive(datagram, from, to);
    });
  }

  /** STUN servers by address; asked once now, so that the first wake has a reflexive candidate at hand. */
  setServers(servers: readonly Endpoint[]): void {
    this.#servers = servers;
    if (this.allowed) for (const server of servers) void this.#cache.query(server);
  }

  get servers(): readonly Endpoint[] {
    return this.#servers;
  }

  /** What a STUN server saw of us last; undefined when it never answered. */
  mappedBy(server: Endpoint): Endpoint | undefined {
    return this.#cache.lastKnown(server);
  }

  /** Wall clock ms of a STUN server's last answer; undefined when it never answered. */
  answeredAt(server: Endpoint): number | undefined {
    const { clock } = this.#deps;
    const { answeredAt } = this.#cache.report(server);
    return answeredAt === undefined ? undefined : Math.round(clock.wall() - (clock.now() - answeredAt));
  }

  /** What the last answers say of the NAT; told to Perch agents with every OFFER and ANSWER. Asks nobody. */
  get nat(): NatReport {
    return { mapping: this.#mapping.behaviour(4), udp: this.#udp() };
  }

  /** The same with what it rests on. */
  view(): NatView {
    return {
      ...this.nat,
      mapping6: this.#mapping.behaviour(6),
      servers: this.#servers.map((server) => this.#cache.report(server)),
      observations: this.#mapping.observations(),
      addresses: this.#hosts("").map(({ endpoint }) => endpoint),
    };
  }

  /** Asks every STUN server anew; resolves when each has answered or is given up (QUERY_TIMEOUT). */
  async askServers(): Promise<void> {
    await Promise.all(this.#servers.map((server) => this.#cache.refresh(server)));
  }

  /** The search for a direct way to a peer that is under way, else the last one; undefined when there was none lately. */
  attemptOf(peer: PublicKey): DirectAttempt | undefined {
    const open = this.#open.get(peer);
    const attempt = open && describeAttempt(open);
    // One that was put off says nothing; the last that was made does.
    if (attempt?.pairs.every(({ sent, received }) => sent + received === 0))
      return this.#attempts.find(peer) ?? attempt;
    return attempt && attempt.pairs.length > 0 ? attempt : (this.#attempts.find(peer) ?? attempt);
  }

  /** The machine is on another network: mapped addresses are asked again. */
  networkChanged(): void {
    this.#cache.forget();
    this.#mapping.forget();
    this.setServers(this.#servers);
  }

  /**
   * The machine has addresses more than before, and none that was in use less: they are offered to every remote that is
   * searched for or found, and what failed may work with them. Paths in use stay.
   */
  addressesAdded(): void {
    for (const session of this.#sessions) {
      session.hosts = this.#hosts(session.ufrag);
      for (const host of session.hosts) session.add(host);
    }
    if (this.allowed) for (const server of this.#servers) void this.#cache.refresh(server);
    this.#improve("this machine has another address");
  }

  /** Searches for a way to the peer in that network (`remoteNetwork`) failed so often that the next one is put off. */
  holdOf(peer: PublicKey, network: string): SearchHold | undefined {
    return this.#memory.holdOf(peer, this.#network(), network);
  }

  freshSession(): LocalSession {
    return { id: SessionId.create(), credentials: createCredentials() };
  }

  /** Opens an ICE agent that answers checks at once; candidates known already are handed over before this returns. */
  open(peer: PublicKey, controlling: boolean, local: LocalSession, handlers: IceSessionHandlers): IceSession {
    const { clock, log, device } = this.#deps;
    const { ufrag, password: pwd } = local.credentials;
    const agent = new IceAgent(
      { clock, log, send: (datagram, to, from) => device.sendDatagram(datagram, to, from) },
      {
        role: controlling ? "controlling" : "controlled",
        localUfrag: ufrag,
        localPwd: pwd,
        isForbidden: (address) => this.#isOverlay(address),
      },
    );
    /** Where the remote is; known with its half. */
    let network = "";
    let suspectedAt: Millis = Number.NEGATIVE_INFINITY;
    agent.events.on("selected", ({ local: mine, remote, endpoint, rtt }) => {
      this.#memory.noteFound(peer, this.#network(), network);
      handlers.selected({
        kind: "ice",
        endpoint,
        localKind: mine.type,
        remoteKind: remote.type,
        local: mine.endpoint,
        rtt,
      });
    });
    agent.events.on("lost", ({ reason }) => {
      this.#doubtMapping = true;
      handlers.lost(reason, false);
    });
    agent.events.on("failed", ({ reason }) => {
      this.#doubtMapping = true;
      this.#memory.noteFailed(peer, this.#network(), network);
      handlers.lost(reason, true);
    });
    agent.events.on("mapped", ({ remote, mapped }) => this.#mapping.note(remote, mapped, "peer"));
    const attempt: OpenAttempt = { agent, at: clock.wall(), candidates: [] };
    this.#open.set(peer, attempt);
    const told = new Set<string>();
    const add = (candidate: Candidate): void => {
      const { address, port } = candidate.endpoint;
      if (told.has(`${address} ${port}`)) return;
      told.add(`${address} ${port}`);
      attempt.candidates.push(candidate);
      agent.addLocalCandidate(candidate);
      handlers.candidate(candidate);
    };
    const session: OpenSession = { add, hosts: this.#hosts(ufrag), ufrag };
    this.#sessions.add(session);
    for (const host of session.hosts) add(host);
    this.#addReflexive(session);
    this.#dispatcher.register(agent);
    log.trace("ice agent opened", { peer: peer.slice(0, 8), candidates: told.size });
    return {
      check: ({ ufrag, password }, stock, where, quiet) => {
        network = where;
        agent.setRemoteCredentials({ ufrag, pwd: password }, stock, quiet);
      },
      addRemoteCandidate: (candidate) => agent.addRemoteCandidate(candidate),
      suspect: (heardFrom) => {
        suspectedAt = clock.now();
        agent.suspect(heardFrom);
      },
      probe: (heardFrom) => {
        agent.probe(heardFrom);
        this.#probeMapping(session);
      },
      close: () => {
        // The remote was sooner with its judgement, and begins anew: what it is told of us must not be the mapping that was lost.
        if (clock.now() - suspectedAt < SUSPICION) this.#doubtMapping = true;
        this.#sessions.delete(session);
        this.#dispatcher.unregister(agent);
        this.#endAttempt(peer, attempt);
        agent.close();
      },
    };
  }

  close(): void {
    this.#unsubscribe();
    this.#cache.close();
    this.#sessions.clear();
    this.#open.clear();
    this.#attempts.clear();
    this.#memory.clear();
  }

  #improve(reason: string): void {
    this.#wasSilent = false;
    this.#improved(reason);
  }

  /** Along with a probe: does UDP get through, and is our mapping the one that the remote knows? */
  #probeMapping(session: OpenSession): void {
    const now = this.#deps.clock.now();
    if (now - this.#probedAt < PROBE_STUN_GAP) return;
    this.#probedAt = now;
    this.#offerReflexive(session, (server) => {
      const isSilent = this.#cache.report(server).silentAt !== undefined;
      return isSilent ? this.#cache.refresh(server, PROBE_SCHEDULE) : this.#cache.query(server);
    });
  }

  /** What tells the network we are in from others, for the memory of searches; made of what is known already. */
  #network(): string {
    const addresses = [...this.#addresses()];
    for (const server of this.#servers) {
      const mapped = this.#cache.lastKnown(server);
      if (mapped) addresses.push(mapped.address);
    }
    return [...new Set(addresses.map(networkOf))].sort().concat(this.#udp()).join();
  }

  /** The last known mapping is offered at once, even an old one: it is mostly still right. A fresh answer corrects it. */
  #addReflexive(session: OpenSession): void {
    const doubtful = this.#doubtMapping;
    this.#doubtMapping = false;
    this.#offerReflexive(session, (server) => (doubtful ? this.#cache.refresh(server) : this.#cache.query(server)));
  }

  #offerReflexive(session: OpenSession, ask: (server: Endpoint) => Promise<Endpoint | undefined>): void {
    for (const server of this.#servers) {
      const offer = (mapped: Endpoint | undefined): void => {
        const candidate = mapped && serverReflexiveCandidate(mapped, session.hosts, session.ufrag);
        if (candidate && this.#sessions.has(session)) session.add(candidate);
      };
      offer(this.#cache.lastKnown(server));
      void ask(server).then(offer);
    }
  }

  #endAttempt(peer: PublicKey, attempt: OpenAttempt): void {
    if (this.#open.get(peer) === attempt) this.#open.delete(peer);
    const { outcome, ...rest } = describeAttempt(attempt);
    if (rest.pairs.length > 0)
      this.#attempts.keep(peer, { ...rest, outcome: outcome === "searching" ? "stopped" : outcome });
  }

  /** A server that is silent says nothing while another one, or a peer, answers. */
  #udp(): NatReport["udp"] {
    const reports = this.#servers.map((server) => this.#cache.report(server));
    if (reports.some(({ answeredAt, silentAt }) => answeredAt !== undefined && silentAt === undefined)) return "works";
    const recent = this.#deps.clock.now() - MAPPING_COMPARE_WINDOW;
    if (this.#mapping.observations().some(({ by, at }) => by === "peer" && at >= recent)) return "works";
    return reports.some(({ silentAt }) => silentAt !== undefined) ? "silent" : "unknown";
  }

  /** Asked with every answer to a check: candidates are made of the same interfaces only once. */
  #addresses(): ReadonlySet<IpAddress> {
    const interfaces = this.#interfaces();
    if (this.#seen?.interfaces !== interfaces) {
      const addresses = new Set(this.#hosts("").map(({ endpoint }) => endpoint.address));
      this.#seen = { interfaces, addresses };
    }
    return this.#seen.addresses;
  }

  #hosts(ufrag: string): Candidate[] {
    const { device } = this.#deps;
    return gatherHostCandidates({
      port: device.listenPort,
      ufrag,
      ownInterfaces: [device.interfaceName],
      overlay: this.#overlay,
      interfaces: this.#interfaces(),
    });
  }

  #interfaces(): ReturnType<typeof networkInterfaces> {
    return (this.#deps.interfaces ?? networkInterfaces)();
  }

  #isOverlay(address: IpAddress): boolean {
    return this.#overlay.some((prefix) => prefixContains(prefix, address));
  }
}

function describeAttempt({ agent, at, candidates }: OpenAttempt): DirectAttempt {
  return { at, outcome: outcomeOf(agent.state), candidates: [...candidates], pairs: agent.pairs() };
}
