import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { ping, root } from "./data-plane/checks.ts";
import { Pair } from "./data-plane/pair.ts";

const STARVED = new URL("./data-plane/starved.ts", import.meta.url).pathname;

test(
  "a firewall that refuses our datagrams is counted and reported, and its end is all it takes to go on",
  root,
  async () => {
    await using pair = await Pair.start();
    const { a, b } = pair;
    await ping(a, "10.77.0.2");
    const before = (await a.counters())["drop-send"]!;
    await a.exec("nft", "add table inet refuse");
    await a.exec("nft", "add chain inet refuse out { type filter hook output priority 0 ; }");
    await a.exec("nft", `add rule inet refuse out udp dport ${b.started.port} drop`);
    await a.exec("ping", "-c", "3", "-i", "0.05", "-W", "0.1", "10.77.0.2").catch(() => undefined);
    const error = await a.event("pathError");
    assert.deepEqual(error, { slot: 0, endpoint: pair.endpoint(b), code: "EPERM" });
    assert.equal(a.count("pathError"), 1, "one a second at most");
    await sleep(20);
    assert.ok((await a.counters())["drop-send"]! >= before + 3);
    await a.exec("nft", "delete table inet refuse");
    await ping(a, "10.77.0.2");
    assert.equal(a.count("gone"), 0);
  },
);

test("an interface whose addresses are flushed and given again carries on", root, async () => {
  await using pair = await Pair.start();
  const { a } = pair;
  await a.exec("ip", "addr", "flush", "dev", a.started.name);
  await a.exec("ip", "addr", "add", "10.77.0.1/24", "dev", a.started.name);
  await ping(a, "10.77.0.2");
});

test("an outer address that goes is reported, and traffic goes on when it is back", root, async () => {
  await using pair = await Pair.start();
  const { a } = pair;
  await a.exec("ip", "addr", "flush", "dev", "v0");
  await a.exec("ping", "-c", "1", "-W", "0.1", "10.77.0.2").catch(() => undefined);
  const error = (await a.event("pathError")) as { code: string };
  assert.equal(error.code, "ENETUNREACH");
  await a.exec("ip", "addr", "add", "192.0.2.1/24", "dev", "v0");
  await ping(a, "10.77.0.2");
});

test(
  "without descriptors left a device says what it cannot open, leaves none open, and starts when there are some",
  root,
  async () => {
    const command = `ulimit -n 64; exec unshare --net ${process.execPath} ${STARVED}`;
    const { stdout } = await promisify(execFile)("bash", ["-c", command], { timeout: 18_000 });
    const tries = stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as { free: number; code: string; before: number; after: number });
    const codes = new Set(tries.map(({ code }) => code));
    for (const code of ["tun-failed", "syscall-failed", "worker-failed"]) assert.ok(codes.has(code), stdout);
    assert.equal(tries.at(-1)!.code, "started");
    for (const { code, before, after } of tries) {
      assert.match(code, /^(started|tun-failed|syscall-failed|worker-failed)$/, stdout);
      assert.equal(after, before, stdout);
    }
  },
);
