import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { LOG_FILES_KEPT, openDaemonLog } from "./daemon-log.ts";

function directory(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), "perch-log-"));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

const lines = (file: string): number[] =>
  readFileSync(file, "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line).count);

test("a log file that is full is put aside, the youngest are kept, and no line is lost in between", async (t) => {
  const dir = directory(t);
  const file = join(dir, "perch.log");
  const options = { level: "info", file, colour: false, timestamps: false, maxBytes: 1000 } as const;
  const all = 200;
  {
    using log = await openDaemonLog(options);
    for (let count = 0; count < all / 2; count++) log.logger.info("a line", { count });
  }
  // A daemon that starts anew counts what is there.
  {
    using log = await openDaemonLog(options);
    for (let count = all / 2; count < all; count++) log.logger.info("a line", { count });
  }
  const aside = Array.from({ length: LOG_FILES_KEPT }, (_, index) => `perch.log.${index + 1}`);
  assert.deepEqual(readdirSync(dir).sort(), ["perch.log", ...aside]);
  const counts = [...aside.toReversed(), "perch.log"].flatMap((name) => lines(join(dir, name)));
  assert.ok(counts.length > 30 && counts.length < all, `${counts.length} lines are kept`);
  assert.deepEqual(
    counts,
    counts.map((_, index) => all - counts.length + index),
  );
  for (const name of aside) {
    const { size, mode } = statSync(join(dir, name));
    assert.ok(size >= 1000 && size < 1200, `${name} has ${size} bytes`);
    assert.equal(mode & 0o007, 0);
  }
});

test("a log file that somebody moved is made again", async (t) => {
  const dir = directory(t);
  const file = join(dir, "perch.log");
  using log = await openDaemonLog({ level: "info", file, colour: false, timestamps: false, maxBytes: 200 });
  log.logger.info("before", { count: 0 });
  rmSync(file);
  for (let count = 1; count < 4; count++) log.logger.info("a line", { count });
  log.reopen();
  log.logger.info("after", { count: 4 });
  assert.equal(lines(file).at(-1), 4);
});
