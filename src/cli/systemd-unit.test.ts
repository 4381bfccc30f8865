import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { unitText } from "./systemd-unit.ts";

const PERCH = fileURLToPath(new URL("../../bin/perch", import.meta.url));

test("the unit runs the daemon with the flags of the installation, quoted as systemd wants them", () => {
  const text = unitText("/opt/perch/bin/perch", {
    daemonAddr: "unix:///run/b.sock",
    stateDir: "/var/lib/perch b",
    logFile: "/var/log/100%/$HOME.log",
  });
  assert.match(
    text,
    /^ExecStart=\/opt\/perch\/bin\/perch service run --daemon-addr unix:\/\/\/run\/b.sock --state-dir "\/var\/lib\/perch b" --log-file \/var\/log\/100%%\/\$\$HOME.log$/m,
  );
  assert.match(text, /^ReadWritePaths=-"\/var\/lib\/perch b"$/m);
  assert.match(text, /^Documentation=file:\/\/\/opt\/perch\/README.md$/m);
  assert.match(unitText("/p/bin/perch", {}), /^ExecStart=\/p\/bin\/perch service run$/m);
});

const analyze = "/usr/bin/systemd-analyze";
test("systemd finds nothing wrong with the unit", { skip: !existsSync(analyze) && "no systemd-analyze" }, () => {
  const dir = mkdtempSync(join(tmpdir(), "perch-unit-"));
  try {
    const path = join(dir, "perch-test.service");
    writeFileSync(path, unitText(PERCH, { stateDir: "/var/lib/perch b" }));
    const said = execFileSync(analyze, ["verify", "--man=no", path], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
    });
    assert.equal(said, "");
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
});
