import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { FlowQueue } from "./flow-queue.ts";

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
