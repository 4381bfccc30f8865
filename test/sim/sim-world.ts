import type { Endpoint } from "#base/ip.ts";
import type { Millis } from "#base/time.ts";
import { createRandom, Internet } from "./internet.ts";
import { SeededRandomness } from "./seeded-randomness.ts";
import { type MachineSettings, SimMachine } from "./sim-machine.ts";
import { type InnerPacket, readInner } from "./sim-plane.ts";
import { SimRelayServer } from "./sim-relay.ts";
import { SimSignalServer } from "./sim-signal.ts";
import { VirtualTime } from "./virtual-time.ts";

/** Longer than this no link keeps a packet, but a connection that is broken or belongs to a suspended machine. */
const HELD_UP: Millis = 1_000;

export const RELAY_URLS = ["rel://relay-1:80", "rel://relay-2:80"] as const;

/** What became of an inner packet. */
export interface PacketRecord {
  readonly id: number;
  readonly from: SimMachine;
  readonly to: SimMachine;
  readonly sentAt: Millis;
  readonly fromLife: number;
  /** When it left encrypted; later than `sentAt` if it waited for a session. */
  emittedAt: Millis | undefined;
  deliveredAt: Millis | undefined;
  deliveries: number;
  /** Why it may be missing: a link, a relay or a restart lost it, or a device gave it up. */
  readonly losses: string[];
}

export interface WorldOptions {
  readonly seed?: number;
  readonly machines: readonly Partial<MachineSettings>[];
  readonly delay?: Millis;
  readonly relays?: number;
  /** Which key each machine has; the greater one controls. By the seed when absent. */
  readonly keyOrder?: readonly number[];
  /** Gets a line for everything the agents log at debug level and above. */
  readonly trace?: (line: string) => void;
}

const DEFAULTS: MachineSettings = { nat: "none", lazy: true, threshold: 60_000, agentVersion: "0.76.0" };

/**
 * Machines with whole agents on a virtual internet, a signal server and relays, under one virtual time. Everything that
 * happens follows from the seed: random numbers are the world's while it exists (use `using`).
 */
export class SimWorld {
  readonly seed: number;
  readonly time = new VirtualTime();
  readonly random: () => number;
  readonly internet: Internet<VirtualTime>;
  readonly signal: SimSignalServer;
  readonly relays: readonly SimRelayServer[];
  readonly machines: SimMachine[] = [];
  readonly keyOrder: readonly number[];
  readonly packets = new Map<number, PacketRecord>();
  /** Ids in the order of their first delivery. */
  readonly deliveredIds: number[] = [];
  readonly trace: ((line: string) => void) | undefined;
  /** Called for each UDP datagram a machine sends. */
  onSent: (from: SimMachine, datagram: Uint8Array, to: Endpoint) => void = () => {};
  onDelivered: (record: PacketRecord) => void = () => {};
  serial = 0;
  #nextPacket = 1;
  readonly #randomness: SeededRandomness;

  constructor(options: WorldOptions) {
    this.seed = options.seed ?? 1;
    this.random = createRandom(this.seed);
    const { trace } = options;
    this.trace = trace && ((line) => trace(`${this.time.now().toFixed(1).padStart(10)} ${line}`));
    this.#randomness = new SeededRandomness(createRandom(this.seed ^ 0x5eed));
    this.internet = new Internet(this.time, { seed: this.seed ^ 0x1e7, delay: options.delay ?? 20 });
    this.internet.onDrop = (datagram, why) => {
      const packet = readInner(datagram);
      if (packet) this.noteDropped(packet, why);
    };
    this.signal = new SimSignalServer(this.internet);
    this.relays = RELAY_URLS.slice(0, options.relays ?? 1).map((url) => new SimRelayServer(this.internet, url));
    const order = options.machines.map((_, index) => index);
    for (let at = order.length - 1; at > 0; at--) {
      const other = Math.floor(this.random() * (at + 1));
      [order[at], order[other]] = [order[other]!, order[at]!];
    }
    this.keyOrder = options.keyOrder ?? order;
    options.machines.forEach((settings, index) => {
      this.machines.push(new SimMachine(this, index, { ...DEFAULTS, ...settings }));
    });
  }

  [Symbol.dispose](): void {
    for (const machine of this.machines) machine.kill();
    this.#randomness[Symbol.dispose]();
  }

  get now(): Millis {
    return this.time.now();
  }

  startAll(): void {
    for (const machine of this.machines) machine.start();
  }

  advance(by: Millis, between?: () => void): Promise<void> {
    return this.time.runUntil(this.now + by, between);
  }

  /** Advances until the condition holds; false when it did not within `limit`. */
  async until(limit: Millis, condition: () => boolean): Promise<boolean> {
    const end = this.now + limit;
    let met = condition();
    while (!met && this.now < end) {
      await this.time.runNext(end);
      met = condition();
    }
    return met;
  }

  // Packets

  createPacket(from: SimMachine, to: SimMachine, bytes: number): InnerPacket {
    const id = this.#nextPacket++;
    this.packets.set(id, {
      id,
      from,
      to,
      sentAt: this.now,
      fromLife: from.lives,
      emittedAt: undefined,
      deliveredAt: undefined,
      deliveries: 0,
      losses: [],
    });
    return { id, source: from.address, destination: to.address, bytes };
  }

  noteDelivered(at: SimMachine, packet: InnerPacket): void {
    const record = this.packets.get(packet.id);
    if (!record || record.to !== at) throw new Error(`${at.name} received packet ${packet.id} of somebody else`);
    record.deliveries++;
    if (record.deliveredAt !== undefined) return;
    record.deliveredAt = this.now;
    this.deliveredIds.push(packet.id);
    this.onDelivered(record);
  }

  noteEmitted(packet: InnerPacket): void {
    this.packets.get(packet.id)!.emittedAt = this.now;
  }

  noteDropped(packet: InnerPacket, why: string): void {
    const record = this.packets.get(packet.id);
    record?.losses.push(why);
    // What a dead relay connection held up may find its session replaced several times.
    if (record?.emittedAt !== undefined && this.now - record.emittedAt > HELD_UP) record.losses.push("held up");
    this.trace?.(`packet ${packet.id} dropped: ${why}`);
  }

  /** The sender's process died with what it had staged. */
  noteLost(machine: SimMachine): void {
    for (const record of this.packets.values()) {
      if (record.deliveredAt === undefined && (record.from === machine || record.to === machine))
        record.losses.push(`${machine.name} died`);
    }
  }

  noteSent(from: SimMachine, datagram: Uint8Array, to: Endpoint): void {
    this.onSent(from, datagram, to);
  }
}
