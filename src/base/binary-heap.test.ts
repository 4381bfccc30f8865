import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { BinaryHeap } from "./binary-heap.ts";

interface Item {
  readonly rank: number;
}

const createHeap = (): BinaryHeap<Item> => new BinaryHeap((a, b) => a.rank < b.rank);

test("whatever is put in and taken out, the first is the least of those inside", () => {
  const step = fc.option(fc.integer({ min: 0, max: 50 }), { freq: 3 });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 300 }), (steps) => {
      const heap = createHeap();
      const model: number[] = [];
      for (const rank of steps) {
        if (rank === null) assert.equal(heap.pop()?.rank, model.shift());
        else {
          heap.push({ rank });
          model.push(rank);
          model.sort((a, b) => a - b);
        }
        assert.deepEqual({ size: heap.size, first: heap.first?.rank }, { size: model.length, first: model[0] });
      }
    }),
  );
});

test("a cleared heap is empty and can be filled again", () => {
  const heap = createHeap();
  for (const rank of [3, 1, 2]) heap.push({ rank });
  heap.clear();
  assert.deepEqual([heap.size, heap.first, heap.pop()], [0, undefined, undefined]);
  heap.push({ rank: 7 });
  assert.equal(heap.pop()?.rank, 7);
});
