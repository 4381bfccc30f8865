import assert from "node:assert/strict";
import { describe, it } from "node:test";
import fc from "fast-check";
import { DeadlineQueue } from "./deadline-queue.ts";

describe("the deadline queue", () => {
  it("behaves like a map that is searched for its earliest entry", () => {
    const command = fc.oneof(
      fc.record({
        kind: fc.constant("set" as const),
        id: fc.integer({ min: 0, max: 20 }),
        at: fc.integer({ min: 0, max: 100 }),
      }),
      fc.record({ kind: fc.constant("cancel" as const), id: fc.integer({ min: 0, max: 20 }), at: fc.constant(0) }),
      fc.record({ kind: fc.constant("take" as const), id: fc.constant(0), at: fc.integer({ min: 0, max: 100 }) }),
    );
    fc.assert(
      fc.property(fc.array(command, { maxLength: 400 }), (commands) => {
        const queue = new DeadlineQueue<number>();
        const model = new Map<number, number>();
        for (const { kind, id, at } of commands) {
          if (kind === "set") {
            queue.set(id, at);
            model.set(id, at);
          } else if (kind === "cancel") {
            queue.cancel(id);
            model.delete(id);
          } else {
            const earliest = Math.min(...model.values());
            const taken = queue.takeDue(at);
            if (earliest > at) assert.equal(taken, undefined);
            else {
              assert.equal(model.get(taken!), earliest);
              model.delete(taken!);
            }
          }
          assert.equal(queue.size, model.size);
          assert.equal(queue.next(), model.size ? Math.min(...model.values()) : undefined);
        }
      }),
    );
  });

  it("does not grow when one deadline is moved again and again", () => {
    const queue = new DeadlineQueue<number>();
    const before = process.memoryUsage().heapUsed;
    for (let i = 0; i < 200_000; i++) queue.set(1, i);
    assert.ok(process.memoryUsage().heapUsed - before < 32 << 20);
    assert.equal(queue.size, 1);
    assert.equal(queue.takeDue(199_999), 1);
  });
});
