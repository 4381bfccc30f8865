import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { hashText, SlotIndex, Slots } from "./slot-index.ts";

test("finds what was added and not removed, like a map of lists, also where hashes are the same", () => {
  // Few hashes: at both ends, where probing wraps around, and equal ones.
  const hash = fc.constantFrom(0, 1, 2 ** 31, 2 ** 32 - 2, 2 ** 32 - 1);
  const change = fc.record({
    kind: fc.constantFrom("add", "add", "remove"),
    hash,
    slot: fc.integer({ min: 0, max: 40 }),
  });
  fc.assert(
    fc.property(fc.array(change, { maxLength: 300 }), (changes) => {
      const index = new SlotIndex();
      const model = new Map<string, { readonly hash: number; readonly slot: number }>();
      for (const { kind, hash, slot } of changes) {
        const key = `${hash} ${slot}`;
        if (kind === "add" && !model.has(key)) {
          model.set(key, { hash, slot });
          index.add(hash, slot);
        } else if (kind === "remove") assert.equal(index.remove(hash, slot), model.delete(key));
      }
      assert.equal(index.size, model.size);
      for (const { hash, slot } of model.values())
        assert.equal(
          index.find(hash, (each) => each === slot),
          slot,
        );
      assert.equal(
        index.find(0, () => true) >= 0,
        [...model.values()].some((each) => each.hash === 0),
      );
      assert.equal(
        index.find(7, () => true),
        -1,
      );
    }),
    { numRuns: 300 },
  );
});

test("50,000 texts that differ in a letter are found, hardly ever after a look at another", () => {
  const index = new SlotIndex();
  const texts = Array.from({ length: 50_000 }, (_, number) => `host-${String(number).padStart(5, "0")}.perch.internal`);
  for (const [slot, text] of texts.entries()) index.add(hashText(text), slot);
  let looks = 0;
  for (const [slot, text] of texts.entries()) {
    const found = index.find(hashText(text), (each) => {
      looks++;
      return texts[each] === text;
    });
    assert.equal(found, slot);
  }
  // One for each, and a few more where 32 bits are the same.
  assert.ok(looks < texts.length + 20, `${looks} looks`);
});

test("what comes and goes for ever takes no more room than what is there", () => {
  const index = new SlotIndex();
  for (let round = 0; round < 200_000; round++) {
    index.add(hashText(`${round}`), round % 100);
    if (round >= 10) assert.ok(index.remove(hashText(`${round - 10}`), (round - 10) % 100));
  }
  assert.equal(index.size, 10);
});

test("a slot that was given back is taken again, once", () => {
  const slots = new Slots<string>();
  assert.deepEqual(
    ["a", "b", "c"].map((row) => slots.take(row)),
    [0, 1, 2],
  );
  slots.give(1);
  slots.give(1);
  slots.give(-1);
  assert.deepEqual(
    [0, 1, 2, -1].map((slot) => slots.at(slot)),
    ["a", undefined, "c", undefined],
  );
  assert.deepEqual(
    ["d", "e"].map((row) => slots.take(row)),
    [1, 3],
  );
});
