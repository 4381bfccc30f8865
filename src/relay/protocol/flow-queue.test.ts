import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { FlowQueue, QueueBudget } from "./flow-queue.ts";

const options = { maxBytes: 10_000, maxAgeMs: 250, maxHandshakeBytes: 300 };
const message = (text: string, length = 100): Uint8Array => Buffer.alloc(length, text);

function drain(queue: FlowQueue, now = 0): string[] {
  const taken: string[] = [];
  for (;;) {
    const next = queue.take(now);
    if (!next) return taken;
    taken.push(String.fromCharCode(next[0]!));
  }
}

test("own messages go first, then handshakes, then data", () => {
  const queue = new FlowQueue(options);
  queue.pushData("x", message("d"), 0);
  queue.pushHandshake(message("h"));
  queue.pushOwn(message("o"));
  assert.equal(queue.bytes, 300);
  assert.deepEqual(drain(queue), ["o", "h", "d"]);
  assert.ok(queue.isEmpty);
  assert.equal(queue.bytes, 0);
});

test("two sources share evenly by bytes, whatever the sizes of their packets", () => {
  const queue = new FlowQueue({ ...options, maxBytes: 10_000_000 });
  for (let i = 0; i < 1000; i++) queue.pushData("a", message("a", 1400), 0);
  for (let i = 0; i < 1000; i++) queue.pushData("b", message("b", 140), 0);
  const bytes = { a: 0, b: 0 };
  for (let i = 0; i < 500; i++) {
    const next = queue.take(0)!;
    bytes[next[0] === 97 ? "a" : "b"] += next.length;
  }
  assert.ok(Math.abs(bytes.a - bytes.b) <= 3000, JSON.stringify(bytes));
});

test("a source that was alone for long is not starved when another joins", () => {
  const queue = new FlowQueue({ ...options, maxBytes: 10_000_000 });
  for (let i = 0; i < 1000; i++) queue.pushData("a", message("a", 1000), 0);
  for (let i = 0; i < 500; i++) queue.take(0);
  for (let i = 0; i < 100; i++) queue.pushData("b", message("b", 1000), 0);
  const next = Array.from({ length: 20 }, () => String.fromCharCode(queue.take(0)![0]!));
  assert.ok(next.filter((text) => text === "a").length >= 8, next.join(""));
});

test("the oldest message of the longest flow gives way, so a small flow keeps its own", () => {
  const queue = new FlowQueue({ ...options, maxBytes: 1000 });
  queue.pushData("small", message("s"), 0);
  for (const text of "0123456789") queue.pushData("large", message(text), 0);
  assert.equal(queue.dropped, 1);
  const taken = drain(queue);
  assert.ok(taken.includes("s"));
  assert.deepEqual(
    taken.filter((text) => text !== "s"),
    [..."123456789"],
  );
});

test("data that waited too long is dropped, handshakes are not", () => {
  const queue = new FlowQueue(options);
  queue.pushData("x", message("1"), 0);
  queue.pushHandshake(message("h"));
  queue.pushData("x", message("2"), 100);
  assert.deepEqual(drain(queue, 251), ["h", "2"]);
  assert.equal(queue.dropped, 1);
});

test("handshakes are bounded, the oldest gives way", () => {
  const queue = new FlowQueue(options);
  for (const text of "12345") queue.pushHandshake(message(text));
  assert.deepEqual(drain(queue), ["3", "4", "5"]);
  assert.equal(queue.dropped, 2);
});

test("whatever is pushed and taken, nothing is lost uncounted and each source keeps its order", () => {
  const push = fc.record({ source: fc.integer({ min: 0, max: 3 }), length: fc.integer({ min: 8, max: 8820 }) });
  const step = fc.oneof(push, fc.constant("take" as const));
  fc.assert(
    fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
      const queue = new FlowQueue({ ...options, maxBytes: 40_000 });
      const last = new Map<number, number>();
      let pushed = 0;
      let taken = 0;
      const note = (next: Uint8Array | undefined): boolean => {
        if (!next) return false;
        taken++;
        const view = Buffer.from(next.buffer, next.byteOffset, next.length);
        const source = view.readUInt32BE(0);
        assert.ok(view.readUInt32BE(4) > (last.get(source) ?? 0));
        last.set(source, view.readUInt32BE(4));
        return true;
      };
      for (const entry of steps) {
        if (entry === "take") {
          note(queue.take(0));
          continue;
        }
        const bytes = Buffer.alloc(entry.length);
        bytes.writeUInt32BE(entry.source, 0);
        bytes.writeUInt32BE(++pushed, 4);
        queue.pushData(entry.source, bytes, 0);
        assert.ok(queue.bytes <= 40_000);
      }
      while (note(queue.take(0)));
      assert.equal(taken + queue.dropped, pushed);
      assert.equal(queue.bytes, 0);
    }),
  );
});

test("queues with a common budget never hold more than it, and many full ones hold equal parts", () => {
  const budget = new QueueBudget(100_000);
  const queues = Array.from({ length: 20 }, () => new FlowQueue({ ...options, maxBytes: 50_000, budget }));
  for (let round = 0; round < 600; round++) {
    for (const queue of queues) {
      queue.pushData("source", message("d"), 0);
      if (round % 100 === 0) queue.pushHandshake(message("h"));
      assert.ok(budget.bytes <= budget.maxBytes);
    }
  }
  const held = queues.map(({ bytes }) => bytes);
  assert.equal(
    held.reduce((sum, bytes) => sum + bytes, 0),
    budget.bytes,
  );
  assert.ok(Math.min(...held) >= 0.5 * Math.max(...held), held.join());
  assert.ok(budget.bytes >= 0.8 * budget.maxBytes);
  assert.ok(budget.dropped > 0);
  for (const queue of queues) queue.clear();
  assert.equal(budget.bytes, 0);
});

test("one full queue leaves half of the budget, so that another loses nothing", () => {
  const budget = new QueueBudget(100_000);
  const [slow, quick] = [0, 1].map(() => new FlowQueue({ ...options, maxBytes: 1_000_000, budget })) as [
    FlowQueue,
    FlowQueue,
  ];
  for (let round = 0; round < 2000; round++) slow.pushData("source", message("d"), 0);
  for (let round = 0; round < 100; round++) quick.pushData("source", message("d"), 0);
  assert.equal(quick.dropped, 0);
  assert.equal(slow.bytes, 50_000);
});

test("the budget counts what is taken, dropped for age and cleared, whatever the order", () => {
  const operation = fc.record({
    queue: fc.nat(2),
    kind: fc.constantFrom("data", "handshake", "own", "take", "clear"),
    length: fc.integer({ min: 1, max: 900 }),
    wait: fc.nat(200),
  });
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 200 }), (operations) => {
      const budget = new QueueBudget(3000);
      const queues = [0, 1, 2].map(() => new FlowQueue({ ...options, maxBytes: 2000, budget }));
      let now = 0;
      for (const { queue: index, kind, length, wait } of operations) {
        const queue = queues[index]!;
        now += wait;
        if (kind === "data") queue.pushData(length % 3, message("d", length), now);
        else if (kind === "handshake") queue.pushHandshake(message("h", length));
        else if (kind === "own") queue.pushOwn(message("o", length));
        else if (kind === "clear") queue.clear();
        else queue.take(now);
        assert.ok(budget.bytes >= 0 && budget.bytes <= budget.maxBytes);
      }
      for (const queue of queues) while (queue.take(now));
      assert.equal(budget.bytes, 0);
    }),
  );
});

test("a source that fills the queue for long loses messages; handshakes and a source with little do not", () => {
  const queue = new FlowQueue({ maxBytes: 1e7, maxAgeMs: 1e4, maxHandshakeBytes: 1e6 });
  const taken = new Map<string, number>();
  const take = (now: number): number => {
    const next = queue.take(now);
    if (!next) return 0;
    const text = String.fromCharCode(next[0]!);
    taken.set(text, (taken.get(text) ?? 0) + 1);
    return next.length;
  };
  for (let now = 0; now < 3_000; now++) {
    for (let i = 0; i < 2; i++) queue.pushData("large", message("l", 1350), now);
    if (now % 10 === 0) {
      queue.pushData("small", message("s"), now);
      queue.pushHandshake(message("h"));
    }
    // A link of about one large message per millisecond.
    for (let bytes = 0; bytes < 1350; ) bytes += take(now);
  }
  assert.ok(queue.droppedEarly > 0);
  assert.equal(queue.dropped, queue.droppedEarly);
  while (take(3_000) > 0);
  assert.deepEqual([...taken].sort(), [
    ["h", 300],
    ["l", 6_000 - queue.droppedEarly],
    ["s", 300],
  ]);
});

test("1 MiB of one source passes whole, at once or one by one", () => {
  for (const perMs of [10_000, 5]) {
    const queue = new FlowQueue({ maxBytes: 1280 * 1024, maxAgeMs: 1_000, maxHandshakeBytes: 0 });
    let left = 776;
    let arrived = 0;
    for (let now = 0; left > 0 || !queue.isEmpty; now++) {
      for (let i = 0; i < perMs && left > 0; i++, left--) queue.pushData("a", message("a", 1350), now);
      queue.endTurn();
      if (queue.take(now)) arrived++;
    }
    assert.equal(arrived, 776, `${perMs} per millisecond`);
  }
});
