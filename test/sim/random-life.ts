import type { Millis } from "#base/time.ts";
import { Body_Type } from "#gen/signal_pb.ts";
import { NAT_KINDS, STUN_SERVERS } from "./internet.ts";
import { PairWatch } from "./pair-watch.ts";
import type { MachineSettings, SimMachine } from "./sim-machine.ts";
import type { Dialect } from "./sim-signal.ts";
import { RELAY_URLS, SimWorld } from "./sim-world.ts";

/*
 * A random life of two to four machines: traffic, sleeps and wakes from either side, losses, restarts of everything,
 * movement between networks, clock jumps, switches. Everything follows from the seed.
 */

export interface LifeReport {
  readonly seed: number;
  /** What the world was like, for the message of a failure. */
  readonly story: string;
  readonly violations: readonly string[];
  /** Everything that happened, condensed: two runs of one seed have the same. */
  readonly fingerprint: number;
  readonly packets: number;
  readonly lost: number;
  readonly wakes: number;
  /** Pairs with traffic at the end, how many of them could be direct, and how many of those were ten seconds later. */
  readonly pairs: number;
  readonly directPossible: number;
  readonly direct: number;
}

export interface LifeOptions {
  readonly trace?: (line: string) => void;
  /** Length of the disturbed part. */
  readonly duration?: Millis;
}

type Pick = <T>(values: readonly T[]) => T;

/** Longest pause of a client that lost its server. */
const RECONNECT_MAX: Millis = 25_000;
/** Time from the last disturbance to when every pair that talks must be connected. */
const SETTLE: Millis = 10_000;

export async function liveRandomly(seed: number, options: LifeOptions = {}): Promise<LifeReport> {
  const { trace, duration = 60_000 } = options;
  const life = new RandomLife(seed, trace);
  try {
    await life.live(duration);
    return life.report();
  } finally {
    life.world[Symbol.dispose]();
  }
}

class RandomLife {
  readonly world: SimWorld;
  readonly #watch: PairWatch;
  readonly #story: string;
  readonly #talking = new Set<string>();
  #pairs = 0;
  #directPossible = 0;
  #direct = 0;
  #wakes = 0;

  constructor(seed: number, trace: ((line: string) => void) | undefined) {
    const draft = new SimWorldDraft(seed);
    this.world = draft.create(trace);
    const { internet } = this.world;
    internet.loss = draft.loss;
    internet.jitter = draft.jitter;
    internet.repetition = draft.repetition;
    this.#story = draft.story;
    this.#watch = new PairWatch(this.world);
    this.world.onSent = (from, _, to) => {
      if (!STUN_SERVERS.some(({ address }) => address === to.address)) this.#watch.noteSent(from);
    };
    for (const machine of this.world.machines) {
      machine.onStart = () => {
        const { agent } = machine;
        agent!.plane.lag = draft.lag;
        agent!.device.events.on("wake", () => this.#wakes++);
        agent!.relay.onSend = (key) => this.#watch.noteRelayed(machine, key);
      };
    }
  }

  async live(duration: Millis): Promise<void> {
    const { world } = this;
    const { random, machines } = world;
    for (const machine of machines) machine.start();
    const check = (): void => this.#watch.check();
    await world.advance(2_000, check);
    const end = world.now + duration;
    while (world.now < end) {
      this.#act();
      // Things often happen together, and sometimes nothing does for a while.
      const wait = random() < 0.3 ? 0 : random() < 0.8 ? random() * 500 : random() * 12_000;
      await world.advance(Math.round(wait), check);
    }
    await this.#settle(check);
    await this.#rest(check);
    this.#watch.finish();
  }

  report(): LifeReport {
    const { world } = this;
    const records = [...world.packets.values()];
    let fingerprint = 17;
    for (const { id, deliveredAt = -1, losses } of records)
      fingerprint = (Math.imul(fingerprint, 31) + id + Math.round(deliveredAt * 8) + losses.length) | 0;
    return {
      seed: world.seed,
      story: this.#story,
      violations: this.#watch.violations,
      fingerprint,
      packets: records.length,
      lost: records.filter(({ deliveries }) => deliveries === 0).length,
      wakes: this.#wakes,
      pairs: this.#pairs,
      directPossible: this.#directPossible,
      direct: this.#direct,
    };
  }

  #act(): void {
    const { world } = this;
    const { random, machines } = world;
    const a = machines[Math.floor(random() * machines.length)]!;
    const others = machines.filter((machine) => machine !== a);
    const b = others[Math.floor(random() * others.length)]!;
    const brief = Math.round(random() ** 2 * 10_000);
    const dice = random();
    // Most of a life is traffic and sleep.
    if (dice < 0.35) return this.#talk(a, b, 1 + Math.floor(random() * 5));
    if (dice < 0.45) {
      this.#talk(a, b, 1);
      return this.#talk(b, a, 1);
    }
    if (dice < 0.62) return this.#command(a, b);
    world.trace?.(`---- ${dice.toFixed(3)} ${a.name} ${b.name} ${brief} ms`);
    if (dice < 0.66) return this.#watch.disturb(() => a.nat.rebind());
    if (dice < 0.7) {
      let left = 1;
      world.signal.swallow = (from, to, body) => {
        const hit = body.type === Body_Type.GO_IDLE && left-- > 0;
        // Steps of an agreement are repeated.
        if (hit && !body.perch?.sleep) world.time.after(0, () => this.#watch.noteLostIdle(from, to));
        return hit;
      };
      return;
    }
    if (dice < 0.74) return void a.agent?.clock.stepWall((random() - 0.5) * 7_200_000);
    this.#watch.disturb(() => this.#break(dice, a, brief));
  }

  #break(dice: number, a: SimMachine, brief: Millis): void {
    const { world } = this;
    const later = (run: () => void): void => void world.time.after(brief, () => this.#watch.disturb(run));
    if (dice < 0.79) {
      a.kill();
      later(() => a.start());
    } else if (dice < 0.84) {
      a.suspend();
      later(() => a.resume());
    } else if (dice < 0.88) {
      a.setOnline(false);
      later(() => a.setOnline(true));
    } else if (dice < 0.92) {
      a.move(NAT_KINDS[Math.floor(world.random() * NAT_KINDS.length)]!);
    } else if (dice < 0.96) {
      world.signal.stop();
      later(() => world.signal.start());
    } else {
      const relay = world.relays[Math.floor(world.random() * world.relays.length)]!;
      relay.stop();
      later(() => relay.start());
    }
  }

  #talk(a: SimMachine, b: SimMachine, count: number): void {
    for (let i = 0; i < count; i++) if (a.send(b) !== undefined) this.#talking.add([a.index, b.index].sort().join());
    this.world.trace?.(`---- ${a.name} sends ${count} to ${b.name}`);
  }

  /** What a user may ask of `a` about `b`. */
  #command(a: SimMachine, b: SimMachine): void {
    const connections = a.agent?.engine.connections;
    if (!a.agent || !connections || a.suspended) return;
    const dice = this.world.random();
    this.world.trace?.(`---- command ${dice.toFixed(3)} ${a.name} ${b.name}`);
    if (dice < 0.5) {
      if (!connections.decisionOf(b.publicKey).lazy) return;
      connections.sleep(b.publicKey, "asked to");
      this.#watch.noteAskedToSleep(a, b);
    } else if (dice < 0.7) {
      connections.wake(b.publicKey, "asked to");
      this.#watch.noteWanted(a, b);
      this.#talking.add([a.index, b.index].sort().join());
    } else if (dice < 0.85) {
      a.agent.engine.setLazy(!connections.lazy);
    } else {
      connections.pin(b.publicKey, !connections.isPinned(b.publicKey));
    }
  }

  /** Everything is repaired; who talked goes on, and must be connected after SETTLE. */
  async #settle(check: () => void): Promise<void> {
    const { world } = this;
    const { machines, internet } = world;
    world.trace?.("==== settle");
    this.#watch.disturb(() => {
      internet.loss = 0;
      world.signal.swallow = () => false;
      world.signal.start();
      for (const relay of world.relays) relay.start();
      for (const machine of machines) {
        machine.resume();
        machine.setOnline(true);
        machine.start();
      }
    });
    // The pauses of the clients between two attempts are their own; the time of the peers counts from when servers are there.
    const isServed = ({ agent }: SimMachine): boolean => agent!.signal.connected && agent!.relay.home.connected;
    await world.until(RECONNECT_MAX, () => {
      check();
      return machines.every(isServed);
    });
    const pairs = [...this.#talking].map((text) => text.split(",").map((index) => machines[Number(index)]!)) as [
      SimMachine,
      SimMachine,
    ][];
    this.#pairs = pairs.length;
    const talk = async (time: Millis): Promise<void> => {
      for (let at = 0; at < time; at += 500) {
        for (const [a, b] of pairs) {
          a.send(b);
          b.send(a);
        }
        await world.advance(500, check);
      }
    };
    await talk(SETTLE);
    const since = world.now;
    await talk(1_000);
    await world.advance(1_000, check);
    // A pair that changes its relay just now is proven anew in a moment.
    const isProven = ([a, b]: [SimMachine, SimMachine]): boolean =>
      a.peer(b).status === "connected" && b.peer(a).status === "connected";
    await world.until(1_000, () => pairs.every(isProven));
    for (const [a, b] of pairs) this.#watch.assertWorking(a, b, since);
    for (const [a, b] of pairs) {
      if (!this.#watch.isDirectPossible(a, b)) continue;
      this.#directPossible++;
      if (a.peer(b).path.kind === "direct" && b.peer(a).path.kind === "direct") this.#direct++;
    }
  }

  /** Silence: lazy peers fall asleep, and what sleeps costs nothing. */
  async #rest(check: () => void): Promise<void> {
    const { world } = this;
    world.trace?.("==== rest");
    await world.advance(60_000, check);
    // Who stays awake for good has nothing new to show in the rest of the time.
    const isAsleep = world.machines.every(({ agent }) =>
      [...agent!.engine.connections.peers].every((peer) => !peer.awake),
    );
    if (isAsleep) await world.advance(1_140_000, check);
    this.#watch.assertAtRest(isAsleep);
  }
}

/** What the seed decides before anything happens. */
class SimWorldDraft {
  readonly seed: number;
  readonly loss: number;
  readonly jitter: Millis;
  readonly repetition: number;
  readonly lag: Millis;
  readonly #delay: Millis;
  readonly #machines: MachineSettings[];
  readonly #relays: number;

  constructor(seed: number) {
    this.seed = seed;
    using scratch = new SimWorld({ seed: seed ^ 0x0abcdef, machines: [] });
    const { random } = scratch;
    const pick: Pick = (values) => values[Math.floor(random() * values.length)]!;
    this.loss = pick([0, 0, 0, 0.01, 0.05, 0.15]);
    this.jitter = pick([0, 0, 5, 40]);
    this.repetition = pick([0, 0, 0.03]);
    this.lag = pick([0, 0, 1, 5]);
    this.#delay = pick([5, 20, 20, 50, 100]);
    this.#relays = pick([1, 1, 2]);
    const threshold = pick([5_000, 10_000, 20_000]);
    const urls = RELAY_URLS.slice(0, this.#relays);
    this.#machines = Array.from({ length: pick([2, 2, 3, 4]) }, () => ({
      nat: pick(NAT_KINDS),
      lazy: random() < 0.85,
      threshold,
      agentVersion: "0.76.0",
      natLifetime: pick([0, 0, 30_000, 120_000]),
      relays: [pick(urls)],
      forceRelay: random() < 0.05,
    }));
    // Most worlds have agents of this version alone; in the others each may be of another.
    const dialects: Dialect[] = ["perch", "stock", "perch without sleep agreement"];
    if (random() < 0.3) this.#machines = this.#machines.map((machine) => ({ ...machine, dialect: pick(dialects) }));
  }

  get story(): string {
    const machines = this.#machines.map(
      ({ nat, lazy, relays, forceRelay, dialect = "perch" }) =>
        `${nat}${lazy ? "" : " permanent"}${forceRelay ? " relay-only" : ""}${dialect === "perch" ? "" : ` (${dialect})`}@${relays?.join().at(-4)}`,
    );
    return `${machines.join(", ")}; delay ${this.#delay} loss ${this.loss} jitter ${this.jitter} repeats ${this.repetition} lag ${this.lag} threshold ${this.#machines[0]!.threshold}`;
  }

  create(trace: ((line: string) => void) | undefined): SimWorld {
    const { seed } = this;
    const base = { seed, machines: this.#machines, delay: this.#delay, relays: this.#relays };
    return new SimWorld({ ...base, ...(trace && { trace }) });
  }
}
