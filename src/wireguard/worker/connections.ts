import { randomBytes } from "node:crypto";
import { Asker, type InnerFlow, PROTOCOL_ICMP, PROTOCOL_ICMPV6 } from "./inner-flow.ts";
import { PROTOCOL_TCP, TcpFlag } from "./inner-packet.ts";

/** Flows known at a time; about 5 MB when all are. */
export const CONNECTION_LIMIT = 65_536;

/**
 * How long a flow is known without a packet, in seconds. Established TCP outlives the two hours after which a keepalive
 * comes (RFC 5382 section 5, REQ-5); the others are those that people know from other firewalls.
 */
export const IDLE_SECONDS = {
  /** TCP that is being opened or was closed. */
  tcpPassing: 30,
  icmp: 30,
  /** UDP and other protocols, packets one way only. */
  oneWay: 60,
  /** The same, answered. */
  bothWays: 180,
  tcpEstablished: 7_440,
} as const;

/** Flows that live equally long form a list in the order of their last packet, so that the head is the first to go. */
const Class = { brief: 0, oneWay: 1, bothWays: 2, established: 3 } as const;
type Class = (typeof Class)[keyof typeof Class];
const CLASS_SECONDS = Int32Array.of(
  IDLE_SECONDS.tcpPassing,
  IDLE_SECONDS.oneWay,
  IDLE_SECONDS.bothWays,
  IDLE_SECONDS.tcpEstablished,
);
const CLASSES = 4;

const Flag = {
  /** This machine sent the first packet. */
  outgoing: 1,
  /** The rules do not allow it any more. */
  denied: 2,
  /** The end that did not begin has sent. */
  answered: 4,
  /** TCP: the beginner has sent after the answer, so both ends are real. */
  confirmed: 8,
  beginnerEnded: 16,
  otherEnded: 32,
  reset: 64,
} as const;

const KEY_WORDS = 10;
const V6_BIT = 256;
/** Of ICMP: the remote end asks. Two pings with the same number, one each way, are two flows. */
const REMOTE_ASKS_BIT = 512;
/** Expired flows removed when one is added. */
const SWEEP = 4;

/**
 * The flows that the packet filter knows, in typed arrays of fixed size: an entry is found by a hash of both addresses,
 * both ports and the protocol, whichever way the packet goes. No timers: what is expired is removed when it is met, or to make
 * room.
 *
 * A key is ten words: remote address (4), local address (4), remote port << 16 | local port, protocol with two bits.
 */
export class Connections {
  /** Device clock in whole seconds. */
  now = 0;
  readonly limit: number;
  readonly #keys: Int32Array;
  readonly #flags: Uint8Array;
  readonly #class: Uint8Array;
  readonly #usedAt: Int32Array;
  readonly #generation: Int32Array;
  /** Next in the same bucket; of a free entry the next free one. */
  readonly #chain: Int32Array;
  readonly #older: Int32Array;
  readonly #newer: Int32Array;
  /** Entry + 1, 0 none. */
  readonly #buckets: Int32Array;
  readonly #oldest = new Int32Array(CLASSES).fill(-1);
  readonly #newest = new Int32Array(CLASSES).fill(-1);
  /** Remote ends choose ports: without a secret they could fill one bucket. */
  readonly #seed = randomBytes(4).readInt32LE();
  #free = -1;
  #touched = 0;
  #size = 0;
  #last = -1;

  // The key at hand.
  #k0 = 0;
  #k1 = 0;
  #k2 = 0;
  #k3 = 0;
  #k4 = 0;
  #k5 = 0;
  #k6 = 0;
  #k7 = 0;
  #k8 = 0;
  #k9 = 0;

  /** `limit` is a power of two. */
  constructor(limit: number = CONNECTION_LIMIT) {
    this.limit = limit;
    this.#keys = new Int32Array(KEY_WORDS * limit);
    this.#flags = new Uint8Array(limit);
    this.#class = new Uint8Array(limit);
    this.#usedAt = new Int32Array(limit);
    this.#generation = new Int32Array(limit);
    this.#chain = new Int32Array(limit);
    this.#older = new Int32Array(limit);
    this.#newer = new Int32Array(limit);
    this.#buckets = new Int32Array(2 * limit);
  }

  /** Flows in the table, those that expired and were not met since with them. */
  get size(): number {
    return this.#size;
  }

  /** Entry of the flow that the packet belongs to, or -1. `isOutgoing`: this machine is the packet's source. */
  find(flow: InnerFlow, isOutgoing: boolean): number {
    this.#setKey(flow, isOutgoing);
    let entry = this.#last;
    if (entry < 0 || !this.#isKey(entry)) {
      entry = this.#buckets[this.#bucket()]! - 1;
      while (entry >= 0 && !this.#isKey(entry)) entry = this.#chain[entry]! - 1;
      if (entry < 0) return -1;
    }
    if (this.#isExpired(entry)) {
      this.#remove(entry);
      return -1;
    }
    this.#last = entry;
    return entry;
  }

  /**
   * Adds the packet's flow, which `find` did not find just now. `beganHere`: this machine began it. Returns -1 when the table is full and
   * `evict` is false; with it the flow that is missed least goes.
   */
  add(flow: InnerFlow, isOutgoing: boolean, beganHere: boolean, generation: number, evict: boolean): number {
    this.#sweep();
    if (this.#size === this.limit) {
      if (!evict) return -1;
      this.#evict();
    }
    this.#setKey(flow, isOutgoing);
    const entry = this.#take();
    this.#storeKey(entry);
    const bucket = this.#bucket();
    this.#chain[entry] = this.#buckets[bucket]!;
    this.#buckets[bucket] = entry + 1;
    this.#size++;
    this.#last = entry;
    this.#start(entry, flow, beganHere, generation);
    return entry;
  }

  /** The packet begins the flow anew: its ports are used again. */
  restart(entry: number, flow: InnerFlow, beganHere: boolean, generation: number): void {
    this.#unlink(entry);
    this.#start(entry, flow, beganHere, generation);
  }

  /** Takes what the packet says about the flow, and its time. */
  note(entry: number, flow: InnerFlow, isOutgoing: boolean): void {
    const before = this.#flags[entry]!;
    const byBeginner = ((before & Flag.outgoing) !== 0) === isOutgoing;
    let flags = before;
    if (!byBeginner) flags |= Flag.answered;
    if (flow.protocol === PROTOCOL_TCP) {
      const { tcpFlags } = flow;
      if (byBeginner && (before & Flag.answered) !== 0 && (tcpFlags & TcpFlag.syn) === 0) flags |= Flag.confirmed;
      if ((tcpFlags & TcpFlag.fin) !== 0) flags |= byBeginner ? Flag.beginnerEnded : Flag.otherEnded;
      if ((tcpFlags & TcpFlag.rst) !== 0) flags |= Flag.reset;
    }
    if (flags === before && this.#usedAt[entry] === this.now) return;
    this.#flags[entry] = flags;
    this.#unlink(entry);
    this.#link(entry, classOf(flags, flow));
  }

  /** A TCP flow of which this machine sends: established before this table knew it. */
  assumeEstablished(entry: number): void {
    this.#flags[entry]! |= Flag.answered | Flag.confirmed;
    this.#unlink(entry);
    this.#link(entry, Class.established);
  }

  isOutgoing(entry: number): boolean {
    return (this.#flags[entry]! & Flag.outgoing) !== 0;
  }

  isDenied(entry: number): boolean {
    return (this.#flags[entry]! & Flag.denied) !== 0;
  }

  isAnswered(entry: number): boolean {
    return (this.#flags[entry]! & Flag.answered) !== 0;
  }

  isEnded(entry: number): boolean {
    return isEnded(this.#flags[entry]!);
  }

  /** Generation of the rules that the flow was judged by. */
  generation(entry: number): number {
    return this.#generation[entry]!;
  }

  /** A denied flow is kept: without it, what this machine still sends would look like a flow of its own. */
  judged(entry: number, isAllowed: boolean, generation: number): void {
    this.#generation[entry] = generation;
    if (isAllowed) this.#flags[entry]! &= ~Flag.denied;
    else this.#flags[entry]! |= Flag.denied;
  }

  #start(entry: number, flow: InnerFlow, beganHere: boolean, generation: number): void {
    const flags = beganHere ? Flag.outgoing : 0;
    this.#flags[entry] = flags;
    this.#generation[entry] = generation;
    this.#link(entry, classOf(flags, flow));
  }

  #setKey(flow: InnerFlow, isOutgoing: boolean): void {
    if (isOutgoing) {
      this.#k0 = flow.destination0;
      this.#k1 = flow.destination1;
      this.#k2 = flow.destination2;
      this.#k3 = flow.destination3;
      this.#k4 = flow.source0;
      this.#k5 = flow.source1;
      this.#k6 = flow.source2;
      this.#k7 = flow.source3;
      this.#k8 = (flow.destinationPort << 16) | flow.sourcePort;
    } else {
      this.#k0 = flow.source0;
      this.#k1 = flow.source1;
      this.#k2 = flow.source2;
      this.#k3 = flow.source3;
      this.#k4 = flow.destination0;
      this.#k5 = flow.destination1;
      this.#k6 = flow.destination2;
      this.#k7 = flow.destination3;
      this.#k8 = (flow.sourcePort << 16) | flow.destinationPort;
    }
    const remoteAsks = flow.asker !== Asker.none && (flow.asker === Asker.source) !== isOutgoing;
    this.#k9 = flow.protocol | (flow.isV6 ? V6_BIT : 0) | (remoteAsks ? REMOTE_ASKS_BIT : 0);
  }

  #isKey(entry: number): boolean {
    const at = entry * KEY_WORDS;
    const keys = this.#keys;
    return (
      keys[at + 8] === this.#k8 &&
      keys[at] === this.#k0 &&
      keys[at + 4] === this.#k4 &&
      keys[at + 9] === this.#k9 &&
      keys[at + 1] === this.#k1 &&
      keys[at + 2] === this.#k2 &&
      keys[at + 3] === this.#k3 &&
      keys[at + 5] === this.#k5 &&
      keys[at + 6] === this.#k6 &&
      keys[at + 7] === this.#k7
    );
  }

  /** Keeps the key at hand in the entry. */
  #storeKey(entry: number): void {
    const at = entry * KEY_WORDS;
    const keys = this.#keys;
    keys[at] = this.#k0;
    keys[at + 1] = this.#k1;
    keys[at + 2] = this.#k2;
    keys[at + 3] = this.#k3;
    keys[at + 4] = this.#k4;
    keys[at + 5] = this.#k5;
    keys[at + 6] = this.#k6;
    keys[at + 7] = this.#k7;
    keys[at + 8] = this.#k8;
    keys[at + 9] = this.#k9;
  }

  /** Bucket of the key at hand; the same as `#bucketOf` an entry with that key. */
  #bucket(): number {
    let h = mix(mix(mix(mix(this.#seed, this.#k8), this.#k0), this.#k4), this.#k9);
    if ((this.#k9 & V6_BIT) !== 0)
      h = mix(mix(mix(mix(mix(mix(h, this.#k1), this.#k2), this.#k3), this.#k5), this.#k6), this.#k7);
    return h & (this.#buckets.length - 1);
  }

  #bucketOf(entry: number): number {
    const keys = this.#keys;
    const at = entry * KEY_WORDS;
    let h = mix(mix(mix(mix(this.#seed, keys[at + 8]!), keys[at]!), keys[at + 4]!), keys[at + 9]!);
    if ((keys[at + 9]! & V6_BIT) !== 0) {
      h = mix(mix(mix(h, keys[at + 1]!), keys[at + 2]!), keys[at + 3]!);
      h = mix(mix(mix(h, keys[at + 5]!), keys[at + 6]!), keys[at + 7]!);
    }
    return h & (this.#buckets.length - 1);
  }

  #isExpired(entry: number): boolean {
    return this.now - this.#usedAt[entry]! >= CLASS_SECONDS[this.#class[entry]!]!;
  }

  #sweep(): void {
    for (let list = 0; list < CLASSES; list++) {
      for (let i = 0; i < SWEEP; i++) {
        const entry = this.#oldest[list]!;
        if (entry < 0 || !this.#isExpired(entry)) break;
        this.#remove(entry);
      }
    }
  }

  /** Removes the oldest flow of the shortest-lived class that has one. */
  #evict(): void {
    for (let list = 0; list < CLASSES; list++) {
      const entry = this.#oldest[list]!;
      if (entry >= 0) return this.#remove(entry);
    }
  }

  #remove(entry: number): void {
    const bucket = this.#bucketOf(entry);
    const next = this.#chain[entry]!;
    let before = this.#buckets[bucket]! - 1;
    if (before === entry) {
      this.#buckets[bucket] = next;
    } else {
      while (this.#chain[before]! - 1 !== entry) before = this.#chain[before]! - 1;
      this.#chain[before] = next;
    }
    this.#unlink(entry);
    this.#chain[entry] = this.#free;
    this.#free = entry;
    this.#size--;
    if (this.#last === entry) this.#last = -1;
  }

  #take(): number {
    if (this.#free < 0) return this.#touched++;
    const entry = this.#free;
    this.#free = this.#chain[entry]!;
    return entry;
  }

  #link(entry: number, list: Class): void {
    const newest = this.#newest[list]!;
    this.#class[entry] = list;
    this.#usedAt[entry] = this.now;
    this.#older[entry] = newest;
    this.#newer[entry] = -1;
    if (newest >= 0) this.#newer[newest] = entry;
    else this.#oldest[list] = entry;
    this.#newest[list] = entry;
  }

  #unlink(entry: number): void {
    const list = this.#class[entry]!;
    const older = this.#older[entry]!;
    const newer = this.#newer[entry]!;
    if (older >= 0) this.#newer[older] = newer;
    else this.#oldest[list] = newer;
    if (newer >= 0) this.#older[newer] = older;
    else this.#newest[list] = older;
  }
}

function isEnded(flags: number): boolean {
  const both = Flag.beginnerEnded | Flag.otherEnded;
  return (flags & Flag.reset) !== 0 || (flags & both) === both;
}

function classOf(flags: number, flow: InnerFlow): Class {
  const { protocol } = flow;
  if (protocol === PROTOCOL_TCP)
    return (flags & Flag.confirmed) !== 0 && !isEnded(flags) ? Class.established : Class.brief;
  if (protocol === (flow.isV6 ? PROTOCOL_ICMPV6 : PROTOCOL_ICMP)) return Class.brief;
  return (flags & Flag.answered) !== 0 ? Class.bothWays : Class.oneWay;
}

function mix(h: number, word: number): number {
  const x = Math.imul(h ^ word, 0x9e3779b1);
  return x ^ (x >>> 15);
}
