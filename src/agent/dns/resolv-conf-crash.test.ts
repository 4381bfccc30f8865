import assert from "node:assert/strict";
import fs, {
  chmodSync,
  existsSync,
  lstatSync,
  mkdtempSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, beforeEach, describe, test } from "node:test";
import { silentLogger } from "#base/log.ts";
import { ManualClock } from "#base/time.ts";
import type { DomainName } from "./domain-name.ts";
import { ResolvConfFile } from "./resolv-conf-linux.ts";
import { restoreResolvConf } from "./resolver-file-linux.ts";
import { ResolverRecordStore } from "./resolver-record.ts";
import { HOST_NAMES as names } from "./testing.ts";

/** Calls that change files, each of which a crash may come right before; a write may also be cut in its middle. */
const CHANGES = [
  "chmodSync",
  "chownSync",
  "ftruncateSync",
  "lchownSync",
  "openSync",
  "renameSync",
  "rmSync",
  "symlinkSync",
  "utimesSync",
  "writeFileSync",
  "writeSync",
] as const;

class Crash extends Error {}

interface Life {
  /** Changes that were tried, to the end or to the crash. */
  readonly calls: number;
  readonly crashed: boolean;
}

/** Runs `action` as a process that dies before its change number `at`: that one and all after it do nothing any more. */
async function dyingAt(at: number, mounted: string | undefined, action: () => Promise<void>): Promise<Life> {
  const originals = new Map<string, unknown>();
  const table = fs as unknown as Record<string, (...args: unknown[]) => unknown>;
  let calls = 0;
  // A killed process loses nothing that it wrote, and waiting for the disk takes most of the time.
  originals.set("fsyncSync", table.fsyncSync);
  table.fsyncSync = () => {};
  for (const name of CHANGES) {
    const original = table[name]!;
    originals.set(name, original);
    table[name] = (...args) => {
      if (++calls === at && name === "writeSync") {
        // Half of it arrives.
        const [file, content, from, length, position] = args as [number, Uint8Array, number, number, number];
        original(file, content, from, Math.floor(length / 2), position);
      }
      if (calls >= at) throw new Crash("killed");
      // What the kernel answers when the file is a mount.
      if (name === "renameSync" && args[1] === mounted) throw Object.assign(new Error("busy"), { code: "EBUSY" });
      return original(...args);
    };
  }
  syncBuiltinESMExports();
  try {
    await action();
  } catch (error) {
    if (calls < at) throw error;
  } finally {
    for (const [name, original] of originals) table[name] = original as () => unknown;
    syncBuiltinESMExports();
  }
  return { calls: Math.min(calls, at), crashed: calls >= at };
}

const THEIRS = "# by hand\nnameserver 192.0.2.1\nsearch example.org\n";

describe("a crash before any single change", () => {
  const root = mkdtempSync(join(tmpdir(), "perch-crash-"));
  const path = join(root, "resolv.conf");
  const stateDir = join(root, "state");
  const store = new ResolverRecordStore(stateDir);

  after(() => rmSync(root, { recursive: true }));
  beforeEach(() => {
    for (const each of [path, stateDir, `${path}.perch`]) rmSync(each, { recursive: true, force: true });
    fs.mkdirSync(stateDir);
  });

  /** The file as anybody sees it. */
  function look(): unknown {
    const found = lstatSync(path, { throwIfNoEntry: false });
    if (!found) return "absent";
    if (found.isSymbolicLink()) return { target: readlinkSync(path) };
    const { mode, uid, gid, mtimeMs } = found;
    return { text: readFileSync(path, "utf8"), mode, uid, gid, modifiedAt: Math.round(mtimeMs) };
  }

  /** A life of an agent: its file, other words in it, and the end. */
  async function live(): Promise<void> {
    restoreResolvConf(store);
    const watch = () => ({ follow() {}, close() {} });
    const file = new ResolvConfFile(
      { clock: new ManualClock(), log: silentLogger, store, changed() {}, watch },
      { path },
    );
    await file.apply(names);
    await file.apply({ ...names, search: Array.from({ length: 9 }, (_, i) => `longer-${i}.example` as DomainName) });
    await file.apply({ ...names, search: [] });
    await mend();
  }

  async function mend(): Promise<void> {
    assert.deepEqual(restoreResolvConf(store).problems, []);
  }

  const ways: readonly (readonly [string, boolean, () => void])[] = [
    ["a file", false, () => writeFileSync(path, THEIRS)],
    ["a file that is a mount", true, () => writeFileSync(path, THEIRS)],
    ["a long file that is a mount", true, () => writeFileSync(path, THEIRS + "# and more\n".repeat(60))],
    ["an empty file", false, () => writeFileSync(path, "")],
    ["a link", false, () => symlinkSync("elsewhere/resolv.conf", path)],
    ["nothing", false, () => {}],
  ];
  for (const [what, isMount, make] of ways) {
    test(`${what} comes back as it was, also when the repair itself is cut anywhere`, async () => {
      const mounted = isMount ? path : undefined;
      const remake = (): unknown => {
        for (const each of [path, `${path}.perch`, store.path]) rmSync(each, { force: true });
        make();
        if (lstatSync(path, { throwIfNoEntry: false })?.isFile()) {
          chmodSync(path, 0o640);
          utimesSync(path, 1_700_000_000, 1_700_000_000);
        }
        return look();
      };
      remake();
      const { calls: steps } = await dyingAt(Number.POSITIVE_INFINITY, mounted, live);
      assert.ok(steps > 20, `${steps} steps`);
      const seen = new Set<string>();
      for (let first = 1; first <= steps; first++) {
        for (let second = 1, isCut = true; isCut; second++) {
          const before = remake();
          assert.ok((await dyingAt(first, mounted, live)).crashed);
          if (second === 1) {
            const left = JSON.stringify([look(), store.read() === undefined, existsSync(`${path}.perch`)]);
            const text = left.replace(/"modifiedAt":\d+/, "");
            // What was met before is repaired in the same steps.
            if (seen.has(text)) break;
            seen.add(text);
          }
          isCut = (await dyingAt(second, mounted, mend)).crashed;
          if (isCut) await dyingAt(Number.POSITIVE_INFINITY, mounted, mend);
          const where = `cut at ${first}, then at ${second}`;
          assert.deepEqual(look(), before, where);
          assert.ok(!existsSync(`${path}.perch`), `a draft is left: ${where}`);
          assert.equal(store.read(), undefined, where);
        }
      }
      assert.ok(seen.size >= 3, `${seen.size} different states were met`);
    });
  }
});
