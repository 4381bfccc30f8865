import type { PeerConnection } from "#agent/peer/peer-connection.ts";
import type { PublicKey } from "#base/keys.ts";
import type { Millis } from "#base/time.ts";
import { isDirectPossible } from "./internet.ts";
import type { SimAgent, SimMachine } from "./sim-machine.ts";
import type { PacketRecord, SimWorld } from "./sim-world.ts";

/** Longest that two ends may differ about sleeping while signal works and no message of theirs is under way. */
const DISAGREEMENT_MAX: Millis = 2_000;
/** The same with messages under way, which lost segments hold up, and of ends that do not agree but announce. */
const DISAGREEMENT_MAX_SLOW: Millis = 6_000;
/** An end that is Connecting says so, and repeats what wakes the other one at least so often (peer-transitions.ts). */
const CONNECTING_MAX: Millis = 35_000;
/** What was sent before two ends slept may arrive so late. */
const LATE: Millis = 10_000;
/** What may happen to a packet without anybody being to blame. */
const EXCUSES: ReadonlySet<string> = new Set([
  "lost",
  "cut",
  "blocked",
  "filtered",
  "machine away",
  "not at the relay",
  "no relay connection",
  "the connection to the relay ended",
  "the relay connection ended",
  "too old at the relay client",
  "no room at the relay client",
  "no-network",
  "drop-staged-peer-full",
  "asked to sleep",
  "starting",
  "held up",
]);
/** A handshake is given up after 90 s, and packets with it. */
const GIVE_UP: Millis = 90_000;
/** A session lives this long; a receiver that restarted since does not know it. */
const SESSION: Millis = 200_000;
/** Timers of an agent at rest: the watch of the network, signal's silence, the home relay's ping. */
const TIMERS_AT_REST = 3;
/** A session is renewed after two minutes by the next keepalive. */
const FORMER_LIFE_MAX: Millis = 160_000;
const LAG_MAX: Millis = 10;
const PENDING_MAX = 3_000;
const VIOLATIONS_MAX = 20;

/** Holds a world against the promises of DESIGN.md and the issue, after every event. */
export class PairWatch {
  readonly violations: string[] = [];
  readonly #world: SimWorld;
  readonly #differSince = new Map<string, Millis>();
  /** When a signal message between the two was last under way. */
  readonly #flyingAt = new Map<string, Millis>();
  /** Since when both ends sleep. */
  readonly #restSince = new Map<string, Millis>();
  /** When a user last wanted the two to be awake. */
  readonly #wantedAt = new Map<string, Millis>();
  #disturbedAt: Millis = 0;
  /** When a pair could last not reach signal or relay, or one end was away. */
  readonly #apartAt = new Map<string, Millis>();
  readonly #startedAt = new Map<SimMachine, Millis[]>();
  readonly #awakeSince = new Map<PeerConnection, Millis>();
  readonly #idleSince = new Map<PeerConnection, Millis>();
  readonly #lives = new Map<SimMachine, number>();

  constructor(world: SimWorld) {
    this.#world = world;
  }

  /** Runs something that counts as a disturbance. */
  disturb(run: () => void): void {
    this.#disturbedAt = this.#world.now;
    run();
  }

  /** A GO_IDLE of an end that sleeps already got lost: the two may differ until their own clocks bring them together. */
  noteLostIdle(from: PublicKey, to: PublicKey): void {
    const [a, b] = this.#world.machines.filter(({ publicKey }) => publicKey === from || publicKey === to);
    if (a && b) this.#differSince.set(nameOf(a, b), Number.POSITIVE_INFINITY);
  }

  noteWanted(a: SimMachine, b: SimMachine): void {
    this.#wantedAt.set(nameOf(a, b), this.#world.now);
  }

  /** Who asks for sleep gives up what waits. */
  noteAskedToSleep(a: SimMachine, b: SimMachine): void {
    for (const record of this.#world.packets.values())
      if (record.deliveries === 0 && record.from === a && record.to === b) record.losses.push("asked to sleep");
  }

  /** A UDP datagram to somebody who is no STUN server. */
  noteSent(from: SimMachine): void {
    const { agent } = from;
    if (!agent) return;
    for (const peer of agent.engine.connections.peers) if (this.#mayBeHeard(agent, peer)) return;
    this.#violate(`${from.name} sent a datagram to a peer while all its peers are idle`);
  }

  noteRelayed(from: SimMachine, to: PublicKey): void {
    const peer = from.agent?.engine.connections.find(to);
    if (peer && !this.#mayBeHeard(from.agent!, peer))
      this.#violate(`${from.name} sent a relayed datagram to its idle peer ${peer.info.fqdn}`);
  }

  /** What the other thread sent in the instant before leaves in the instant after. */
  #mayBeHeard({ clock }: SimAgent, peer: PeerConnection): boolean {
    const now = clock.now();
    return peer.awake || now - (this.#idleSince.get(peer) ?? now) <= LAG_MAX;
  }

  check(): void {
    const { machines, time } = this.#world;
    for (const machine of machines) {
      if (this.#lives.get(machine) !== machine.lives) {
        this.#lives.set(machine, machine.lives);
        this.#startedAt.set(machine, [...(this.#startedAt.get(machine) ?? []), this.#world.now]);
      }
      this.#checkAgent(machine);
    }
    for (const a of machines) {
      for (const b of machines) {
        if (a.index >= b.index) continue;
        this.#checkAgreement(a, b);
        this.#checkCause(a, b);
      }
    }
    if (time.pending > PENDING_MAX) this.#violate(`${time.pending} events are pending`);
  }

  isDirectPossible(a: SimMachine, b: SimMachine): boolean {
    return !a.settings.forceRelay && !b.settings.forceRelay && isDirectPossible(a.nat.kind, b.nat.kind);
  }

  /** Packets sent since then went both ways, and both ends say so. */
  assertWorking(a: SimMachine, b: SimMachine, since: Millis): void {
    const status = `${a.peer(b).status} ${a.peer(b).path.kind} / ${b.peer(a).status} ${b.peer(a).path.kind}`;
    if (a.peer(b).status !== "connected" || b.peer(a).status !== "connected")
      this.#violate(`${a.name} and ${b.name} are not connected: ${status}`);
    for (const record of this.#world.packets.values()) {
      if (record.sentAt < since || record.deliveries > 0) continue;
      if ((record.from === a && record.to === b) || (record.from === b && record.to === a))
        this.#violate(`${describe(record)} did not arrive, though all is quiet: ${status}`);
    }
  }

  /** After a minute of silence, or after twenty if everybody slept by then. */
  assertAtRest(isLong: boolean): void {
    for (const machine of this.#world.machines) {
      const { engine, clock, iceSessions, plane, signal } = machine.agent!;
      const peers = [...engine.connections.peers];
      for (const peer of peers) {
        // A peer that came back after GO_IDLE is left alone for longer, and a permanent one stays.
        if (peer.awake && engine.connections.decisionOf(peer.key).lazy && !this.#isKept(machine, peer.key))
          this.#violate(`${machine.name} is still awake to ${peer.info.fqdn}`);
      }
      if (!isLong) continue;
      const foreign = machine.agent!.relay.connections - 1;
      if (clock.pending > TIMERS_AT_REST + 2 * foreign)
        this.#violate(`${machine.name} is idle and has ${clock.pending} timers`);
      for (const count of iceSessions.values()) if (count > 0) this.#violate(`${machine.name} is idle with ICE open`);
      if (plane.sessions > 0) this.#violate(`${machine.name} keeps ${plane.sessions} sessions after 20 minutes`);
      if (plane.stagedPackets > 0) this.#violate(`${machine.name} is idle with ${plane.stagedPackets} packets staged`);
      if (signal.queuedBytes > 0) this.#violate(`${machine.name} is idle with signal messages waiting`);
    }
  }

  /** What became of the packets. */
  finish(): void {
    for (const record of this.#world.packets.values()) {
      if (record.deliveries > 1) this.#violate(`${describe(record)} was delivered ${record.deliveries} times`);
      if (record.deliveries === 0 && !this.#isExcused(record))
        this.#violate(`${describe(record)} was lost: ${record.losses.join(", ") || "it is nowhere"}`);
    }
  }

  #checkAgent(machine: SimMachine): void {
    const { agent } = machine;
    if (!agent) return;
    for (const peer of agent.engine.connections.peers) {
      // The machine's own time: what was under way when it was suspended leaves after that.
      if (peer.awake) this.#idleSince.delete(peer);
      else if (!this.#idleSince.has(peer)) this.#idleSince.set(peer, agent.clock.now());
      if (!peer.awake) this.#awakeSince.delete(peer);
      else if (!this.#awakeSince.has(peer)) this.#awakeSince.set(peer, this.#world.now);
    }
    for (const [key, count] of agent.iceSessions) {
      if (count > 1) this.#violate(`${machine.name} has ${count} ICE agents for ${key.slice(0, 6)}`);
    }
    if (agent.signal.queuedBytes > 128 * 1024)
      this.#violate(`${machine.name} queues ${agent.signal.queuedBytes} bytes`);
  }

  #checkAgreement(a: SimMachine, b: SimMachine): void {
    const { now, signal } = this.#world;
    const name = nameOf(a, b);
    if (!this.#reachesServers(a) || !this.#reachesServers(b)) this.#apartAt.set(name, now);
    if (!a.agent || !b.agent || a.peer(b).awake === b.peer(a).awake) {
      this.#differSince.delete(name);
      return;
    }
    const since = this.#differSince.get(name) ?? now;
    this.#differSince.set(name, since);
    if (signal.isFlying(a.publicKey, b.publicKey)) this.#flyingAt.set(name, now);
    const counted = now - Math.max(since, this.#apartAt.get(name) ?? 0);
    const silent = now - (this.#flyingAt.get(name) ?? 0);
    if (counted <= CONNECTING_MAX && (a.peer(b).status === "connecting" || b.peer(a).status === "connecting")) return;
    const agrees = [a, b].every(({ settings: { dialect = "perch" } }) => dialect === "perch");
    if (counted <= DISAGREEMENT_MAX_SLOW && (!agrees || Math.min(counted, silent) <= DISAGREEMENT_MAX)) return;
    // An agent that died and came back is asleep to one that is awake to its former life, until that one says something.
    const former = this.#knowsFormerLife(a, b) || this.#knowsFormerLife(b, a);
    if (former && counted <= FORMER_LIFE_MAX) return;
    this.#differSince.set(name, Number.POSITIVE_INFINITY);
    const story = `${a.peer(b).status} (${a.peer(b).reason}) / ${b.peer(a).status} (${b.peer(a).reason})`;
    this.#violate(`${name} differ about sleep for ${Math.round(counted)} ms: ${story}`);
  }

  /** Two that both sleep stay asleep until there is a packet, or a user or a setting wants them awake. */
  #checkCause(a: SimMachine, b: SimMachine): void {
    const { now, packets, signal } = this.#world;
    const name = nameOf(a, b);
    const [x, y] = [a.agent && a.peer(b), b.agent && b.peer(a)];
    if (!x?.awake && !y?.awake) {
      // A message of theirs that is held up may still wake them.
      if (signal.isFlying(a.publicKey, b.publicKey)) this.#restSince.set(name, Number.POSITIVE_INFINITY);
      else if (!(this.#restSince.get(name)! < now)) this.#restSince.set(name, now);
      return;
    }
    const since = this.#restSince.get(name) ?? now;
    this.#restSince.delete(name);
    // So may a relayed handshake.
    if (now - Math.max(since, this.#disturbedAt) <= LATE || (this.#wantedAt.get(name) ?? -1) >= since) return;
    const isPermanent = ([at, of]: readonly [SimMachine, SimMachine]): boolean =>
      at.agent !== undefined && !at.agent.engine.connections.decisionOf(of.publicKey).lazy;
    if (isPermanent([a, b]) || isPermanent([b, a])) return;
    for (const { from, to, sentAt } of packets.values())
      if (sentAt >= since && ((from === a && to === b) || (from === b && to === a))) return;
    const [at, peer] = x?.awake ? [a, x] : [b, y!];
    this.#violate(`${at.name} woke ${peer.info.fqdn} without cause: ${peer.reason}`);
  }

  /** By connections that are alive. */
  #reachesServers({ agent, online, suspended }: SimMachine): boolean {
    return agent !== undefined && online && !suspended && agent.signal.live && agent.relay.live;
  }

  #knowsFormerLife(awake: SimMachine, other: SimMachine): boolean {
    const awakeSince = this.#awakeSince.get(awake.peer(other));
    const started = this.#startedAt.get(other) ?? [];
    return awakeSince !== undefined && started.length > 1 && started.at(-1)! >= awakeSince;
  }

  /** Somebody wants this pair awake: a permanent end, or one that came back after a GO_IDLE. */
  #isKept(machine: SimMachine, key: PublicKey): boolean {
    const other = this.#world.machines.find(({ publicKey }) => publicKey === key)!;
    if (!other.agent!.engine.connections.decisionOf(machine.publicKey).lazy) return true;
    const kept = (at: SimMachine, of: SimMachine): boolean =>
      at.peer(of).timeline.some(({ event }) => event === "kept-alive");
    return kept(machine, other) || kept(other, machine);
  }

  #isExcused(record: PacketRecord): boolean {
    const { from, to, losses, sentAt } = record;
    if (losses.some((why) => EXCUSES.has(why) || why.endsWith(" died"))) return true;
    const restarted = (machine: SimMachine): boolean =>
      (this.#startedAt.get(machine) ?? []).slice(1).some((at) => at > sentAt - SESSION && at < sentAt + GIVE_UP);
    if (losses.includes("drop-unknown-index") && (restarted(to) || restarted(from))) return true;
    return losses.includes("drop-staged-given-up") && this.#world.now - sentAt > GIVE_UP;
  }

  #violate(text: string): void {
    if (this.violations.length >= VIOLATIONS_MAX) return;
    const line = `${Math.round(this.#world.now)} ms: ${text}`;
    this.violations.push(line);
    this.#world.trace?.(`VIOLATION ${line}`);
  }
}

function describe({ id, from, to, sentAt }: PacketRecord): string {
  return `packet ${id} of ${from.name} to ${to.name} at ${Math.round(sentAt)} ms`;
}

/** Of a pair, whichever comes first. */
function nameOf(a: SimMachine, b: SimMachine): string {
  return a.index < b.index ? `${a.name} and ${b.name}` : `${b.name} and ${a.name}`;
}
