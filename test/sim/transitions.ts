import type { PeerPath } from "#agent/control.ts";
import type { Millis } from "#base/time.ts";
import { Body_Type } from "#gen/signal_pb.ts";
import { isDirectPossible, NAT_KINDS, type NatKind } from "./internet.ts";
import type { SimMachine } from "./sim-machine.ts";
import { type PacketRecord, SimWorld } from "./sim-world.ts";

/*
 * Directed runs of one pair: nothing is lost on a wake, when the direct way takes over, when it is left, and when a sleep
 * crosses with traffic. Links lose nothing here, so every missing packet is the agents' fault; all else follows from the seed.
 */

export const TRANSITIONS = ["wake", "relay to direct", "direct to relay", "sleep crossing"] as const;
export type Transition = (typeof TRANSITIONS)[number];

export interface TransitionReport {
  readonly seed: number;
  readonly story: string;
  readonly packets: number;
  /** What is wrong; empty: nothing. */
  readonly failures: readonly string[];
}

/** Runs one transition once. */
export async function runTransition(kind: Transition, seed: number): Promise<TransitionReport> {
  using run = new TransitionRun(kind, seed);
  await RUNS[kind](run);
  return run.report();
}

const RUNS: Readonly<Record<Transition, (run: TransitionRun) => Promise<void>>> = {
  wake: (run) => run.wake(),
  "relay to direct": (run) => run.relayToDirect(),
  "direct to relay": (run) => run.directToRelay(),
  "sleep crossing": (run) => run.sleepCrossing(),
};

const THRESHOLD: Millis = 5_000;

class TransitionRun implements Disposable {
  readonly world: SimWorld;
  readonly #kind: Transition;
  readonly #story: string;
  readonly #pair: readonly [SimMachine, SimMachine];
  readonly #failures: string[] = [];
  /** Packets that may be missing: they left on a way that was dead already. */
  #isExcused: (record: PacketRecord) => boolean = () => false;

  constructor(kind: Transition, seed: number) {
    this.#kind = kind;
    const nats = pickNats(kind, seed);
    this.world = new SimWorld({
      seed,
      machines: nats.map((nat) => ({ nat, threshold: THRESHOLD })),
      delay: 1 + (seed % 60),
    });
    const { internet, random, machines } = this.world;
    internet.jitter = random() < 0.5 ? 0 : Math.round(random() * 15);
    internet.repetition = random() < 0.8 ? 0 : 0.03;
    const lag = random() < 0.5 ? 0 : Math.round(random() * 4);
    this.#pair = machines as unknown as readonly [SimMachine, SimMachine];
    for (const machine of machines) {
      machine.onStart = () => {
        machine.agent!.plane.lag = lag;
      };
    }
    this.#story = `${kind}, ${nats.join(" and ")}, delay ${internet.delay} jitter ${internet.jitter} lag ${lag}`;
  }

  [Symbol.dispose](): void {
    this.world[Symbol.dispose]();
  }

  report(): TransitionReport {
    const { packets, seed } = this.world;
    for (const record of packets.values()) {
      const { id, from, to, sentAt, deliveries, losses } = record;
      if (deliveries === 1 || (deliveries === 0 && this.#isExcused(record))) continue;
      const words = `packet ${id} ${from.name} to ${to.name} of ${Math.round(sentAt)} ms`;
      this.#failures.push(`${words} arrived ${deliveries} times: ${losses.join(", ") || "it is nowhere"}`);
    }
    return { seed, story: this.#story, packets: packets.size, failures: this.#failures };
  }

  /** Bursts into a sleeping pair from either side or both, after any time asleep. */
  async wake(): Promise<void> {
    const { random } = this.world;
    const [a, b] = this.#pair;
    await this.#begin();
    if (random() < 0.5) {
      a.send(b);
      await this.world.advance(2_000 + THRESHOLD * 3 + Math.round(random() ** 3 * 1_200_000));
      this.#expect(!a.peer(b).awake && !b.peer(a).awake, "the pair does not sleep");
    }
    const sides = random() < 0.4 ? [a, b] : [random() < 0.5 ? a : b];
    for (const from of sides) {
      const at = Math.round(random() * 150);
      const to = from === a ? b : a;
      const [count, gap] = [1 + Math.floor(random() ** 2 * 100), Math.round(random() * 10)];
      for (let i = 0; i < count; i++) this.world.time.after(at + i * gap, () => void from.send(to));
    }
    await this.world.advance(3_000);
    this.#expectConnected();
  }

  /** Steady traffic both ways from the first packet until long after the direct way is there. */
  async relayToDirect(): Promise<void> {
    await this.#begin();
    await this.#talk(3_000, 2 + Math.floor(this.world.random() * 15));
    await this.world.advance(500);
    this.#expectPaths("direct");
  }

  /** The direct way dies under steady traffic; what leaves after it was given up arrives. */
  async directToRelay(): Promise<void> {
    const { world } = this;
    const { random, internet } = world;
    const [a, b] = this.#pair;
    await this.#begin();
    a.send(b);
    await world.advance(3_000);
    this.#expectPaths("direct");
    const [one, other] = random() < 0.5 ? [a, b] : [b, a];
    const evidenceAt = new Map<SimMachine, Millis>();
    for (const machine of this.#pair)
      machine.agent!.device.events.on("silent", () => {
        if (world.now > cutAt && !evidenceAt.has(machine)) evidenceAt.set(machine, world.now);
      });
    const [x, y] = [addressOf(one), addressOf(other)];
    // One way or both; addresses of NATs are those that the internet sees.
    internet.cut.add(`${x}>${y}`);
    if (random() < 0.7) internet.cut.add(`${y}>${x}`);
    const cutAt = world.now;
    const leftAt = new Map<SimMachine, Millis>();
    const watch = (): void => {
      for (const [machine, peer] of [
        [a, b],
        [b, a],
      ] as const) {
        const path: PeerPath = machine.peer(peer).path;
        if (path.kind === "relay" && !leftAt.has(machine)) leftAt.set(machine, world.now);
      }
    };
    await this.#talk(4_000, 3 + Math.floor(random() * 20), watch);
    await world.advance(1_000);
    for (const machine of this.#pair) {
      const [evidence, left] = [evidenceAt.get(machine), leftAt.get(machine)];
      this.#expect(left !== undefined, `${machine.name} is still on the dead way`);
      if (evidence !== undefined && left !== undefined)
        this.#expect(left - evidence <= 1_000, `${machine.name} left ${left - evidence} ms after the evidence`);
    }
    this.#isExcused = ({ from, sentAt, losses }) => {
      const left = leftAt.get(from);
      // The data worker learns of the new path within its lag.
      return losses.every((why) => why === "cut") && (left === undefined || sentAt <= left + from.agent!.plane.lag);
    };
  }

  /** Packets at any moment of an agreement about sleep, or of a GO_IDLE between agents of other kinds. */
  async sleepCrossing(): Promise<void> {
    const { world } = this;
    const { random, signal } = world;
    const [a, b] = this.#pair;
    await this.#begin();
    a.send(b);
    await world.advance(1_000);
    b.send(a);
    let seen = false;
    signal.observe = (_from, _to, body) => {
      seen ||= body.type === Body_Type.GO_IDLE;
    };
    if (random() < 0.5) {
      this.#expect(await world.until(3 * THRESHOLD, () => seen), "nobody proposes to sleep");
    } else {
      await world.advance(Math.round(random() * 4_000));
      const [asker, asked] = random() < 0.5 ? [a, b] : [b, a];
      asker.agent!.engine.connections.sleep(asked.publicKey, "asked to");
    }
    const first = world.now;
    const sides = random() < 0.4 ? [a, b] : [random() < 0.5 ? a : b];
    const span = 6 * world.internet.delay + 60;
    for (const from of sides) {
      const to = from === a ? b : a;
      const count = 1 + Math.floor(random() ** 2 * 20);
      const at = Math.round(random() * span);
      for (let i = 0; i < count; i++) world.time.after(at + i * Math.round(random() * 5), () => void from.send(to));
    }
    await world.advance(3_000);
    this.#expectConnected();
    await world.advance(4 * THRESHOLD);
    this.#expect(!a.peer(b).awake && !b.peer(a).awake, `the pair does not sleep after it was disturbed at ${first} ms`);
  }

  async #begin(): Promise<void> {
    this.world.startAll();
    await this.world.advance(5_000);
  }

  async #talk(duration: Millis, interval: Millis, between?: () => void): Promise<void> {
    const [a, b] = this.#pair;
    for (let at = 0; at < duration; at += interval) {
      a.send(b);
      b.send(a);
      await this.world.advance(interval, between);
    }
    await this.world.advance(1_000, between);
  }

  #expect(holds: boolean, otherwise: string): void {
    if (!holds) this.#failures.push(otherwise);
  }

  #expectConnected(): void {
    const [a, b] = this.#pair;
    const both = `${a.peer(b).status} / ${b.peer(a).status}`;
    this.#expect(both === "connected / connected", `after ${this.#kind} the ends are ${both}`);
  }

  #expectPaths(kind: PeerPath["kind"]): void {
    const [a, b] = this.#pair;
    const both = `${a.peer(b).path.kind} / ${b.peer(a).path.kind}`;
    this.#expect(both === `${kind} / ${kind}`, `paths are ${both}`);
  }
}

/** Where the direct way matters it must be possible. */
function pickNats(kind: Transition, seed: number): readonly [NatKind, NatKind] {
  const all = NAT_KINDS.flatMap((a) => NAT_KINDS.map((b) => [a, b] as const));
  const fit = kind === "wake" || kind === "sleep crossing" ? all : all.filter(([a, b]) => isDirectPossible(a, b));
  return fit[seed % fit.length]!;
}

/** As the internet sees it. */
function addressOf(machine: SimMachine): string {
  return machine.nat.kind === "none" ? machine.endpoint.address : machine.nat.address;
}
