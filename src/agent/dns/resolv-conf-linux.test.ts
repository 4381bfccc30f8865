import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdtempSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, test } from "node:test";
import { silentLogger } from "#base/log.ts";
import { ManualClock } from "#base/time.ts";
import type { DomainName } from "./domain-name.ts";
import type { HostNames } from "./host-resolver.ts";
import { formatResolvConf, parseResolvConf, ResolvConfFile } from "./resolv-conf-linux.ts";
import { restoreResolvConf } from "./resolver-file-linux.ts";
import { ResolverRecordStore } from "./resolver-record.ts";
import { HOST_NAMES as names } from "./testing.ts";

const THEIRS = "# by hand\nnameserver 192.0.2.1\nnameserver 2001:db8::53\nsearch example.org\noptions rotate ndots:2\n";

test("a resolv.conf is read as the C library reads it", () => {
  assert.deepEqual(
    parseResolvConf(
      "domain a.b\nsearch c.d e.f # x\n;nameserver 1.1.1.1\n nameserver\t9.9.9.9\noptions edns0\noptions ndots:2",
    ),
    {
      servers: ["9.9.9.9"],
      search: ["c.d", "e.f"],
      options: ["edns0", "ndots:2"],
    },
  );
});

test("our file names the agent first, then who was there, and no more than the C library takes", () => {
  const before = parseResolvConf(`${THEIRS}nameserver 192.0.2.2\nnameserver 192.0.2.3\n`);
  const read = parseResolvConf(formatResolvConf(names, before));
  assert.deepEqual(read, {
    servers: ["100.64.0.1", "192.0.2.1", "2001:db8::53"],
    search: ["perch.internal", "example.org"],
    options: ["ndots:2"],
  });
  // Servers of the network for everything: those of the host are not to be asked at all.
  assert.deepEqual(parseResolvConf(formatResolvConf({ ...names, everything: true }, before)).servers, ["100.64.0.1"]);
  const many = { ...names, search: Array.from({ length: 60 }, (_, i) => `domain-${i}.example` as DomainName) };
  assert.ok(parseResolvConf(formatResolvConf(many, before)).search.join(" ").length <= 256);
});

describe("the resolver file", () => {
  let folder: string;
  let path: string;
  let store: ResolverRecordStore;

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "perch-resolver-"));
    path = join(folder, "resolv.conf");
    store = new ResolverRecordStore(folder);
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  const noWatch = () => ({ follow() {}, close() {} });
  const open = (records = store): ResolvConfFile =>
    new ResolvConfFile(
      { clock: new ManualClock(), log: silentLogger, store: records, changed() {}, watch: noWatch },
      { path },
    );
  const apply = (given: HostNames = names): Promise<void> => open().apply(given);
  const isOurs = (): boolean => readFileSync(path, "utf8").startsWith("# Written by Perch (perch0)");

  test("a file comes back with content, mode and time", async () => {
    writeFileSync(path, THEIRS);
    chmodSync(path, 0o640);
    const before = statSync(path);
    await apply();
    assert.ok(isOurs());
    assert.equal(statSync(path).mode & 0o777, 0o644, "every program may read it");
    await apply({ ...names, search: [] });
    assert.deepEqual(restoreResolvConf(store).problems, []);
    assert.equal(readFileSync(path, "utf8"), THEIRS);
    const { mode, mtimeMs, uid, gid } = statSync(path);
    assert.deepEqual({ mode, uid, gid }, { mode: before.mode, uid: before.uid, gid: before.gid });
    assert.ok(Math.abs(mtimeMs - before.mtimeMs) < 1);
    assert.deepEqual(restoreResolvConf(store), { done: [], problems: [] }, "the second time there is nothing to do");
  });

  test("a link comes back as the link, and what it leads to was never touched", async () => {
    const target = join(folder, "stub-resolv.conf");
    writeFileSync(target, THEIRS);
    for (const text of ["stub-resolv.conf", target, "nowhere/resolv.conf"]) {
      rmSync(path, { force: true });
      symlinkSync(text, path);
      const file = open();
      assert.equal(file.fallback().length, text.startsWith("nowhere") ? 0 : 2);
      await file.apply(names);
      assert.ok(lstatSync(path).isFile());
      assert.equal(readFileSync(target, "utf8"), THEIRS);
      restoreResolvConf(store);
      assert.equal(readlinkSync(path), text);
    }
  });

  test("where there was no file there is none afterwards", async () => {
    await apply();
    assert.ok(isOurs());
    restoreResolvConf(store);
    assert.ok(!existsSync(path));
  });

  test("what another program wrote meanwhile stays, and is what comes back when we wrote again", async () => {
    writeFileSync(path, THEIRS);
    await apply();
    writeFileSync(path, "nameserver 203.0.113.1\n");
    assert.match(restoreResolvConf(store).done.join(), /changed by another program since, and stays/);
    assert.equal(readFileSync(path, "utf8"), "nameserver 203.0.113.1\n");
    await apply();
    writeFileSync(path, THEIRS);
    await apply();
    restoreResolvConf(store);
    assert.equal(readFileSync(path, "utf8"), THEIRS);
  });

  test("the file of another agent of this machine is left alone", async () => {
    writeFileSync(path, THEIRS);
    await apply();
    const other = open(new ResolverRecordStore(mkdtempSync(join(folder, "other-"))));
    await assert.rejects(other.apply({ ...names, interfaceName: "perch1" }), {
      code: "resolver",
      message: /another Perch agent.*perch0/,
    });
    assert.ok(isOurs());
  });

  test("after a crash at any moment the record restores the file; a new daemon starts from the original", async () => {
    writeFileSync(path, THEIRS);
    await apply();
    const second = open(new ResolverRecordStore(folder));
    assert.deepEqual(
      second.fallback().map(({ address }) => address),
      ["192.0.2.1", "2001:db8::53"],
    );
    restoreResolvConf(store);
    // Written down, and nothing done yet.
    const record = {
      version: 1,
      path,
      original: { kind: "symlink", target: "x", uid: 0, gid: 0 },
      mark: "# Written by Perch (perch0)",
    } as const;
    store.write(record);
    assert.match(restoreResolvConf(store).done.join(), /stays/);
    assert.equal(readFileSync(path, "utf8"), THEIRS);
    assert.equal(store.read(), undefined);
  });

  test("a record that cannot be read is a problem that names it, not an exception", () => {
    writeFileSync(store.path, "{");
    assert.match(restoreResolvConf(store).problems.join(), /resolver\.json is not readable/);
    assert.throws(() => store.read(), { code: "resolver-record" });
  });

  for (const way of ["replaced", "written in place"]) {
    const needsRoot = way === "written in place" && process.getuid?.() !== 0 && "needs root: a mount";
    test(`killed at 25 moments of coming and going, the file is ${way} and comes back as it was`, {
      skip: needsRoot,
    }, async () => {
      const program = `
        import { silentLogger } from "#base/log.ts";
        import { systemClock } from "#base/time.ts";
        import { ResolvConfFile } from "#agent/dns/resolv-conf-linux.ts";
        import { restoreResolvConf } from "#agent/dns/resolver-file-linux.ts";
        import { ResolverRecordStore } from "#agent/dns/resolver-record.ts";
        const [folder, path, names] = [process.argv[1], process.argv[2], JSON.parse(process.argv[3])];
        const store = new ResolverRecordStore(folder);
        restoreResolvConf(store);
        process.stdout.write("go");
        for (let round = 0; ; round++) {
          const file = new ResolvConfFile({ clock: systemClock, log: silentLogger, store, changed() {} }, { path });
          await file.apply(names);
          await file.apply({ ...names, search: Array(round % 20).fill("a-long-domain.example") });
          await file.restore();
        }`;
      const content = way === "replaced" ? THEIRS : "nameserver 192.0.2.1\n";
      writeFileSync(path, content);
      const node = [
        process.execPath,
        "--input-type=module-typescript",
        "-e",
        program,
        folder,
        path,
        JSON.stringify(names),
      ];
      // A mount on the file itself cannot be renamed away, as in a container.
      const inPlace = [
        "unshare",
        "-m",
        "sh",
        "-c",
        'mount --bind "$1" "$1" && path=$1 && shift && exec "$@"',
        "sh",
        path,
        ...node,
      ];
      const [command, ...args] = way === "replaced" ? node : inPlace;
      const seen = new Set<string>();
      for (let moment = 0; moment < 25; moment++) {
        const child = spawn(command!, args, { cwd: import.meta.dirname, stdio: ["ignore", "pipe", "inherit"] });
        await once(child.stdout, "data");
        await new Promise((resolve) => setTimeout(resolve, Math.random() * 8));
        child.kill("SIGKILL");
        await once(child, "exit");
        seen.add(readFileSync(path, "utf8") === content ? "theirs" : "ours");
        assert.deepEqual(restoreResolvConf(store).problems, []);
        assert.equal(readFileSync(path, "utf8"), content, `moment ${moment}`);
      }
      assert.deepEqual([...seen].sort(), ["ours", "theirs"], "both were met");
    });
  }
});
