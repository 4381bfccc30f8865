import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { AllowedIps } from "./allowed-ips.ts";

type Words = readonly [number, number, number, number];

/** The list that the table must agree with: every prefix, longest match by looking at all. */
class Linear {
  entries: { words: Words; bits: number; slot: number }[] = [];

  static covers(prefix: Words, bits: number, address: Words): boolean {
    for (let bit = 0; bit < bits; bit++) {
      const at = 31 - (bit % 32);
      const word = bit >> 5;
      if (((prefix[word]! >>> at) & 1) !== ((address[word]! >>> at) & 1)) return false;
    }
    return true;
  }

  same(words: Words, bits: number): (entry: { words: Words; bits: number }) => boolean {
    return (entry) => entry.bits === bits && Linear.covers(entry.words, bits, words);
  }

  add(words: Words, bits: number, slot: number): void {
    this.entries = this.entries.filter((entry) => !this.same(words, bits)(entry));
    this.entries.push({ words, bits, slot });
  }

  remove(words: Words, bits: number, slot: number): void {
    this.entries = this.entries.filter((entry) => !(this.same(words, bits)(entry) && entry.slot === slot));
  }

  lookup(address: Words): number {
    let best = { bits: -1, slot: -1 };
    for (const entry of this.entries) {
      if (entry.bits > best.bits && Linear.covers(entry.words, entry.bits, address)) best = entry;
    }
    return best.slot;
  }
}

// Few distinct bits, so that prefixes nest, collide and move.
const word = fc.constantFrom(0, 1, -1, 0x0a000001, 0x0a000002, 0x0a400000, 0x7fffffff, -2147483648);

for (const maxBits of [32, 128] as const) {
  const words =
    maxBits === 32 ? fc.tuple(word, fc.constant(0), fc.constant(0), fc.constant(0)) : fc.tuple(word, word, word, word);
  const operation = fc.record({
    kind: fc.constantFrom(
      "add" as const,
      "add" as const,
      "add" as const,
      "remove" as const,
      "removePeer" as const,
      "lookup" as const,
    ),
    words,
    bits: fc.oneof(fc.constant(maxBits), fc.integer({ min: 0, max: maxBits })),
    slot: fc.nat(5),
  });
  test(`longest prefix, moves and removals agree with a plain list (${maxBits} bits)`, () => {
    fc.assert(
      fc.property(
        fc.array(operation, { maxLength: 200 }),
        fc.array(words, { maxLength: 20 }),
        (operations, addresses) => {
          const table = new AllowedIps(maxBits);
          const list = new Linear();
          for (const { kind, words: w, bits, slot } of operations) {
            if (kind === "add") {
              table.add(...w, bits, slot);
              list.add(w, bits, slot);
            } else if (kind === "remove") {
              table.remove(...w, bits, slot);
              list.remove(w, bits, slot);
            } else if (kind === "removePeer") {
              table.removePeer(slot);
              list.entries = list.entries.filter((entry) => entry.slot !== slot);
            } else {
              assert.equal(table.lookup(...w), list.lookup(w));
            }
            assert.equal(table.size, list.entries.length);
          }
          for (const address of addresses) assert.equal(table.lookup(...address), list.lookup(address));
        },
      ),
      { numRuns: 200 },
    );
  });
}

test("100,000 host prefixes are found, removed one by one, and leave nothing", () => {
  const table = new AllowedIps(32);
  const address = (slot: number): number => 0x64400000 + slot;
  for (let slot = 0; slot < 100_000; slot++) table.add(address(slot), 0, 0, 0, 32, slot);
  table.add(0, 0, 0, 0, 0, 7);
  for (let slot = 0; slot < 100_000; slot += 997) assert.equal(table.lookup(address(slot), 0, 0, 0), slot);
  assert.equal(table.lookup(0x01020304, 0, 0, 0), 7);
  for (let slot = 0; slot < 100_000; slot += 2) table.removePeer(slot);
  for (let slot = 1; slot < 1000; slot++) assert.equal(table.lookup(address(slot), 0, 0, 0), slot % 2 === 0 ? 7 : slot);
  for (let slot = 1; slot < 100_000; slot += 2) table.removePeer(slot);
  table.removePeer(7);
  assert.equal(table.size, 0);
  assert.equal(table.lookup(address(1), 0, 0, 0), -1);
});

test("100,000 random prefixes of all lengths, moved and removed at random, give what a list gives", () => {
  let state = 12345;
  const random = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return state ^ (state >>> 16);
  };
  const table = new AllowedIps(32);
  // Bit by bit would take minutes here: a list of masks is as plain.
  const list = new Map<string, { word: number; mask: number; bits: number; slot: number }>();
  const masks = Array.from({ length: 33 }, (_, bits) => (bits === 0 ? 0 : (-1 << (32 - bits)) | 0));
  const keys: string[] = [];
  for (let i = 0; i < 100_000; i++) {
    const bits = (random() >>> 8) % 33;
    const mask = masks[bits]!;
    const word = random() & mask;
    const slot = (random() >>> 4) % 5000;
    table.add(word, 0, 0, 0, bits, slot);
    const key = `${word}/${bits}`;
    if (!list.has(key)) keys.push(key);
    list.set(key, { word, mask, bits, slot });
  }
  for (let i = 0; i < 10_000; i++) {
    const entry = list.get(keys[(random() >>> 1) % keys.length]!);
    if (!entry) continue;
    table.remove(entry.word, 0, 0, 0, entry.bits, entry.slot);
    list.delete(`${entry.word}/${entry.bits}`);
  }
  for (let slot = 0; slot < 500; slot++) table.removePeer(slot);
  const entries = [...list.values()].filter(({ slot }) => slot >= 500);
  assert.equal(table.size, entries.length);
  const addresses = Array.from({ length: 400 }, (_, i) =>
    i % 2 === 0 ? random() : entries[(random() >>> 1) % entries.length]!.word | ((random() >>> 1) & 0xff),
  );
  for (const address of addresses) {
    let best = { bits: -1, slot: -1 };
    for (const entry of entries) if ((address & entry.mask) === entry.word && entry.bits > best.bits) best = entry;
    assert.equal(table.lookup(address, 0, 0, 0), best.slot);
  }
});
