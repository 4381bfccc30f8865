import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { openDataDir } from "./data-dir.ts";

const base = mkdtempSync(join(tmpdir(), "perch-data-"));
after(() => rmSync(base, { recursive: true }));
let counter = 0;
const fresh = (): string => join(base, `d${counter++}`);

test("a missing directory is made for its owner alone", () => {
  const path = join(fresh(), "a", "b");
  using _ = openDataDir(path);
  assert.equal(statSync(path).mode & 0o777, 0o700);
});

test("a directory is held by one at a time, and free again after close", () => {
  const path = fresh();
  const first = openDataDir(path);
  assert.throws(() => openDataDir(path), { code: "data-dir-locked", message: new RegExp(path) });
  first.close();
  first.close();
  using _ = openDataDir(path);
});

test("the lock of a killed process is free", async () => {
  const path = fresh();
  const script = `const { openDataDir } = await import(${JSON.stringify(new URL("./data-dir.ts", import.meta.url).href)});
    globalThis.held = openDataDir(${JSON.stringify(path)});
    console.log("held");
    setInterval(() => {}, 1000);`;
  const holder = spawn(process.execPath, ["--input-type=module", "-e", script], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  await once(holder.stdout, "data");
  assert.throws(() => openDataDir(path), { code: "data-dir-locked" });
  holder.kill("SIGKILL");
  await once(holder, "exit");
  using _ = openDataDir(path);
});

test("undoing a start removes what it made, and only that", () => {
  const made = join(fresh(), "below");
  openDataDir(made).close({ undo: true });
  assert.ok(!existsSync(join(made, "..")));
  const there = fresh();
  mkdirSync(there);
  writeFileSync(join(there, "mine"), "");
  openDataDir(there).close({ undo: true });
  assert.deepEqual(readdirSync(there), ["mine"]);
  openDataDir(there).close();
  openDataDir(there).close({ undo: true });
  assert.deepEqual(readdirSync(there), ["lock", "mine"]);
});

test("a path that cannot be a data directory is refused with its name", () => {
  const file = fresh();
  writeFileSync(file, "");
  for (const path of [file, join(file, "below"), "/proc/perch"])
    assert.throws(() => openDataDir(path), { code: "data-dir-unusable", message: new RegExp(path) }, path);
});

test("a path too long for the admin socket is refused with the limit", () => {
  const long = join(base, "x".repeat(120));
  assert.throws(() => openDataDir(long), { code: "data-dir-unusable", message: /at most 107/ });
  assert.ok(!existsSync(long));
});
