import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempDisposableSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { test } from "node:test";
import { PROGRAM_PATH } from "#net/find-program.ts";
import { needProgram } from "./need-program.ts";
import { type ProgramCall, type ProgramResult, runProgram, secretPath } from "./run-program.ts";

const sh = (script: string, call: Partial<ProgramCall> = {}): Promise<ProgramResult> =>
  runProgram({ program: "sh", debianPackage: "dash", args: ["-c", script], ...call });

test("a program reads its text and its secrets, and what it writes comes back", async () => {
  const text = "x".repeat(200_000);
  const secret = Buffer.from("a secret");
  const { ok, output, complaint } = await sh(`wc -c; cat ${secretPath(0)}; echo well >&2`, {
    input: text,
    secrets: [secret],
  });
  assert.deepEqual([ok, output.toString(), complaint], [true, "200000\na secret", "well"]);
  assert.deepEqual(secret, Buffer.alloc(8), "wiped");
});

test("a program that is given no text finds the end of it, and one that reads none is not waited for", async () => {
  assert.equal((await sh("cat")).output.length, 0);
  assert.equal((await sh("exit 0", { input: "x".repeat(1_000_000) })).ok, true);
});

test("a program gets nothing of our environment but the path, with what a plain user's lacks", async () => {
  process.env.PERCH_SETUP_KEY = "not for other programs";
  try {
    const { output } = await runProgram({ program: "env", debianPackage: "coreutils", args: [] });
    assert.equal(output.toString(), `PATH=${PROGRAM_PATH}\n`);
    assert.ok(PROGRAM_PATH.split(delimiter).includes("/usr/sbin"));
  } finally {
    delete process.env.PERCH_SETUP_KEY;
  }
});

test("of a long complaint the beginning and the end are kept, of none it is said how the program ended", async () => {
  const long = await sh("echo at first >&2; head -c 100000 /dev/zero | tr '\\0' 'x' >&2; echo ' at last' >&2; exit 1");
  assert.equal(long.complaint, "at first; ... at last");
  assert.deepEqual((await sh("echo one >&2; echo '  two' >&2; exit 1")).complaint, "one; two");
  assert.equal((await sh("exit 3")).complaint, "ended with code 3");
  assert.equal((await sh("kill -TERM $$")).complaint, "ended by SIGTERM");
});

test("a program that hangs is ended, and one whose caller closes as well", async () => {
  await assert.rejects(sh("exec sleep 60", { patience: 100 }), { code: "control-failed", message: /after 0.1 s/ });
  const signal = AbortSignal.timeout(100);
  await assert.rejects(sh("exec sleep 60", { signal }), { code: "closed" });
});

test("without descriptors it fails in a way that can be tried again, with and without secrets", () => {
  const script = `
    import { openSync } from "node:fs";
    const { runProgram } = await import(${JSON.stringify(new URL("./run-program.ts", import.meta.url))});
    try { for (;;) openSync("/dev/null"); } catch {}
    for (const secrets of [[], [Buffer.from("a secret")]]) {
      const failing = runProgram({ program: "true", debianPackage: "coreutils", args: [], input: "text", secrets });
      await failing.catch(({ code, retryable, message }) => console.log(code, retryable, /EMFILE/.test(message)));
    }`;
  const limited = 'ulimit -n 100; exec "$0" --input-type=module -e "$1"';
  const output = execFileSync("sh", ["-c", limited, process.execPath, script], { encoding: "utf8", timeout: 10_000 });
  assert.equal(output, "control-failed true true\n".repeat(2));
});

test("one that is not there, may not be run, or cannot be, is named with its package", async () => {
  using folder = mkdtempDisposableSync(join(tmpdir(), "perch-programs-"));
  const put = (name: string, mode: number): string => {
    const path = join(folder.path, name);
    writeFileSync(path, "#!/nowhere/interpreter\n", { mode });
    return path;
  };
  mkdirSync(join(folder.path, "a-folder"));
  for (const [program, problem] of [
    ["perch-no-such-program", "perch-no-such-program is not installed"],
    [join(folder.path, "nothing"), "nothing is not installed"],
    [put("no-program", 0o644), "no-program may not be run"],
    [join(folder.path, "a-folder"), "a-folder may not be run"],
  ] as const) {
    const refused = { code: "program-missing", message: new RegExp(`${problem} \\(Debian package nftables\\)$`) };
    assert.throws(() => needProgram(program, "nftables"), refused);
    await assert.rejects(runProgram({ program, debianPackage: "nftables", args: [] }), refused);
  }
  const broken = { code: "program-missing", message: /broken cannot be run: .*ENOENT \(Debian package nftables\)$/ };
  await assert.rejects(runProgram({ program: put("broken", 0o755), debianPackage: "nftables", args: [] }), broken);
});
