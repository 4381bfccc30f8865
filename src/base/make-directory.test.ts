import assert from "node:assert/strict";
import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { makeDirectory } from "./make-directory.ts";

test("missing directories are made, and the topmost one is named", (t) => {
  const root = mkdtempSync(join(tmpdir(), "perch-directory-"));
  t.after(() => rmSync(root, { recursive: true }));
  assert.equal(makeDirectory(root, 0o700), undefined);
  assert.equal(makeDirectory(join(root, "a", "b", "c"), 0o700), join(root, "a"));
  assert.equal(statSync(join(root, "a", "b")).mode & 0o777, 0o700);
  assert.equal(makeDirectory(join(root, "a", "b", "d"), 0o700), join(root, "a", "b", "d"));
});

test("a file in the way is named, also further up", (t) => {
  const root = mkdtempSync(join(tmpdir(), "perch-directory-"));
  t.after(() => rmSync(root, { recursive: true }));
  const file = join(root, "file");
  writeFileSync(file, "");
  assert.throws(() => makeDirectory(file, 0o700), { message: `${file} is not a directory` });
  assert.throws(() => makeDirectory(join(file, "a", "b"), 0o700), /ENOTDIR|is not a directory/);
});

test("a place where nothing can be made is an error and not an endless wait", () => {
  assert.throws(() => makeDirectory("/proc/perch/state", 0o700), { code: "ENOENT" });
});
