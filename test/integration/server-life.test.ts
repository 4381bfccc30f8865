import assert from "node:assert/strict";
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { remoteKeys, TestAgent, testMeta } from "#management/test-server.ts";
import { freePort, perch, ServerProcess, temporaryDirectory } from "./server-process.ts";

const json = <Value>(...args: readonly string[]): Value => JSON.parse(perch(...args, "--json").stdout) as Value;

test("the first start prints a token and a setup key, writes the key to a file, and later starts do not", async () => {
  using directory = temporaryDirectory();
  const data = join(directory.path, "data");
  const file = join(directory.path, "setup-key");
  const first = await ServerProcess.start(data, "--setup-key-file", file);
  assert.match(first.adminToken, /^perch_[\w-]{40,}$/);
  assert.match(first.setupKey, /^[0-9A-F-]{36}$/);
  assert.equal(readFileSync(file, "utf8"), `${first.setupKey}\n`);
  assert.equal(statSync(file).mode & 0o777, 0o600);
  assert.equal(statSync(data).mode & 0o777, 0o700);
  assert.equal(statSync(join(data, "admin.sock")).mode & 0o777, 0o600);
  assert.equal(statSync(join(data, "perch.db")).mode & 0o777, 0o600);
  assert.match(first.stdout, /\nready\n$/);
  const [key] = json<{ reusable: boolean; createdAt: number; expiresAt: number }[]>(
    ...["server", "setup-key", "list", "--data-dir", data],
  );
  assert.equal(key?.reusable, true);
  assert.equal(key.expiresAt - key.createdAt, 24 * 3_600_000);
  const ended = await first.stop("SIGTERM");
  assert.equal(ended.code, 0, ended.stderr);
  assert.ok(!existsSync(join(data, "admin.sock")));
  // Secrets go to stdout and the file alone.
  for (const secret of [first.setupKey, first.adminToken]) assert.ok(!ended.stderr.includes(secret));

  await using second = await ServerProcess.start(data, "--setup-key-file", file);
  assert.equal(second.setupKey + second.adminToken, "");
  assert.equal(readFileSync(file, "utf8"), `${first.setupKey}\n`);
  assert.equal((await second.stop("SIGINT")).code, 0);
});

test("a killed server comes back with its keys, peers and serials, and agents with a change made meanwhile", async () => {
  using directory = temporaryDirectory();
  const data = directory.path;
  const listen = `127.0.0.1:${await freePort()}`;
  await using first = await ServerProcess.start(data, "--listen", listen);
  await using a = new TestAgent(first.url);
  await using b = new TestAgent(first.url);
  const login = await a.client.login({ setupKey: first.setupKey, meta: testMeta("a") });
  a.sync(testMeta("a"));
  await b.client.login({ setupKey: first.setupKey, meta: testMeta("b") });
  const before = await a.until((update) => remoteKeys(update).includes(b.key.publicKey));
  await first.stop("SIGKILL");
  assert.ok(existsSync(join(data, "admin.sock")), "a killed server cleans nothing up");

  // The store is open to the administrator while no server runs.
  assert.match(perch("server", "settings", "--lazy", "off", "--data-dir", data).stdout, /off/);
  await using second = await ServerProcess.start(data, "--listen", listen);
  assert.equal(second.url, first.url);
  assert.equal(second.adminToken, "", "it is no first start");
  const after = await a.until(
    (update) => update.NetworkMap !== undefined && update.NetworkMap.Serial > before.NetworkMap!.Serial,
  );
  assert.ok(remoteKeys(after).includes(b.key.publicKey));
  assert.equal(after.NetworkMap?.peerConfig?.address, login.peerConfig?.address);
  assert.equal(after.NetworkMap?.peerConfig?.LazyConnectionEnabled, false);
  await using c = new TestAgent(second.url);
  await c.client.login({ setupKey: first.setupKey, meta: testMeta("c") });
  await a.until((update) => remoteKeys(update).includes(c.key.publicKey));
});

test("what an administrator changes on a running server reaches its agents at once", async () => {
  using directory = temporaryDirectory();
  await using server = await ServerProcess.start(directory.path);
  const admin = (...args: readonly string[]) => perch("server", ...args, "--data-dir", directory.path);
  const key = admin("setup-key", "create", "--reusable", "--expires", "1h", "--name", "lab").stdout.trim();
  assert.match(key, /^[0-9A-F-]{36}$/);
  await using a = new TestAgent(server.url);
  await using b = new TestAgent(server.url);
  await a.client.login({ setupKey: key, meta: testMeta("a") });
  await b.client.login({ setupKey: key, meta: testMeta("b") });
  a.sync(testMeta("a"));
  b.sync(testMeta("b"));
  await a.until((update) => update.NetworkMap?.peerConfig?.LazyConnectionEnabled === true);
  await b.until((update) => remoteKeys(update).includes(a.key.publicKey));
  assert.deepEqual(admin("settings", "--lazy", "off").stdout, "lazy connections: off\n");
  await a.until((update) => update.NetworkMap?.peerConfig?.LazyConnectionEnabled === false);
  const peers = JSON.parse(admin("peers", "list", "--json").stdout) as { name: string; connected: boolean }[];
  assert.deepEqual(
    peers.map(({ name, connected }) => [name, connected]),
    [
      ["a", true],
      ["b", true],
    ],
  );
  const seen = a.updates.length;
  assert.equal(admin("peers", "delete", "b").code, 0);
  await a.until((update) => a.updates.indexOf(update) >= seen && update.NetworkMap?.remotePeersIsEmpty === true);
  assert.match(admin("setup-key", "revoke", key.slice(0, 8)).stdout, /^revoked /);
  await using late = new TestAgent(server.url);
  await assert.rejects(late.client.login({ setupKey: key, meta: testMeta("late") }), /revoked/);
  const unknown = admin("peers", "delete", "nobody");
  assert.deepEqual([unknown.code, unknown.stderr], [1, 'perch: no peer has the name, address or key "nobody"\n']);
  assert.match(admin("token", "create").stdout, /^perch_/);
});

test("several servers run on one machine, each on its own ports and directory", async () => {
  using directory = temporaryDirectory();
  await using one = await ServerProcess.start(join(directory.path, "one"));
  await using two = await ServerProcess.start(join(directory.path, "two"));
  await using agent = new TestAgent(two.url);
  await assert.rejects(agent.client.login({ setupKey: one.setupKey, meta: testMeta("a") }), /unknown/);
  await agent.client.login({ setupKey: two.setupKey, meta: testMeta("a") });
});

test("what cannot start says so in one line that names the value, with its exit code, and leaves nothing behind", async () => {
  using directory = temporaryDirectory();
  const held = join(directory.path, "held");
  await using running = await ServerProcess.start(held);
  const missing = join(directory.path, "missing");
  const free = ["--log-level", "error", "--listen", "127.0.0.1:0", "--stun-listen", "127.0.0.1:0"];
  const cases: readonly (readonly [number, readonly string[], RegExp])[] = [
    [1, ["--data-dir", missing, ...free, "--listen", running.origin], new RegExp(`${running.origin}: another program`)],
    [1, ["--data-dir", held, ...free], new RegExp(`${held} is in use`)],
    [1, ["--data-dir", "/proc/perch", ...free], /\/proc\/perch/],
    [2, ["--data-dir", missing, ...free, "--public-url", "perch.example.org"], /--public-url "perch\.example\.org"/],
    [
      2,
      ["--data-dir", missing, ...free, "--database", "postgres://u:hunter2@db/perch"],
      /--database.*not supported yet/,
    ],
    [2, ["--data-dir", missing, ...free, "--roles", "relay"], /relay without management.*not supported yet/],
    [1, ["setup-key", "list", "--data-dir", missing], new RegExp(`no server was ever started.*${missing}`)],
  ];
  for (const [code, args, line] of cases) {
    const ended = perch("server", ...args);
    assert.deepEqual([ended.code, ended.stdout], [code, ""], args.join(" "));
    assert.match(ended.stderr, /^perch: [^\n]+\n$/);
    assert.match(ended.stderr, line);
    assert.ok(!ended.stderr.includes("hunter2"));
    assert.ok(!existsSync(missing));
  }
});
