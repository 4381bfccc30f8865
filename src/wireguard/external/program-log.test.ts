import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { createLogger } from "#base/log.ts";
import { ManualClock } from "#base/time.ts";
import { ProgramLog } from "./program-log.ts";

function opened() {
  const lines: string[] = [];
  const clock = new ManualClock();
  const log = createLogger((level, message, fields) =>
    lines.push(`${level} ${fields.text ?? `${message} ${fields.lines}`}`),
  );
  return { lines, clock, output: new ProgramLog(log, clock) };
}

describe("what a WireGuard program writes", () => {
  it("comes line by line, with the level that it names and without its clock", () => {
    const { lines, output } = opened();
    output.push("stdout", "ERROR: (wg0) 2026/11/22 23:59:59 Failed to ");
    output.push("stderr", "panic: oh");
    output.push("stdout", "send\nDEBUG: (wg0) 2026/11/22 23:59:59 peer up\n\n");
    output.push("stderr", " no\nlast words");
    assert.equal(output.lastLine, "panic: oh no");
    output.end();
    assert.deepEqual(lines, ["warn Failed to send", "debug peer up", "warn panic: oh no", "warn last words"]);
    assert.equal(output.lastLine, "last words");
  });

  it("has no keys in it", () => {
    const { lines, output } = opened();
    const key = Buffer.alloc(32, 0xa7);
    output.push("stdout", `ERROR: (wg0) invalid ${key.toString("hex")}, ${key.toString("base64")}!\n`);
    assert.deepEqual(lines, ["warn invalid [key], [key]!"]);
  });

  it("is bounded, and says how much was left out", () => {
    const { lines, clock, output } = opened();
    for (let n = 0; n < 100; n++) output.push("stdout", `line ${n}\n`);
    assert.equal(lines.length, 30);
    clock.advance(10_000);
    output.push("stdout", "later\n");
    assert.match(lines.slice(30).join("|"), /^warn .*70\|warn later$/);
    output.push("stdout", "x".repeat(100_000));
    output.end();
    assert.equal(lines.at(-1), `warn ${"x".repeat(500)}`);
  });
});
