import assert from "node:assert/strict";
import {
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { createLogger } from "#base/log.ts";
import { ManualClock, type Millis } from "#base/time.ts";
import { watchFiles } from "./file-watch.ts";
import { ResolvConfFile } from "./resolv-conf-linux.ts";
import { ResolverRecordStore } from "./resolver-record.ts";
import { REWRITE_POLICY } from "./rewrite-guard.ts";
import { HOST_NAMES as names } from "./testing.ts";

const { settle, emptyGrace, pause, rewritings, truce } = REWRITE_POLICY;
const THEIRS = "nameserver 192.0.2.1\n";

describe("a resolver file that another program rewrites while ours is there", () => {
  let folder: string;
  let path: string;
  let clock: ManualClock;
  let file: ResolvConfFile;
  /** Tells the agent, as the kernel would. */
  let tell: () => void;
  let followed: readonly string[];
  let changes: number;
  let lines: string[];

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "perch-rewrite-"));
    path = join(folder, "resolv.conf");
    clock = new ManualClock();
    changes = 0;
    lines = [];
    followed = [];
    file = new ResolvConfFile(
      {
        clock,
        log: createLogger((level, message) => lines.push(`${level} ${message}`)),
        store: new ResolverRecordStore(folder),
        changed: () => changes++,
        watch: (changed) => {
          tell = changed;
          return {
            follow: (paths) => {
              followed = paths;
            },
            close: () => {
              followed = [];
            },
          };
        },
      },
      { path },
    );
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  const isOurs = (): boolean => readFileSync(path, "utf8").startsWith("# Written by Perch");
  const rewrite = (text: string): void => {
    writeFileSync(`${path}.dhcp`, text);
    renameSync(`${path}.dhcp`, path);
    tell();
  };
  const serversAsked = (): string[] => file.fallback().map(({ address }) => address);

  test("ours comes back when the writer is done; its servers are asked, and its file is what down puts back", async () => {
    writeFileSync(path, THEIRS);
    await file.apply(names);
    clock.advance(60_000);
    rewrite("nameserver 192.0.2.2\n");
    clock.advance(settle - 1);
    rewrite("nameserver 192.0.2.3\nsearch new.example\n");
    clock.advance(settle - 1);
    assert.ok(!isOurs(), "still being written");
    clock.advance(1);
    assert.ok(isOurs());
    assert.match(readFileSync(path, "utf8"), /nameserver 192\.0\.2\.3\nsearch perch\.internal new\.example/);
    assert.deepEqual(serversAsked(), ["192.0.2.3"]);
    assert.deepEqual([file.problem, changes, lines.length], [undefined, 1, 1]);
    await file.restore();
    assert.equal(readFileSync(path, "utf8"), "nameserver 192.0.2.3\nsearch new.example\n");
    assert.deepEqual([followed, clock.pending], [[], 0]);
  });

  test("nothing is done about our own writing, and at most once in a pause about another's", async () => {
    writeFileSync(path, THEIRS);
    await file.apply(names);
    tell();
    clock.advance(60_000);
    assert.deepEqual([changes, lines], [0, []]);
    rewrite("nameserver 192.0.2.2\n");
    clock.advance(settle);
    assert.ok(isOurs());
    rewrite("nameserver 192.0.2.3\n");
    clock.advance(pause - 1);
    assert.ok(!isOurs());
    rewrite("nameserver 192.0.2.4\n");
    clock.advance(1);
    assert.ok(isOurs());
    assert.deepEqual(serversAsked(), ["192.0.2.4"]);
    clock.advance(pause);
    await file.restore();
    assert.equal(readFileSync(path, "utf8"), "nameserver 192.0.2.4\n");
  });

  test("a file that is removed or emptied first gets time for the rest; one that stays away is away afterwards", async () => {
    writeFileSync(path, THEIRS);
    await file.apply(names);
    clock.advance(60_000);
    for (const empty of [() => rmSync(path), () => writeFileSync(path, "\n")]) {
      empty();
      tell();
      clock.advance(settle + emptyGrace - 1);
      rewrite("nameserver 192.0.2.5\n");
      clock.advance(1);
      assert.ok(isOurs());
      assert.deepEqual(serversAsked(), ["192.0.2.5"]);
      clock.advance(60_000);
    }
    rmSync(path);
    tell();
    clock.advance(settle + emptyGrace);
    assert.ok(isOurs());
    await file.restore();
    assert.equal(lstatSync(path, { throwIfNoEntry: false }), undefined);
  });

  test("who fights back has its way, status and log say so, and after the truce ours is put in again", async () => {
    writeFileSync(path, THEIRS);
    await file.apply(names);
    clock.advance(60_000);
    for (let i = 1; i < rewritings; i++) {
      rewrite(`nameserver 192.0.2.${i}\n`);
      clock.advance(settle + pause);
      assert.ok(isOurs(), `rewriting ${i}`);
      assert.equal(file.problem, undefined);
    }
    rewrite("nameserver 192.0.2.99\n");
    clock.advance(settle + pause);
    assert.ok(!isOurs());
    assert.match(
      file.problem ?? "",
      /another program rewrote .*resolv\.conf 5 times within 60 s: it is left alone for 10 min/,
    );
    assert.equal(lines.filter((line) => line.startsWith("warn ")).length, 1);
    tell();
    clock.advance(truce - 60_000);
    assert.ok(!isOurs());
    clock.advance(60_000);
    assert.ok(isOurs());
    assert.equal(file.problem, undefined);
    rewrite("nameserver 192.0.2.100\n");
    await file.restore();
    assert.equal(readFileSync(path, "utf8"), "nameserver 192.0.2.100\n");
    assert.equal(clock.pending, 0);
  });

  test("a writer that never comes to an end is not waited for", async () => {
    writeFileSync(path, THEIRS);
    await file.apply(names);
    clock.advance(60_000);
    let times = 0;
    while (!isOurs() || times === 0) {
      rewrite(`nameserver 192.0.2.${++times}\n`);
      clock.advance(settle - 1);
      assert.ok(times < 20);
    }
    assert.equal(times, 11);
  });

  test("another agent's file is not taken back, and said to be another agent's", async () => {
    writeFileSync(path, THEIRS);
    await file.apply(names);
    clock.advance(60_000);
    rewrite("# Written by Perch (perch1) while its tunnel is up\nnameserver 100.64.0.2\n");
    clock.advance(settle);
    assert.match(file.problem ?? "", /written by another Perch agent/);
    assert.match(readFileSync(path, "utf8"), /perch1/);
    await file.restore();
    assert.match(readFileSync(path, "utf8"), /perch1/);
  });

  test("what a link leads to is followed while ours is in its place, and the link comes back", async () => {
    const target = join(folder, "managed.conf");
    symlinkSync("managed.conf", path);
    await file.apply(names);
    assert.deepEqual([followed, serversAsked()], [[path, target], []]);
    clock.advance(60_000);
    for (const server of ["192.0.2.6", "192.0.2.7"]) {
      writeFileSync(target, `nameserver ${server}\n`);
      tell();
      clock.advance(settle);
    }
    assert.deepEqual(serversAsked(), ["192.0.2.6"], "not twice in a pause");
    clock.advance(pause);
    assert.ok(isOurs());
    assert.deepEqual(serversAsked(), ["192.0.2.7"]);
    assert.match(readFileSync(path, "utf8"), /nameserver 192\.0\.2\.7/);
    await file.restore();
    assert.equal(readlinkSync(path), "managed.conf");
  });

  test("a change of what we have to say ends a truce", async () => {
    writeFileSync(path, THEIRS);
    await file.apply(names);
    for (let i = 0; i < rewritings; i++) {
      rewrite(THEIRS);
      clock.advance(settle + pause);
    }
    assert.ok(file.problem !== undefined && !isOurs());
    await file.apply({ ...names, search: [] });
    assert.deepEqual([file.problem, isOurs()], [undefined, true]);
  });
});

describe("the kernel tells of a file", () => {
  test("that is written in place, replaced, removed or made, also behind a link, and not of its neighbours", async () => {
    const folder = mkdtempSync(join(tmpdir(), "perch-watch-"));
    let seen = 0;
    const failures: Error[] = [];
    const watch = watchFiles(
      () => seen++,
      (error) => failures.push(error),
    );
    const sees = async (change: () => void, limit: Millis = 5000): Promise<boolean> => {
      seen = 0;
      change();
      for (const end = performance.now() + limit; seen === 0 && performance.now() < end; ) await sleep(5);
      // What one change causes comes in one go.
      await sleep(20);
      return seen > 0;
    };
    try {
      mkdirSync(join(folder, "managed"));
      const [path, target] = [join(folder, "resolv.conf"), join(folder, "managed/resolv.conf")];
      const absent = join(folder, "not-there/resolv.conf");
      const follow = (): void => watch.follow([path, target, absent]);
      follow();
      assert.ok(await sees(() => writeFileSync(path, "made")));
      follow();
      assert.ok(await sees(() => writeFileSync(path, "written in place")));
      writeFileSync(`${path}.new`, "");
      assert.ok(await sees(() => renameSync(`${path}.new`, path)));
      follow();
      assert.ok(await sees(() => rmSync(path)));
      assert.ok(await sees(() => writeFileSync(target, "behind the link")));
      assert.ok(!(await sees(() => writeFileSync(join(folder, "hosts"), ""), 100)));
      watch.close();
      assert.ok(!(await sees(() => writeFileSync(path, ""), 100)));
      assert.deepEqual(failures, []);
    } finally {
      watch.close();
      rmSync(folder, { recursive: true });
    }
  });
});
