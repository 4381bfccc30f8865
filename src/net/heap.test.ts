import assert from "node:assert/strict";
import { test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { trimHeap } from "./heap.ts";
import { hasSymbol, loadLibrary } from "./libc.ts";

test("memory that was freed in the middle goes back to the system", {
  skip: hasSymbol(loadLibrary(null), "malloc_trim") ? false : "this C library cannot",
}, () => {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  const fill = (count: number): Buffer[] =>
    Array.from({ length: count }, () => Buffer.allocUnsafeSlow(32 * 1024).fill(1));
  let blocks = fill(1000);
  // What lies behind holds the top of the heap in its place.
  const behind = fill(8);
  const full = process.memoryUsage.rss();
  blocks = [];
  // The second collection waits until the blocks of the first are really freed.
  collect();
  collect();
  assert.equal(trimHeap(), true);
  const given = full - process.memoryUsage.rss();
  assert.ok(given > 20e6, `${given} of 32 MB given back`);
  assert.equal(behind.length + blocks.length, 8);
});
