import type { Millis } from "#base/time.ts";
import type { PacketSummary } from "#wireguard/device.ts";

/** So many sleeping peers wake at once for packets of one pattern within SWEEP_WINDOW; one more makes it a sweep. */
export const SWEEP_BURST = 3;
export const SWEEP_WINDOW: Millis = 10_000;
/** A sweep that touched nobody for this long is over. */
export const SWEEP_QUIET: Millis = 15_000;
/**
 * While a sweep goes on, packets that look different wake so many peers more: probes during any sweep, connections (TCP of an
 * operating system) only during one of connections, which asks several ports of each.
 */
const OTHERS_MEANWHILE = { connection: 2, probe: 1 } as const;
/** Every so often another connection is let through while such a sweep goes on. */
const OTHERS_REFILL: Millis = 10_000;

/** The same flow again this long after its first packet: a lost SYN is repeated after 1 s, a request after 1 s or more. */
export const FLOW_PATIENCE: Millis = 700;
/** The same for echo requests, crafted packets and a socket that reaches for many: scanners repeat a probe for 2 to 3 s. */
export const PROBE_PATIENCE: Millis = 4_000;
/** Touched again after a pause of PROBE_PATIENCE, so many times: somebody who looks again and again, as a monitor does. */
export const ROUNDS_WANTED = 5;
/** A held peer that nobody touched for this long is new again. */
const HELD_MEMORY: Millis = 10 * 60_000;
/** Peers remembered as held back; what waits for them takes a quarter of the staging memory at most. */
export const HELD_MAX = 4_096;
/** A peer whose wake is held back keeps what waited for it for this long after the last packet. */
export const HOLD_PATIENCE: Millis = 10_000;
const FLOWS_OF_HELD = 8;
const PATTERNS_MAX = 256;
const SOURCES_MAX = 64;
/** Packets of a held peer that are looked at in LOOK_INTERVAL; a flood has to wait for the next. */
const LOOKS = 4;
const LOOK_INTERVAL: Millis = 100;

const PROTOCOL_ICMP = 1;
const PROTOCOL_TCP = 6;
const PROTOCOL_UDP = 17;
const PROTOCOL_ICMP6 = 58;
/** IPv4 and TCP headers with 8 bytes of options: operating systems send more in a SYN, scanners that craft packets less. */
const CONNECTION_MIN_BYTES = 48;
const IPV6_EXTRA_BYTES = 20;

export type SweepVerdict =
  | {
      readonly kind: "wake";
      /** It was held back, and asked again. */
      readonly repeated: boolean;
    }
  | {
      readonly kind: "hold";
      readonly sweep: Sweep;
      /** From when on the peer's packets are worth looking at again. */
      readonly lookAt: Millis;
      /** False: there is no room to remember the peer, what waits is lost. */
      readonly remembered: boolean;
    };

export interface Sweep {
  /** Sleeping peers that it touched. */
  readonly peers: number;
}

interface OpenSweep extends Sweep {
  peers: number;
  lastAt: Millis;
}

/** Packets that one program may have sent for one purpose. */
interface Pattern<Key> {
  /** Whom they woke lately. */
  readonly woken: Map<Key, Millis>;
  sweep: OpenSweep | undefined;
}

type Kind = keyof typeof OTHERS_MEANWHILE;

/** A machine whose packets come to us: ourselves, or one that we route for. */
interface Source {
  /** The latest sweep of each kind. */
  readonly sweeps: { readonly [kind in Kind]?: OpenSweep };
  readonly left: { connection: number; probe: number };
  refilledAt: Millis;
}

interface Held {
  sweep: OpenSweep;
  /** First packet of the latest flows. */
  readonly flows: Map<string, Millis>;
  rounds: number;
  lastAt: Millis;
  looksSince: Millis;
  looks: number;
}

/**
 * Tells a sweep over sleeping peers from somebody who wants to talk to them. Asked for each reported packet towards a
 * sleeping peer; pure, the caller passes the time.
 *
 *   first packet ---- pattern woke fewer than SWEEP_BURST peers lately, no sweep goes on ----------> wake
 *        |            a sweep goes on, the packet looks different, and others are left -------------> wake
 *        '----------- else ---> held ---- the same flow again, FLOW_PATIENCE or PROBE_PATIENCE on --> wake
 *                                |   '--- in the fifth of several rounds ---------------------------> wake
 *                                '------- nothing more: what waits is dropped by the caller
 *
 * A pattern is a socket that reaches for many (protocol and source port, or identifier of an echo request), or many sockets
 * that want the same of each (protocol, destination port, size). The first is surer: its packets do not count for the second.
 * Nothing is refused for ever: what separates a scanner from two thousand connections of a busy host is that these go on.
 */
export class SweepGuard<Key> {
  readonly #patterns = new Map<string, Pattern<Key>>();
  readonly #sources = new Map<string, Source>();
  /** Least recently touched first. */
  readonly #held = new Map<Key, Held>();

  /** What shall happen to the wake that this packet asks for. */
  judge(key: Key, packet: PacketSummary, now: Millis): SweepVerdict {
    const held = this.#recall(key, now);
    const names = patternNames(packet);
    if (held && this.#isWanted(held, packet, names, now)) return this.#admit(key, true);
    const sweep = this.#findSweep(key, packet, names, now);
    if (!sweep) return this.#admit(key, false);
    if (held?.sweep !== sweep) sweep.peers++;
    sweep.lastAt = now;
    return this.#hold(key, held, packet, sweep, now);
  }

  /** The sweep that holds the peer back; undefined when it does not. */
  sweepOf(key: Key): Sweep | undefined {
    return this.#held.get(key)?.sweep;
  }

  /** The peer woke by other means, or left. */
  forget(key: Key): void {
    this.#held.delete(key);
  }

  #admit(key: Key, repeated: boolean): SweepVerdict {
    this.#held.delete(key);
    return { kind: "wake", repeated };
  }

  #recall(key: Key, now: Millis): Held | undefined {
    const held = this.#held.get(key);
    if (!held || now - held.lastAt <= HELD_MEMORY) return held;
    this.#held.delete(key);
    return undefined;
  }

  #isWanted(held: Held, packet: PacketSummary, names: PatternNames, now: Millis): boolean {
    if (now - held.lastAt >= PROBE_PATIENCE) held.rounds++;
    if (held.rounds >= ROUNDS_WANTED) return true;
    // What waited is dropped by now: a scan from the same port is another one, and a round.
    if (now - held.lastAt > HOLD_PATIENCE) held.flows.clear();
    const since = held.flows.get(flowOf(packet));
    if (since === undefined) return false;
    const isOfOneSocket = names.socket !== undefined && this.#patterns.get(names.socket)?.sweep !== undefined;
    const isQuick = (isConnection(packet) || packet.protocol === PROTOCOL_UDP) && !isOfOneSocket;
    return now - since >= (isQuick ? FLOW_PATIENCE : PROBE_PATIENCE);
  }

  #findSweep(key: Key, packet: PacketSummary, names: PatternNames, now: Millis): OpenSweep | undefined {
    const socket = names.socket === undefined ? undefined : this.#pattern(names.socket, now);
    const purpose = this.#pattern(names.purpose, now);
    const known = socket?.sweep ?? purpose?.sweep;
    if (known) return known;
    for (const pattern of [socket, purpose]) {
      if (!pattern || pattern.woken.size < SWEEP_BURST || pattern.woken.has(key)) continue;
      const sweep: OpenSweep = { peers: pattern.woken.size, lastAt: now };
      pattern.sweep = sweep;
      // Somebody else who wants the same by a socket of his own is not suspected for what this one did.
      if (pattern === socket) for (const one of pattern.woken.keys()) purpose?.woken.delete(one);
      this.#noteSweep(packet, sweep, now);
      return sweep;
    }
    const going = this.#sweepMeanwhile(packet, now);
    if (going) return going;
    for (const name of [names.socket, names.purpose]) {
      if (name !== undefined) this.#noteWoken(name, key, now);
    }
    return undefined;
  }

  #hold(
    key: Key,
    known: Held | undefined,
    packet: PacketSummary,
    sweep: OpenSweep,
    now: Millis,
  ): SweepVerdict & { readonly kind: "hold" } {
    const held = known ?? { sweep, flows: new Map(), rounds: 1, lastAt: now, looksSince: now, looks: 0 };
    if (!known && !this.#hasRoom(now)) return { kind: "hold", sweep, lookAt: now, remembered: false };
    const flow = flowOf(packet);
    if (!held.flows.has(flow)) held.flows.set(flow, now);
    if (held.flows.size > FLOWS_OF_HELD) held.flows.delete(held.flows.keys().next().value!);
    held.sweep = sweep;
    held.lastAt = now;
    this.#held.delete(key);
    this.#held.set(key, held);
    if (now - held.looksSince >= LOOK_INTERVAL) {
      held.looksSince = now;
      held.looks = 0;
    }
    const lookAt = ++held.looks < LOOKS ? now : held.looksSince + LOOK_INTERVAL;
    return { kind: "hold", sweep, lookAt, remembered: true };
  }

  /** Only who has nothing waiting any more makes room: whoever was told to come back is known when he does. */
  #hasRoom(now: Millis): boolean {
    if (this.#held.size < HELD_MAX) return true;
    const [key, oldest] = this.#held.entries().next().value!;
    return now - oldest.lastAt > HOLD_PATIENCE && this.#held.delete(key);
  }

  #pattern(name: string, now: Millis): Pattern<Key> | undefined {
    const pattern = this.#patterns.get(name);
    if (!pattern) return undefined;
    if (pattern.sweep && now - pattern.sweep.lastAt > SWEEP_QUIET) {
      pattern.sweep = undefined;
      pattern.woken.clear();
    }
    for (const [key, at] of pattern.woken) {
      if (now - at > SWEEP_WINDOW) pattern.woken.delete(key);
    }
    moveToEnd(this.#patterns, name, pattern, PATTERNS_MAX);
    return pattern;
  }

  #noteWoken(name: string, key: Key, now: Millis): void {
    const pattern: Pattern<Key> = this.#patterns.get(name) ?? { woken: new Map(), sweep: undefined };
    pattern.woken.set(key, now);
    moveToEnd(this.#patterns, name, pattern, PATTERNS_MAX);
  }

  #noteSweep(packet: PacketSummary, sweep: OpenSweep, now: Millis): void {
    const known = this.#sources.get(packet.source);
    const going = known && [known.sweeps.connection, known.sweeps.probe].some((each) => isGoingOn(each, now));
    const { sweeps, left, refilledAt } = going ? known : { sweeps: {}, left: { ...OTHERS_MEANWHILE }, refilledAt: now };
    const source = { sweeps: { ...sweeps, [kindOf(packet)]: sweep }, left, refilledAt };
    moveToEnd(this.#sources, packet.source, source, SOURCES_MAX);
  }

  /** The sweep of the same machine that leaves no room for this packet; undefined when none does. */
  #sweepMeanwhile(packet: PacketSummary, now: Millis): OpenSweep | undefined {
    const source = this.#sources.get(packet.source);
    if (!source) return undefined;
    const kind = kindOf(packet);
    const { connection, probe } = source.sweeps;
    const going = [connection, kind === "probe" ? probe : undefined].find((sweep) => isGoingOn(sweep, now));
    if (!going) return undefined;
    const { left } = source;
    const refills = Math.floor((now - source.refilledAt) / OTHERS_REFILL);
    source.refilledAt += refills * OTHERS_REFILL;
    left.connection = Math.min(OTHERS_MEANWHILE.connection, left.connection + refills);
    if (left[kind] === 0) return going;
    left[kind]--;
    return undefined;
  }
}

interface PatternNames {
  /** Undefined where the protocol has nothing that tells programs apart. */
  readonly socket: string | undefined;
  readonly purpose: string;
}

function patternNames({ source, protocol, sourcePort, destinationPort, bytes }: PacketSummary): PatternNames {
  // The size of a request is the program's, that of a SYN or an echo request says who made it.
  const size = protocol === PROTOCOL_UDP ? "" : bytes;
  return {
    socket: sourcePort === 0 ? undefined : `${source} ${protocol} from ${sourcePort}`,
    purpose: `${source} ${protocol} to ${destinationPort} ${size}`,
  };
}

function flowOf({ protocol, sourcePort, destinationPort }: PacketSummary): string {
  return `${protocol} ${sourcePort} ${destinationPort}`;
}

/** TCP as an operating system speaks it: it will be repeated, and somebody waits for it. */
function isConnection({ protocol, bytes, destination }: PacketSummary): boolean {
  return (
    protocol === PROTOCOL_TCP && bytes >= CONNECTION_MIN_BYTES + (destination.includes(":") ? IPV6_EXTRA_BYTES : 0)
  );
}

function kindOf(packet: PacketSummary): Kind {
  return isConnection(packet) ? "connection" : "probe";
}

function isGoingOn(sweep: OpenSweep | undefined, now: Millis): sweep is OpenSweep {
  return sweep !== undefined && now - sweep.lastAt <= SWEEP_QUIET;
}

function moveToEnd<Value>(map: Map<string, Value>, name: string, value: Value, max: number): void {
  map.delete(name);
  map.set(name, value);
  if (map.size > max) map.delete(map.keys().next().value!);
}

/** `ping`, `tcp to port 22`: what a sweep consists of, for people. */
export function describeProbe({ protocol, destinationPort }: PacketSummary): string {
  switch (protocol) {
    case PROTOCOL_ICMP:
    case PROTOCOL_ICMP6:
      return "ping";
    case PROTOCOL_TCP:
      return `tcp to port ${destinationPort}`;
    case PROTOCOL_UDP:
      return `udp to port ${destinationPort}`;
    default:
      return `protocol ${protocol}`;
  }
}
