import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { parseDaemonAddress } from "./daemon-address.ts";
import { listenOnUnix, probeSocket } from "./unix-listener.ts";

function scratch(): { readonly dir: string; readonly path: string } & Disposable {
  const dir = mkdtempSync(join(tmpdir(), "perch-sock-"));
  return { dir, path: join(dir, "d.sock"), [Symbol.dispose]: () => rmSync(dir, { recursive: true, force: true }) };
}

test("without the group the socket is for its owner alone, and closing leaves nothing", async () => {
  using at = scratch();
  const listener = await listenOnUnix(createServer(), at.path, "/dev/null");
  assert.equal(statSync(at.path).mode & 0o777, 0o600);
  assert.equal(await probeSocket(at.path), true);
  await listener.close();
  await listener.close();
  assert.deepEqual(readdirSync(at.dir), []);
});

test("with the group perch its members may open the socket", {
  skip: process.getuid?.() !== 0 && "needs root",
}, async () => {
  using at = scratch();
  const groups = join(at.dir, "group");
  writeFileSync(groups, "root:x:0:\nperch:x:4711:alice,bob\nperchance:x:5:\n");
  await using _listener = await listenOnUnix(createServer(), at.path, groups);
  const { mode, uid, gid } = statSync(at.path);
  assert.deepEqual([mode & 0o777, uid, gid], [0o660, 0, 4711]);
});

test("a second daemon on a socket is refused in one line that names the path, and the first stays", async () => {
  using at = scratch();
  await using _first = await listenOnUnix(createServer(), at.path, "/dev/null");
  await assert.rejects(listenOnUnix(createServer(), at.path, "/dev/null"), {
    code: "daemon-running",
    message: `a daemon already runs on ${at.path}; choose another --daemon-addr or stop it first`,
  });
  assert.equal(await probeSocket(at.path), true);
});

test("a socket that a killed process left is replaced", async () => {
  using at = scratch();
  const script = `require("node:net").createServer().listen(${JSON.stringify(at.path)}, () => process.kill(process.pid, "SIGKILL"))`;
  assert.equal(spawnSync(process.execPath, ["-e", script], { timeout: 5000 }).signal, "SIGKILL");
  assert.equal(existsSync(at.path), true);
  assert.equal(await probeSocket(at.path), false);
  await using _listener = await listenOnUnix(createServer(), at.path, "/dev/null");
  assert.equal(await probeSocket(at.path), true);
});

test("a file that is not a socket is left alone", async () => {
  using at = scratch();
  writeFileSync(at.path, "precious");
  await assert.rejects(listenOnUnix(createServer(), at.path, "/dev/null"), {
    code: "daemon-path",
    message: /d\.sock exists and is not a socket/,
  });
  assert.deepEqual(readdirSync(at.dir), ["d.sock"]);
});

test("addresses other than unix sockets of a length the system takes are refused", () => {
  assert.equal(parseDaemonAddress("unix:///run/a.sock"), "/run/a.sock");
  assert.equal(parseDaemonAddress("/run/a.sock"), "/run/a.sock");
  assert.throws(() => parseDaemonAddress("tcp://127.0.0.1:1"), /unix:\/\/\/absolute\/path, got "tcp:\/\/127.0.0.1:1"/);
  assert.throws(() => parseDaemonAddress("unix://relative"), /absolute/);
  assert.throws(() => parseDaemonAddress(`/${"x".repeat(107)}`), /at most 107 bytes, .* has 108/);
});
