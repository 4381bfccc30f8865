import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { silentLogger } from "#base/log.ts";
import { waitUntil } from "../../lab/wait-until.ts";
import { timestampFile } from "./timestamp-file.ts";

test("a mark is stored without holding up the handshake, the newest last, and loaded by the next life", async () => {
  const dir = mkdtempSync(join(tmpdir(), "perch-timestamp-"));
  try {
    const path = join(dir, "handshake-timestamp");
    const mark = timestampFile(dir, silentLogger);
    assert.equal(mark.load(), 0);
    mark.store(1_800_000_000_000);
    mark.store(1_800_000_600_000);
    assert.ok(!existsSync(path), "nothing waits for the disk");
    await waitUntil(() => existsSync(path) && readFileSync(path, "utf8") === "1800000600000\n", "stored", 5_000);
    assert.equal(timestampFile(dir, silentLogger).load(), 1_800_000_600_000);
  } finally {
    rmSync(dir, { recursive: true });
  }
});
