import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { ROOT } from "./source-files.ts";

const tool = (name: string): string => join(ROOT, "node_modules/.bin", name);

test("tsc finds nothing in web", () => {
  const { status, stdout, error } = spawnSync(process.execPath, [tool("tsc"), "-p", "web"], {
    cwd: ROOT,
    encoding: "utf8",
  });
  if (error) throw error;
  assert.equal(status, 0, stdout);
});

test("web/dist is what Vite builds of web, byte for byte", () => {
  const directory = mkdtempSync(join(tmpdir(), "perch-web-"));
  try {
    const built = join(directory, "dist");
    execFileSync(process.execPath, [tool("vite"), "build", "--logLevel", "error", "--outDir", built], {
      cwd: join(ROOT, "web"),
    });
    const files = (folder: string): string[] =>
      readdirSync(folder, { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile())
        .map(({ parentPath, name }) => join(parentPath, name).slice(folder.length + 1))
        .sort();
    const committed = join(ROOT, "web/dist");
    assert.deepEqual(files(committed), files(built));
    for (const name of files(built))
      assert.ok(
        readFileSync(join(committed, name)).equals(readFileSync(join(built, name))),
        `web/dist/${name} is out of date: run npm run build -w web`,
      );
  } finally {
    rmSync(directory, { recursive: true });
  }
});
