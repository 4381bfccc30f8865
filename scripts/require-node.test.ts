import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

const directory = mkdtempSync(join(tmpdir(), "perch-node-"));
after(() => rmSync(directory, { recursive: true }));

/** Runs a program behind the preload on a Node that says it is `version`. */
function startAs(version: string): { status: number | null; stderr: string; stdout: string } {
  const disguise = join(directory, `${version}.mjs`);
  writeFileSync(
    disguise,
    `Object.defineProperty(process, "versions", { value: { ...process.versions, node: ${JSON.stringify(version)} } });`,
  );
  const program = join(directory, "program.mjs");
  writeFileSync(program, `process.stdout.write("started");`);
  const preload = join(import.meta.dirname, "require-node.mjs");
  const { status, stderr, stdout } = spawnSync(process.execPath, ["--import", disguise, "--import", preload, program], {
    encoding: "utf8",
  });
  return { status, stderr, stdout };
}

test("a Node older than 24 is refused with its version, its path and what to do, before the program starts", () => {
  for (const version of ["20.20.2", "22.18.0", "23.11.1"]) {
    const { status, stderr, stdout } = startAs(version);
    assert.equal(status, 1);
    assert.equal(stdout, "");
    assert.match(stderr, new RegExp(`needs Node\\.js 24 or newer, this is ${version} \\(${process.execPath}\\)`));
    assert.match(stderr, /npm ci/);
  }
});

test("Node 24 and later start the program", () => {
  for (const version of ["24.0.0", "26.1.0", "100.0.0"])
    assert.deepEqual(startAs(version), { status: 0, stderr: "", stdout: "started" });
});
