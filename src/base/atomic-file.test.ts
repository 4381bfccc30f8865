import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { replaceFile, writeFileAtomically } from "./atomic-file.ts";

function scratch(): Disposable & { readonly dir: string } {
  const dir = mkdtempSync(join(tmpdir(), "perch-atomic-"));
  return { dir, [Symbol.dispose]: () => rmSync(dir, { recursive: true }) };
}

for (const write of [writeFileAtomically, replaceFile]) {
  test(`${write.name} replaces a file whole, and a draft that a crash left goes with it`, async () => {
    using at = scratch();
    const path = join(at.dir, "secret");
    writeFileSync(`${path}.new`, "half of an old dra", { mode: 0o644 });
    await write(path, "first");
    await write(path, "second and longer");
    assert.equal(readFileSync(path, "utf8"), "second and longer");
    assert.equal(statSync(path).mode & 0o777, 0o600);
    assert.deepEqual(readdirSync(at.dir), ["secret"]);
  });

  test(`what ${write.name} cannot write leaves nothing behind`, async () => {
    using at = scratch();
    mkdirSync(join(at.dir, "secret", "in the way"), { recursive: true });
    await assert.rejects(async () => write(join(at.dir, "secret"), "x"), { code: "EISDIR" });
    assert.deepEqual(readdirSync(at.dir), ["secret"]);
  });
}
