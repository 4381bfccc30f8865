import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { root } from "./data-plane/checks.ts";
import { ip } from "./data-plane/wire.ts";

const REPOSITORY = new URL("../..", import.meta.url).pathname;

test("another program imports perch/wireguard from its own directory, and the example runs", root, () => {
  // As `npm install PATH-OF-THE-CHECKOUT` leaves it.
  const directory = mkdtempSync(join(tmpdir(), "perch-library-"));
  const namespace = `plib-${process.pid.toString(36)}`;
  ip("netns", "add", namespace);
  try {
    ip("-n", namespace, "link", "set", "lo", "up");
    mkdirSync(join(directory, "node_modules"));
    symlinkSync(REPOSITORY, join(directory, "node_modules", "perch"));
    writeFileSync(join(directory, "package.json"), '{ "type": "module" }\n');
    const example = join(directory, "example.ts");
    copyFileSync(join(REPOSITORY, "examples/wireguard/two-devices.ts"), example);
    const output = execFileSync("ip", ["netns", "exec", namespace, process.execPath, example], {
      cwd: directory,
      encoding: "utf8",
      timeout: 15_000,
    });
    assert.match(output, /right: woken by a handshake/);
    assert.match(output, /perch-left: session as initiator/);
    assert.match(output, /perch-right: session as responder/);
    assert.match(output, /left sent \d+ bytes/);
  } finally {
    ip("netns", "del", namespace);
    rmSync(directory, { recursive: true, force: true });
  }
});
