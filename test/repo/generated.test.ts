import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { ROOT } from "./source-files.ts";

test("src/gen is what buf generates from proto", () => {
  const directory = mkdtempSync(join(tmpdir(), "perch-gen-"));
  try {
    const bin = join(ROOT, "node_modules/.bin");
    const template = readFileSync(join(ROOT, "buf.gen.yaml"), "utf8").replace("out: src/gen", `out: ${directory}/gen`);
    assert.ok(template.includes(directory), "buf.gen.yaml writes to src/gen");
    writeFileSync(join(directory, "buf.gen.yaml"), template);
    execFileSync(join(bin, "buf"), ["generate", "--template", join(directory, "buf.gen.yaml")], {
      cwd: ROOT,
      env: { ...process.env, PATH: `${bin}:${process.env.PATH}`, BUF_CACHE_DIR: join(directory, "cache") },
    });
    const files = (folder: string): string[] =>
      (readdirSync(folder, { recursive: true }) as string[]).filter((name) => name.endsWith(".ts")).sort();
    assert.deepEqual(files(join(ROOT, "src/gen")), files(join(directory, "gen")));
    for (const name of files(join(directory, "gen")))
      assert.ok(
        readFileSync(join(ROOT, "src/gen", name)).equals(readFileSync(join(directory, "gen", name))),
        `src/gen/${name} is out of date: run npm run generate`,
      );
  } finally {
    rmSync(directory, { recursive: true });
  }
});
