import assert from "node:assert/strict";
import { test } from "node:test";
import { PrivateKey } from "#base/keys.ts";
import { ManualClock, type Millis } from "#base/time.ts";
import { createGoIdleBody } from "#signal/protocol/offer.ts";
import { createSleepBody, type SleepMessage } from "#signal/protocol/sleep-message.ts";
import type { PeerConnection } from "../peer/peer-connection.ts";
import { PROPOSAL_PAUSES } from "./sleep-agreement.ts";
import { Sleeper } from "./sleeper.ts";

const THRESHOLD = 60_000;

/** One awake peer whose other end the test plays. */
class Scene {
  readonly clock = new ManualClock(1_000_000);
  readonly key = PrivateKey.generate().publicKey;
  readonly said: (SleepMessage | "GO_IDLE")[] = [];
  readonly slept: string[] = [];
  readonly notes: string[] = [];
  readonly posted: string[] = [];
  awake = true;
  lazy = true;
  agreesOnSleep = true;
  signalWorks = true;
  status: "connected" | "connecting" = "connected";
  data = { lastDataRx: 0, lastDataTx: 0, stagedBytes: 0 };
  readonly wokeAt: Millis = this.clock.now();
  readonly sleeper: Sleeper;
  readonly connection: PeerConnection;

  constructor() {
    const scene = this;
    this.connection = {
      key: this.key,
      get awake() {
        return scene.awake;
      },
      get status() {
        return scene.status;
      },
      get agreesOnSleep() {
        return scene.agreesOnSleep;
      },
      wokeAt: this.wokeAt,
      provenAt: this.wokeAt,
      sayGoIdle: async () => {
        this.said.push("GO_IDLE");
        return this.signalWorks;
      },
      saySleep: (message: SleepMessage) => void this.said.push(message),
      note: (event: string) => void this.notes.push(event),
    } as unknown as PeerConnection;
    this.sleeper = new Sleeper(
      {
        clock: this.clock,
        device: { peerStats: () => this.data as never },
        find: () => this.connection,
        isLazy: () => this.lazy,
        matesOf: () => [],
        sleep: (key, reason) => {
          this.awake = false;
          this.slept.push(reason);
          this.sleeper.noteAsleep(key);
        },
        post: (_key, event) => void this.posted.push(event.kind),
      },
      THRESHOLD,
    );
    this.sleeper.watch(this.key);
  }

  hear(message: SleepMessage | "GO_IDLE"): void {
    this.sleeper.receive(this.connection, message === "GO_IDLE" ? createGoIdleBody() : createSleepBody(message));
  }

  /** The epoch of the last proposal. */
  get epoch(): number {
    const proposals = this.said.filter((message) => message !== "GO_IDLE" && message.kind === "propose");
    return proposals.at(-1)!.epoch;
  }
}

test("with a Perch agent a peer sleeps once it agrees, and owns no timer then", () => {
  const at = new Scene();
  at.clock.advance(THRESHOLD);
  assert.deepEqual(at.said, [{ kind: "propose", epoch: at.epoch, idle: THRESHOLD }]);
  assert.equal(at.awake, true);
  at.hear({ kind: "agree", epoch: at.epoch });
  assert.deepEqual(at.slept, ["no traffic for 1 min, the other side agreed"]);
  assert.equal(at.clock.pending, 0);
  at.hear({ kind: "propose", epoch: 5, idle: THRESHOLD });
  assert.deepEqual(at.said.at(-1), { kind: "agree", epoch: 5 });
});

test("a stock agent is told by GO_IDLE, at once", () => {
  const at = new Scene();
  at.agreesOnSleep = false;
  at.clock.advance(THRESHOLD);
  assert.deepEqual([at.said, at.slept], [["GO_IDLE"], ["no traffic for 1 min"]]);
});

test("a peer that no handshake proves is not asked", () => {
  const at = new Scene();
  at.status = "connecting";
  at.clock.advance(THRESHOLD);
  assert.deepEqual([at.said, at.awake], [["GO_IDLE"], false]);
});

test("without an answer the proposal is repeated, then the peer sleeps alone and says so", () => {
  const at = new Scene();
  at.clock.advance(THRESHOLD + PROPOSAL_PAUSES.reduce((sum, pause) => sum + pause));
  assert.deepEqual(
    at.said.map((message) => (message === "GO_IDLE" ? message : message.kind)),
    [...PROPOSAL_PAUSES.map(() => "propose"), "GO_IDLE"],
  );
  assert.deepEqual(at.slept, ["no traffic for 1 min, the other side did not answer"]);
  assert.equal(at.clock.pending, 0);
});

test("a GO_IDLE that signal did not take is said again when signal is back, unless the peer woke", async () => {
  for (const woke of [false, true]) {
    const at = new Scene();
    at.agreesOnSleep = false;
    at.signalWorks = false;
    at.clock.advance(THRESHOLD);
    await Promise.resolve();
    await Promise.resolve();
    if (woke) {
      at.awake = true;
      at.sleeper.noteAwake(at.key);
    }
    at.sleeper.signalReturned();
    assert.equal(at.said.length, woke ? 1 : 2);
  }
});

test("an end that stays connected for good is asked ever more rarely", () => {
  const at = new Scene();
  const pauses: Millis[] = [];
  let last = at.clock.now();
  for (let round = 0; round < 4; round++) {
    const before = at.said.length;
    while (at.said.length === before) at.clock.advance(1_000);
    pauses.push(at.clock.now() - last);
    last = at.clock.now();
    at.hear({ kind: "refuse", epoch: at.epoch, wait: undefined });
  }
  assert.equal(at.awake, true);
  assert.deepEqual(at.notes.filter((event) => event === "kept-alive").length, 4);
  for (const [index, pause] of pauses.entries()) if (index > 0) assert.ok(pause > pauses[index - 1]!, `${pauses}`);
});

test("traffic that crosses with an agreement calls the other end back", () => {
  const at = new Scene();
  at.clock.advance(THRESHOLD);
  at.clock.advance(20);
  at.data = { ...at.data, lastDataTx: at.clock.now() };
  at.clock.advance(60);
  at.hear({ kind: "agree", epoch: at.epoch });
  assert.deepEqual([at.awake, at.posted], [true, ["remote-idle"]]);
  at.clock.advance(THRESHOLD);
  assert.equal(at.said.length, 2);
});

test("a peer that becomes permanent while it proposes is proven, for the other end may sleep by now", () => {
  const at = new Scene();
  at.clock.advance(THRESHOLD);
  at.lazy = false;
  at.sleeper.unwatch(at.key);
  at.clock.advance(PROPOSAL_PAUSES[0]!);
  assert.deepEqual(at.posted, ["signal-back"]);
  at.clock.advance(10 * THRESHOLD);
  assert.deepEqual([at.said.length, at.clock.pending], [1, 0]);
});

test("a plain GO_IDLE of a Perch agent is an old one when it does not agree", () => {
  const at = new Scene();
  at.clock.advance(10_000);
  at.hear("GO_IDLE");
  assert.deepEqual(at.said, [{ kind: "propose", epoch: at.epoch, idle: 10_000 }]);
  at.hear({ kind: "refuse", epoch: at.epoch, wait: 2_000 });
  assert.equal(at.awake, true);
  at.hear("GO_IDLE");
  at.hear({ kind: "agree", epoch: at.epoch });
  assert.deepEqual(at.slept, ["it went idle, the other side agreed"]);
});

test("a plain GO_IDLE is followed, and answered where this end is wanted or permanent", () => {
  for (const [prepare, isFollowed] of [
    [() => {}, true],
    [(at: Scene) => (at.lazy = false), false],
    [(at: Scene) => (at.data = { ...at.data, stagedBytes: 10 }), false],
    [(at: Scene) => (at.data = { ...at.data, lastDataTx: at.clock.now() - 100 }), false],
  ] as const) {
    const at = new Scene();
    at.agreesOnSleep = false;
    at.clock.advance(10_000);
    prepare(at);
    at.hear("GO_IDLE");
    assert.equal(at.awake, !isFollowed);
    assert.deepEqual(at.posted, isFollowed ? [] : ["remote-idle"]);
  }
});
