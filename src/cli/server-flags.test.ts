import assert from "node:assert/strict";
import { resolve } from "node:path";
import { test } from "node:test";
import { UsageError } from "./exit-codes.ts";
import { parseCount, parseLifetime, parseServerFlags, type ServerFlags } from "./server-flags.ts";

test("without flags a server listens on the documented ports and keeps its data in the documented place", () => {
  const { listen, stunListen, dataDir, publicUrl, roles, tls } = parseServerFlags({});
  assert.deepEqual(listen, { address: "0.0.0.0", port: 33073 });
  assert.deepEqual(stunListen, { address: "0.0.0.0", port: 3478 });
  assert.deepEqual([dataDir, publicUrl, roles, tls], ["/var/lib/perch-server", undefined, undefined, undefined]);
});

test("flags are read in each form they may have", () => {
  const options = parseServerFlags({
    listen: "[::]:443",
    dataDir: "data",
    database: "sqlite:some.db",
    bus: "local",
    roles: "management, signal",
    tlsCert: "c",
    tlsKey: "k",
    domain: "Mesh.Example.ORG.",
  });
  assert.deepEqual(options.listen, { address: "::", port: 443 });
  assert.equal(options.dataDir, resolve("data"));
  assert.equal(options.databasePath, resolve("some.db"));
  assert.deepEqual(options.roles, ["management", "signal"]);
  assert.deepEqual(options.tls, { certFile: "c", keyFile: "k" });
  assert.equal(options.domain, "mesh.example.org");
});

test("flags that cannot be meant are refused with their name and value", () => {
  const cases: readonly (readonly [ServerFlags, RegExp])[] = [
    [{ listen: "33073" }, /--listen.*33073/],
    [{ listen: "127.0.0.1:70000" }, /--listen.*70000/],
    [{ stunListen: "host:1" }, /--stun-listen.*host/],
    [{ dataDir: "" }, /--data-dir/],
    [{ database: "postgres://u:hunter2@db/perch" }, /--database postgres:.*not supported yet/],
    [{ database: "mysql:x" }, /--database "mysql:x"/],
    [{ database: "sqlite:" }, /--database "sqlite:"/],
    [{ bus: "nats://bus" }, /--bus.*not supported yet/],
    [{ roles: "management,signal,console" }, /console is not supported yet/],
    [{ roles: "mangement" }, /"mangement"/],
    [{ roles: "toString" }, /"toString"/],
    [{ roles: "" }, /--roles/],
    [{ tlsCert: "x" }, /--tls-key is missing/],
    [{ tlsKey: "x" }, /--tls-cert is missing/],
    [{ domain: "under_score" }, /--domain "under_score"/],
    [{ domain: "-x.org" }, /--domain/],
    [{ domain: `${"a.".repeat(100)}org` }, /190/],
  ];
  for (const [flags, line] of cases)
    assert.throws(
      () => parseServerFlags(flags),
      (error: unknown) => error instanceof UsageError && line.test(error.message) && !error.message.includes("hunter2"),
      JSON.stringify(flags),
    );
});

test("lifetimes have a unit and an end", () => {
  assert.equal(parseLifetime("--expires", "90s"), 90_000);
  assert.equal(parseLifetime("--expires", "30m"), 1_800_000);
  assert.equal(parseLifetime("--expires", "24h"), 86_400_000);
  assert.equal(parseLifetime("--expires", "7d"), 604_800_000);
  assert.equal(parseLifetime("--expires", "2w"), 1_209_600_000);
  assert.equal(parseLifetime("--expires", "never"), undefined);
  for (const text of ["", "24", "h", "0h", "-1h", "1.5h", "1y", "999999999w"])
    assert.throws(() => parseLifetime("--expires", text), /--expires/, text);
});

test("counts are whole numbers", () => {
  assert.equal(parseCount("--usage-limit", "0"), 0);
  assert.equal(parseCount("--usage-limit", "12"), 12);
  for (const text of ["", "-1", "1.5", "many", "9999999999"])
    assert.throws(() => parseCount("--usage-limit", text), /--usage-limit/, text);
});
