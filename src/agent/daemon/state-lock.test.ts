import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { takeLock } from "./state-lock.ts";

function scratch(): { readonly path: string; readonly dir: string } & Disposable {
  const dir = mkdtempSync(join(tmpdir(), "perch-lock-"));
  return { dir, path: join(dir, "lock"), [Symbol.dispose]: () => rmSync(dir, { recursive: true, force: true }) };
}

/** What `look` finds, asked until it finds something and does not throw. */
async function until<Found>(look: () => Found): Promise<Found> {
  for (let left = 500; ; left--) {
    try {
      const found = look();
      if (found) return found;
    } catch (error) {
      if (left === 0) throw error;
    }
    assert.ok(left > 0, "not within 10 s");
    await sleep(20);
  }
}

const describe = (pid: number): string => `held by ${pid}`;

test("a held lock is refused with the holder's pid and free again after release", () => {
  using at = scratch();
  const lock = takeLock(at.path, describe);
  assert.throws(() => takeLock(at.path, describe), { code: "daemon-running", message: `held by ${process.pid}` });
  lock[Symbol.dispose]();
  assert.equal(existsSync(at.path), false);
  takeLock(at.path, describe)[Symbol.dispose]();
  assert.deepEqual(readdirSync(at.dir), []);
});

test("a lock whose process is gone, whose pid is another process now, or whose content is damaged is taken over", () => {
  using at = scratch();
  const gone = 2 ** 22 + 1;
  for (const content of [`${gone} 5@boot\n`, `${process.pid} 5@another-boot\n`, "", "garbage", "1"]) {
    writeFileSync(at.path, content);
    using lock = takeLock(at.path, describe);
    assert.match(readFileSync(lock.path, "latin1"), new RegExp(`^${process.pid} \\d+@`));
  }
});

test("a lock is taken over from a process that was killed, though its parent has not asked for its end", {
  skip: process.platform !== "linux",
}, async () => {
  using at = scratch();
  const script = `
    import { takeLock } from ${JSON.stringify(new URL("./state-lock.ts", import.meta.url).href)};
    takeLock(${JSON.stringify(at.path)}, () => "held");
    process.kill(process.pid, "SIGKILL");`;
  // `sleep` takes the place of the shell, which would ask.
  const command = [process.execPath, "--input-type=module-typescript", "-e", script];
  const parent = spawn("sh", ["-c", '"$@" & exec sleep 20', "sh", ...command], { stdio: "ignore" });
  try {
    const holder = await until(() => /^(\d+) \d+@/.exec(readFileSync(at.path, "latin1"))?.[1]);
    await until(() => /\) Z /.test(readFileSync(`/proc/${holder}/stat`, "latin1")));
    takeLock(at.path, describe)[Symbol.dispose]();
  } finally {
    parent.kill();
  }
});

test("releasing does not take away a lock that another process holds by now", () => {
  using at = scratch();
  const lock = takeLock(at.path, describe);
  writeFileSync(at.path, "1 1@x\n");
  lock[Symbol.dispose]();
  assert.equal(readFileSync(at.path, "latin1"), "1 1@x\n");
});

test("of processes that find the same stale lock in the same instant exactly one gets it", {
  timeout: 15_000,
}, async () => {
  using at = scratch();
  writeFileSync(at.path, "4194305 5@boot\n");
  const script = `
    import { takeLock } from ${JSON.stringify(new URL("./state-lock.ts", import.meta.url).href)};
    while (Date.now() < ${Date.now() + 1500});
    let got = 0;
    try { takeLock(${JSON.stringify(at.path)}, () => "held"); got = 1; } catch {}
    console.log(got);
    setTimeout(() => {}, 1500);`;
  const runs = Array.from({ length: 5 }, () =>
    promisify(execFile)(process.execPath, ["--input-type=module-typescript", "-e", script]),
  );
  const winners = (await Promise.all(runs)).filter(({ stdout }) => stdout.trim() === "1");
  assert.equal(winners.length, 1);
});

test("a directory that is not there is named", () => {
  assert.throws(() => takeLock("/nonexistent/perch/lock", describe), {
    code: "daemon-path",
    message: /\/nonexistent\/perch\/lock/,
  });
});
