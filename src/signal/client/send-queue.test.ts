import assert from "node:assert/strict";
import { test } from "node:test";
import { PrivateKey } from "#base/keys.ts";
import { ManualClock } from "#base/time.ts";
import { type SendOutcome, SendQueue } from "./send-queue.ts";
import type { SendResult } from "./signal-connection.ts";
import { SignalError } from "./signal-error.ts";

const alice = PrivateKey.generate().publicKey;
const bob = PrivateKey.generate().publicKey;

interface Sent {
  readonly text: string;
  readonly done: (result: SendResult) => void;
  aborted: boolean;
}

/** A queue over a connection that does nothing by itself. */
function setup(options: { maxInFlight?: number; laneMaxMessages?: number; maxBytes?: number } = {}) {
  const clock = new ManualClock();
  const queue = new SendQueue(
    { clock },
    { deadlineMs: 10_000, laneMaxMessages: 4, maxBytes: 100_000, maxInFlight: 10, ...options },
  );
  const sent: Sent[] = [];
  const transmit = (frame: Uint8Array, _timeoutMs: number, done: (result: SendResult) => void): (() => void) => {
    const entry: Sent = { text: Buffer.from(frame).toString(), done, aborted: false };
    sent.push(entry);
    return () => {
      entry.aborted = true;
    };
  };
  const push = (text: string, to = alice, unordered = false): Promise<SendOutcome> =>
    queue.push(to, Buffer.from(text), unordered);
  const texts = (): string[] => sent.map(({ text }) => text);
  return { clock, queue, sent, transmit, push, texts };
}

const passed: SendResult = { kind: "passed", delivered: true };
const broken: SendResult = {
  kind: "failed",
  error: new SignalError("signal-unreachable", "broken", { retryable: true }),
  retry: true,
};

test("towards a stock server messages to one peer go one by one, candidates side by side", async () => {
  const { queue, sent, transmit, push, texts } = setup();
  queue.open(transmit, false);
  void push("offer");
  void push("candidate 1", alice, true);
  void push("candidate 2", alice, true);
  void push("go idle");
  void push("other peer", bob);
  assert.deepEqual(texts(), ["offer", "other peer"]);
  sent[0]!.done(passed);
  assert.deepEqual(texts().slice(2), ["candidate 1", "candidate 2"]);
  sent[3]!.done(passed);
  assert.equal(sent.length, 4);
  sent[2]!.done(passed);
  assert.deepEqual(texts().slice(4), ["go idle"]);
});

test("a server that keeps the order gets everything at once, except around large messages", () => {
  const { queue, sent, transmit, push, texts } = setup();
  queue.open(transmit, true);
  void push("offer");
  void push("answer");
  void push("L".repeat(9000));
  void push("after");
  assert.deepEqual(texts(), ["offer", "answer"]);
  sent[0]!.done(passed);
  sent[1]!.done(passed);
  assert.equal(sent.length, 3);
  sent[2]!.done(passed);
  assert.equal(texts()[3], "after");
});

test("what was under way when the connection broke is sent again in its order", async () => {
  const { queue, sent, transmit, push, texts } = setup();
  queue.open(transmit, true);
  const outcomes = [push("1"), push("2"), push("3")];
  sent[0]!.done(passed);
  // One failure is reported before the loss of the connection, as HTTP/2 does.
  sent[2]!.done(broken);
  queue.pause();
  assert.ok(sent[1]!.aborted);
  queue.open(transmit, false);
  assert.equal(texts()[3], "2");
  sent[3]!.done(passed);
  assert.equal(texts()[4], "3");
  sent[4]!.done({ kind: "passed", delivered: undefined });
  assert.deepEqual(await Promise.all(outcomes), [{ delivered: true }, { delivered: true }, { delivered: undefined }]);
  assert.equal(queue.bytes, 0);
});

test("a message that cannot be sent fails at its deadline and leaves no timer", async () => {
  const { clock, queue, push } = setup();
  const outcome = push("late");
  clock.advance(9_999);
  assert.equal(queue.bytes, 4);
  clock.advance(1);
  const { delivered, failure } = await outcome;
  assert.equal(delivered, undefined);
  assert.equal(failure?.code, "signal-send-timeout");
  assert.equal(clock.pending, 0);
  assert.equal(queue.bytes, 0);
});

test("the oldest message gives way when too many wait for one peer", async () => {
  const { queue, transmit, push, texts } = setup({ laneMaxMessages: 2 });
  const first = push("1");
  void push("2");
  void push("3");
  assert.equal((await first).failure?.code, "signal-queue-full");
  queue.open(transmit, true);
  assert.deepEqual(texts(), ["2", "3"]);
});

test("a message beyond the bytes allowed is refused", async () => {
  const { queue, push } = setup({ maxBytes: 5 });
  void push("1234");
  assert.equal((await push("56", bob)).failure?.code, "signal-queue-full");
  assert.equal(queue.bytes, 4);
});

test("lanes wait for a free place and get it in turn", async () => {
  const { queue, sent, transmit, push, texts } = setup({ maxInFlight: 1 });
  queue.open(transmit, true);
  void push("1");
  void push("2", bob);
  assert.deepEqual(texts(), ["1"]);
  sent[0]!.done(passed);
  await Promise.resolve();
  assert.deepEqual(texts(), ["1", "2"]);
});

test("clear fails what waits and what is under way", async () => {
  const { clock, queue, transmit, push } = setup();
  queue.open(transmit, false);
  const outcomes = [push("1"), push("2")];
  queue.clear("signal-closed");
  for (const outcome of await Promise.all(outcomes)) assert.equal(outcome.failure?.code, "signal-closed");
  assert.equal(clock.pending, 0);
});
