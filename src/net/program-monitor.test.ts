import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempDisposableSync, readdirSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { ManualClock } from "#base/time.ts";
import { ProgramMonitor, type ProgramMonitorOptions } from "./program-monitor.ts";

/** What a monitor tells, and a way to wait until it has told so much. */
function watch(command: ProgramMonitorOptions["command"]) {
  const clock = new ManualClock(1000);
  const told: string[] = [];
  let happened = Promise.withResolvers<void>();
  const tell = (what: string): void => {
    told.push(what);
    happened.resolve();
    happened = Promise.withResolvers();
  };
  const monitor = new ProgramMonitor(
    { command, line: tell, settled: () => tell("settled"), ended: () => tell("ended") },
    clock,
  );
  return {
    clock,
    told,
    close: () => monitor.close(),
    async until(count: number): Promise<readonly string[]> {
      // A monitor does not hold the process.
      using stack = new DisposableStack();
      const late = Promise.withResolvers<never>();
      const timer = setTimeout(() => late.reject(new Error(`only ${JSON.stringify(told)}`)), 5000);
      stack.defer(() => clearTimeout(timer));
      while (told.length < count) await Promise.race([happened.promise, late.promise]);
      return told;
    },
  };
}

test("a monitor tells each line, and when it sees everything, until it is closed", async () => {
  const { clock, told, until, close } = watch(["sh", "-c", "echo one; echo two; exec sleep 60"]);
  assert.deepEqual(await until(2), ["one", "two"]);
  clock.advance(499);
  assert.equal(told.length, 2);
  clock.advance(1);
  assert.deepEqual(told, ["one", "two", "settled"]);
  close();
  clock.advance(100_000);
  await pause(50);
  assert.equal(told.length, 3);
});

test("one that ends is started again, after ever longer pauses while it does not last", async () => {
  using folder = mkdtempDisposableSync(join(tmpdir(), "perch-monitor-"));
  process.env.PERCH_SETUP_KEY = "not for other programs";
  const { clock, told, until, close } = watch(["sh", "-c", `env > ${folder.path}/$$`]);
  try {
    for (const [count, wait] of [500, 1000, 2000].entries()) {
      await until(count + 1);
      clock.advance(wait - 1);
      await pause(50);
      assert.equal(told.length, count + 1);
      clock.advance(1);
    }
    assert.deepEqual(await until(4), ["ended", "ended", "ended", "ended"]);
    const files = readdirSync(folder.path);
    assert.equal(files.length, 4);
    for (const file of files) assert.doesNotMatch(readFileSync(join(folder.path, file), "utf8"), /SETUP/);
  } finally {
    close();
    delete process.env.PERCH_SETUP_KEY;
  }
});

test("one that is not there is looked for again", async () => {
  const { clock, until, close } = watch(["perch-no-such-program"]);
  await until(1);
  clock.advance(500);
  assert.deepEqual(await until(2), ["ended", "ended"]);
  close();
});

test("without descriptors it is tried again, and holds no process", () => {
  const module = JSON.stringify(new URL("./program-monitor.ts", import.meta.url));
  const program = `
    import { closeSync, openSync } from "node:fs";
    const { ProgramMonitor } = await import(${module});
    const taken = [];
    try { for (;;) taken.push(openSync("/dev/null")); } catch {}
    const line = (line) => { console.log("line", line); clearInterval(hold); };
    const ended = () => { console.log("ended"); taken.splice(0).forEach((fd) => closeSync(fd)); };
    const hold = setInterval(() => {}, 1000);
    new ProgramMonitor({ command: ["sh", "-c", "echo there; exec sleep 60"], line, ended });`;
  const limited = `ulimit -n 100; exec "$0" --input-type=module "$@"`;
  const { status, stdout, stderr } = spawnSync("sh", ["-c", limited, process.execPath, "-e", program], {
    timeout: 10_000,
    encoding: "utf8",
  });
  assert.deepEqual([status, stdout, stderr], [0, "ended\nline there\n", ""]);
});
