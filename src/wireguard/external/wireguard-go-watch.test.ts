import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { setImmediate as nextTurn } from "node:timers/promises";
import { ManualClock, type Millis } from "#base/time.ts";
import { ASK_INTERVAL, WireguardGoWatch } from "./wireguard-go-watch.ts";

class Bed implements Disposable {
  readonly clock = new ManualClock();
  /** What the clock went on while nobody ran. */
  heldUp: Millis = 0;
  readonly reasons: string[] = [];
  readonly signals: AbortSignal[] = [];
  /** What becomes of a question. */
  answer: () => Promise<void> = () => Promise.resolve();
  readonly watch: WireguardGoWatch;

  constructor() {
    this.watch = new WireguardGoWatch({
      clock: {
        now: () => this.clock.now() + this.heldUp,
        wall: () => this.clock.wall(),
        after: (delay, callback) => this.clock.after(delay, callback),
      },
      ask: (signal) => {
        this.signals.push(signal);
        return this.answer();
      },
      hung: (reason) => this.reasons.push(reason),
    });
  }

  /** `heldUp`: before each quarter of a second. */
  async run(forMs: Millis, heldUp: Millis = 0): Promise<void> {
    for (let at = 0; at < forMs; at += 250) {
      this.heldUp += heldUp;
      this.clock.advance(250);
      await nextTurn();
    }
  }

  [Symbol.dispose](): void {
    this.watch[Symbol.dispose]();
  }
}

const never = (): Promise<void> => new Promise(() => {});
const refused = (): Promise<void> => Promise.reject(new Error("no device listens there"));

describe("the watch over wireguard-go", () => {
  it("asks every 5 s while there are answers", async () => {
    using bed = new Bed();
    await bed.run(60_000);
    assert.equal(bed.signals.length, 12);
    assert.deepEqual(bed.reasons, []);
  });

  for (const [how, answer] of [
    ["says nothing", never],
    ["cannot be talked to", refused],
  ] as const)
    it(`says so once when the program ${how} for two questions of 3 s`, async () => {
      using bed = new Bed();
      bed.answer = answer;
      await bed.run(ASK_INTERVAL + 5_750);
      assert.equal(bed.signals.length, 2);
      assert.equal(bed.signals[0]!.aborted, true);
      assert.deepEqual(bed.reasons, []);
      await bed.run(60_000);
      assert.deepEqual(bed.reasons, ["it did not answer for 6 s"]);
      assert.equal(bed.signals.length, 2);
    });

  it("is content with an answer to the second question, and counts anew then", async () => {
    using bed = new Bed();
    for (let round = 0; round < 3; round++) {
      bed.answer = never;
      await bed.run(ASK_INTERVAL);
      bed.answer = () => Promise.resolve();
      await bed.run(3_250);
    }
    assert.equal(bed.signals.length, 6);
    assert.deepEqual(bed.reasons, []);
  });

  it("does not count time in which we did not run ourselves", async () => {
    using bed = new Bed();
    bed.answer = never;
    await bed.run(ASK_INTERVAL);
    await bed.run(60_000, 600);
    assert.equal(bed.signals.length, 1);
    assert.deepEqual(bed.reasons, []);
    await bed.run(6_250);
    assert.equal(bed.reasons.length, 1);
  });

  it("does not take an answer for one to a later question", async () => {
    using bed = new Bed();
    const { promise, resolve } = Promise.withResolvers<void>();
    bed.answer = () => promise;
    await bed.run(ASK_INTERVAL);
    bed.answer = never;
    await bed.run(3_000);
    resolve();
    await bed.run(3_000);
    assert.equal(bed.reasons.length, 1);
  });

  it("leaves no timer and no question behind", async () => {
    using bed = new Bed();
    bed.answer = never;
    await bed.run(ASK_INTERVAL);
    bed.watch[Symbol.dispose]();
    assert.equal(bed.signals[0]!.aborted, true);
    assert.equal(bed.clock.pending, 0);
    await bed.run(60_000);
    assert.deepEqual(bed.reasons, []);
  });
});
