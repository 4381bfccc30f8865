import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { writeFileAtomically } from "./atomic-file.ts";

function scratch(): Disposable & { readonly dir: string } {
  const dir = mkdtempSync(join(tmpdir(), "perch-atomic-"));
  return { dir, [Symbol.dispose]: () => rmSync(dir, { recursive: true }) };
}

test("a file is replaced whole, and a draft that a crash left goes with it", () => {
  using at = scratch();
  const path = join(at.dir, "secret");
  writeFileSync(`${path}.new`, "half of an old dra", { mode: 0o644 });
  writeFileAtomically(path, "first");
  writeFileAtomically(path, "second and longer");
  assert.equal(readFileSync(path, "utf8"), "second and longer");
  assert.equal(statSync(path).mode & 0o777, 0o600);
  assert.deepEqual(readdirSync(at.dir), ["secret"]);
});

test("what cannot be written leaves nothing behind", () => {
  using at = scratch();
  mkdirSync(join(at.dir, "secret", "in the way"), { recursive: true });
  assert.throws(() => writeFileAtomically(join(at.dir, "secret"), "x"), { code: "EISDIR" });
  assert.deepEqual(readdirSync(at.dir), ["secret"]);
});
