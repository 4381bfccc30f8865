import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readFileSync, rmSync, statSync } from "node:fs";
import { createConnection, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
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
  const watching = watch(t, at.address);
  await until(() => watching.out().includes("peer-4"));
  await at.run("peers wake peer-1");
  await until(() => watching.out().includes("Idle -> Connecting: woken by you"));
  assert.equal(await watching.interrupt(), EXIT.interrupted);
  assert.match(watching.out(), /^\d\d:\d\d:\d\d\.\d{3} peer-1.perch.test Idle: asleep/);
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

test("who watches is told when the daemon ends, and sees the one that is started after it", async (t) => {
  const at = scene(t);
  const daemon = await at.startDaemon("--registered");
  await at.run(`up --management-url ${SERVER}`);
  const watching = watch(t, at.address, "--json");
  await until(() => watching.parts().length > 0);
  await daemon.stop();
  await until(() => watching.err() !== "");
  await at.startDaemon("--registered");
  await at.run(`up --management-url ${SERVER}`);
  await until(() => watching.parts().at(-1)!.peers.length === 4 && watching.parts().length > 1);
  const [before, after] = [watching.parts()[0]!, watching.parts().findLast(({ reset }) => reset)!];
  assert.deepEqual([before.reset, before.peers.length, after.reset], [true, 4, true]);
  assert.notEqual(after.epoch, before.epoch);
  const message = `the daemon on ${at.dir}/d.sock ended before it was done; waiting for it to come back`;
  assert.equal(watching.err(), `perch: ${message}\n`);
  assert.equal(await watching.interrupt(), EXIT.interrupted);
});

test("a watcher whose connection breaks asks only for what changed since, and prints nothing twice", async (t) => {
  const at = scene(t);
  await at.startDaemon("--registered");
  await at.run(`up --management-url ${SERVER}`);
  const open = new Set<Socket>();
  let cut = false;
  const between = createServer((near) => {
    if (cut) return void near.destroy();
    const far = createConnection(join(at.dir, "d.sock"));
    for (const [here, there] of [
      [near, far],
      [far, near],
    ] as const) {
      open.add(here.on("error", () => {}).on("close", () => there.destroy()));
      here.pipe(there);
    }
  });
  const path = join(at.dir, "between.sock");
  between.listen(path);
  await once(between, "listening");
  t.after(() => between.close());
  const documents = watch(t, `unix://${path}`, "--json");
  const lines = watch(t, `unix://${path}`);
  await until(() => documents.parts().length > 0 && lines.out().includes("peer-4"));
  const { epoch, revision } = documents.parts()[0]!;
  cut = true;
  for (const socket of open) socket.destroy();
  await at.run("peers wake peer-1");
  cut = false;
  await until(() => documents.parts().length > 1 && lines.out().includes("woken by you"));
  const [, next] = documents.parts();
  assert.deepEqual(
    [next!.epoch, next!.reset, next!.peers.map(({ fqdn }) => fqdn)],
    [epoch, false, ["peer-1.perch.test"]],
  );
  assert.ok(next!.revision > revision);
  assert.equal(lines.out().match(/peer-\d/g)?.length, 5, "four peers, and one change");
});

interface PrintedPart {
  readonly epoch: string;
  readonly revision: number;
  readonly reset: boolean;
  readonly peers: readonly { readonly fqdn: string }[];
}

/** `perch status --watch` as a process of its own. */
function watch(t: TestContext, address: string, ...flags: readonly string[]) {
  const child = spawn(PERCH, ["status", "--watch", ...flags, "--daemon-addr", address], {
    env: cleanEnvironment({}),
    stdio: ["ignore", "pipe", "pipe"],
  });
  const ended = new Promise<number | null>((resolve) => child.once("exit", resolve));
  t.after(() => child.kill("SIGKILL"));
  let out = "";
  let err = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    out += text;
  });
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    err += text;
  });
  return {
    out: () => out,
    err: () => err,
    parts: () =>
      out
        .split("\n")
        .slice(0, -1)
        .map((line) => JSON.parse(line) as PrintedPart),
    interrupt() {
      child.kill("SIGINT");
      return ended;
    },
  };
}
