import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, readFileSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { EXIT } from "./exit-codes.ts";

import { cleanEnvironment, FAKE_DAEMON, KEY, PERCH, perch, SERVER, scene, until } from "./testing/perch-process.ts";

test("a daemon that was up comes up again after SIGTERM and after SIGKILL, and one that was down stays down", async (t) => {
  const at = scene(t);
  const first = await at.startDaemon("--registered");
  await at.run(`up --management-url ${SERVER} --mtu 1300`);
  assert.equal(await first.stop(), 0);
  assert.equal(existsSync(join(at.dir, "d.sock")), false);
  const second = await at.startDaemon("--registered");
  assert.match((await at.run("status")).out, /^Agent: +up.*MTU 1300/s);
  await second.stop("SIGKILL");
  assert.equal(existsSync(join(at.dir, "d.sock")), true);
  assert.equal((await at.run("status")).code, EXIT.noDaemon);
  const third = await at.startDaemon("--registered");
  assert.match((await at.run("status -d")).out, /^Agent: +up/m);
  await at.run("down");
  assert.equal(await third.stop("SIGINT"), 0);
  await at.startDaemon("--registered");
  assert.match((await at.run("status")).out, /^Agent: +down/);
});

test("a second daemon is refused in one line with the path, and the first goes on", async (t) => {
  const at = scene(t);
  await at.startDaemon();
  const sameSocket = await perch(
    [FAKE_DAEMON, "--daemon-addr", at.address, "--state-dir", join(at.dir, "b")],
    {},
    process.execPath,
  );
  assert.equal(sameSocket.code, 1);
  assert.match(
    sameSocket.err,
    /^perch: a daemon already runs on .*\/d.sock; choose another --daemon-addr or stop it first\n$/,
  );
  const sameState = await perch(
    [FAKE_DAEMON, "--daemon-addr", `unix://${at.dir}/c.sock`, "--state-dir", at.stateDir],
    {},
    process.execPath,
  );
  assert.equal(sameState.code, 1);
  assert.match(
    sameState.err,
    /^perch: a daemon \(pid \d+\) already uses the state directory .*\/state; choose another --state-dir\n$/,
  );
  assert.equal(existsSync(join(at.dir, "c.sock")), false);
  assert.equal((await at.run("status --check live")).code, 0);
});

test("the log file has one JSON object a line, is opened again on SIGHUP, and holds no key", async (t) => {
  const at = scene(t);
  const file = join(at.dir, "log", "perch.log");
  const child = spawn(
    process.execPath,
    [FAKE_DAEMON, "--daemon-addr", at.address, "--state-dir", at.stateDir, "--log-file", file],
    {
      env: cleanEnvironment({}),
      stdio: "ignore",
    },
  );
  const ended = new Promise<number | null>((resolve) => child.once("exit", resolve));
  t.after(() => child.kill("SIGKILL"));
  await until(() => existsSync(file) && readFileSync(file, "utf8").includes("daemon ready"));
  await at.run(`up --management-url ${SERVER} --setup-key ${KEY}`);
  rmSync(file);
  child.kill("SIGHUP");
  await until(() => existsSync(file));
  child.kill("SIGTERM");
  assert.equal(await ended, 0);
  const lines = readFileSync(file, "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as { msg: string; level: string });
  assert.deepEqual(
    lines.map(({ msg, level }) => `${level} ${msg}`),
    ["info ending", "info daemon ended"],
  );
  assert.equal(statSync(file).mode & 0o007, 0);
});

test("watch prints a line for each change of a state until it is interrupted", async (t) => {
  const at = scene(t);
  await at.startDaemon("--registered");
  await at.run(`up --management-url ${SERVER}`);
  const child = spawn(PERCH, ["status", "--watch", "--daemon-addr", at.address], {
    env: cleanEnvironment({}),
    stdio: ["ignore", "pipe", "inherit"],
  });
  t.after(() => child.kill("SIGKILL"));
  let out = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    out += text;
  });
  await until(() => out.includes("peer-4"));
  await at.run("peers wake peer-1");
  await until(() => out.includes("Idle -> Connecting: woken by you"));
  const ended = new Promise<number | null>((resolve) => child.once("exit", resolve));
  child.kill("SIGINT");
  assert.equal(await ended, EXIT.interrupted);
  assert.match(out, /^\d\d:\d\d:\d\d\.\d{3} peer-1.perch.test Idle: asleep/);
});

test("the status of 10,000 peers is complete in every form", async (t) => {
  const at = scene(t);
  await at.startDaemon("--registered", "--peers", "10000");
  await at.run(`up --management-url ${SERVER}`);
  const detail = await at.run("status -d");
  assert.equal(detail.out.match(/^ {3}Public key:/gm)?.length, 10_000);
  const json = await at.run("status --json");
  assert.equal(JSON.parse(json.out).peers.details.length, 10_000);
  const yaml = await at.run("status --yaml");
  assert.equal(yaml.out.match(/^ {4}- fqdn: /gm)?.length, 10_000);
  const one = await at.run("status --json --filter-by-ips 100.64.39.17");
  assert.equal(JSON.parse(one.out).peers.details[0].fqdn, "peer-10000.perch.test");
  const short = await at.run("status");
  for (const [form, { ms, code }] of Object.entries({ detail, json, yaml, one, short })) {
    assert.equal(code, 0);
    t.diagnostic(`${form}: ${Math.round(ms)} ms`);
  }
});

test("a reader that has enough does not make status fail", async (t) => {
  const at = scene(t);
  await at.startDaemon("--registered", "--peers", "5000");
  await at.run(`up --management-url ${SERVER}`);
  const { code, out, err } = await perch(
    ["-c", `"${PERCH}" status -d --daemon-addr ${at.address} | head -1`],
    {},
    "/bin/sh",
  );
  assert.deepEqual([code, out, err], [0, "Peers\n", ""]);
});

test("up in the foreground serves like a daemon and ends with the signal, also in the middle of connecting", async (t) => {
  const at = scene(t);
  const going = await at.startDaemon("--registered", "--up", SERVER);
  await until(() => going.log().includes("Ctrl-C disconnects"));
  assert.match((await at.run("status")).out, /^Agent: +up/);
  assert.equal(await going.stop("SIGINT"), 0);
  const stuck = await at.startDaemon("--registered", "--stuck", "--up", SERVER);
  await until(() => stuck.log().includes("connecting to"));
  assert.equal(await stuck.stop("SIGINT"), EXIT.interrupted);
  const refused = await perch(
    [FAKE_DAEMON, "--daemon-addr", at.address, "--state-dir", join(at.dir, "fresh"), "--up", SERVER],
    {},
    process.execPath,
  );
  assert.equal(refused.code, EXIT.needsLogin);
  assert.match(refused.err, /^perch: http:\/\/m.test:33073: this machine is not registered$/m);
  assert.equal(existsSync(join(at.dir, "d.sock")), false);
});

test("who watches is told when the daemon ends", async (t) => {
  const at = scene(t);
  const daemon = await at.startDaemon("--registered");
  await at.run(`up --management-url ${SERVER}`);
  const watching = at.run("status --watch --json");
  setTimeout(() => void daemon.stop(), 1000);
  const { code, out, err } = await watching;
  assert.deepEqual([code, err], [1, `perch: the daemon on ${at.dir}/d.sock ended before it was done\n`]);
  assert.equal(JSON.parse(out.split("\n")[0]!).peers.length, 4);
});
