import assert from "node:assert/strict";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { EXIT } from "./exit-codes.ts";

import { KEY, SERVER, scene } from "./testing/perch-process.ts";

test("up, status, peers, why, lazy and down against a daemon", async (t) => {
  const at = scene(t);
  await at.startDaemon();
  assert.equal(statSync(join(at.dir, "d.sock")).mode & 0o007, 0);
  const unset = await at.run("up");
  assert.deepEqual([unset.code, unset.err], [2, "perch: no server is known yet: give --management-url URL\n"]);
  const unknown = await at.run(`up --management-url ${SERVER}`);
  assert.deepEqual(
    [unknown.code, unknown.err.split("\n").at(-2)],
    [4, `perch: ${SERVER}: this machine is not registered`],
  );
  assert.equal((await at.run("status --check ready")).code, EXIT.needsLogin);

  writeFileSync(join(at.dir, "key"), `${KEY}\n`);
  const up = await at.run(`up --setup-key-file ${at.dir}/key --hostname box`, { NB_MANAGEMENT_URL: SERVER });
  assert.deepEqual(
    [up.code, up.out],
    [0, "up as box.perch.test, 100.64.0.1/16 on perch0, 4 peers, lazy connections on\n"],
  );
  assert.match(up.err, /^connecting to http:\/\/m.test:33073\nconnected to/);
  assert.doesNotMatch(readFileSync(join(at.stateDir, "settings.json"), "utf8"), /38F5/);
  assert.match((await at.run("up")).out, /^already up as box/);

  assert.match(
    (await at.run("status")).out,
    /^Agent: +up, .*\nLazy connection: true, decided by the network.*\nPeers: +2\/4 connected, 1 connecting, 1 idle\n$/s,
  );
  assert.equal((await at.run("status -4")).out, "100.64.0.1\n");
  assert.deepEqual(
    [(await at.run("status --check live")).code, (await at.run("status --check ready")).out],
    [0, "ready\n"],
  );
  const json = JSON.parse(
    (await at.run("status --json --filter-by-status CONNECTED,idle --filter-by-names peer-3,peer-1")).out,
  );
  assert.deepEqual(
    json.peers.details.map((peer: { fqdn: string }) => peer.fqdn),
    ["peer-1.perch.test", "peer-3.perch.test"],
  );
  assert.deepEqual([json.peers.total, json.perch.peers.total], [2, 4]);
  const yaml = (await at.run("status --yaml --filter-by-ips 100.64.0.2")).out;
  assert.match(yaml, /^peers:\n {2}total: 1\n {2}connected: 0\n {2}details:\n {4}- fqdn: peer-1.perch.test\n/);
  assert.match(
    (await at.run("status -d --filter-by-status connecting")).out,
    /^Peers\n peer-2.perch.test\n.*\(1 of 4 peers pass the filters\)/s,
  );

  assert.equal((await at.run("peers wake peer-1")).out, "peer-1.perch.test: Connecting, woken by you\n");
  assert.equal((await at.run("peers sleep 100.64.0.2")).out, "peer-1.perch.test: Idle, put to sleep by you\n");
  assert.match((await at.run("peers pin peer-1")).out, /^peer-1.perch.test: pinned, Idle/);
  const wrong = await at.run("peers wake carol");
  assert.deepEqual([wrong.code, wrong.err], [1, 'perch: no peer "carol" in this network (4 peers are known)\n']);
  assert.match((await at.run("why peer-3")).out, /\+180 ms {2}direct/);
  assert.equal(JSON.parse((await at.run("why peer-3 --json")).out).perch.timeline.length, 3);

  assert.match((await at.run("lazy off")).out, /^Lazy connection: false, decided by the stored setting\n$/);
  assert.match((await at.run("lazy")).out, /^Lazy connection: false, decided by the stored setting\n$/);
  assert.match((await at.run("service log-level debug")).out, /^log level is debug, was info\n$/);
  const down = await at.run("down");
  assert.deepEqual([down.code, down.out, down.err], [0, "down\n", ""]);
  assert.equal((await at.run("down")).out, "already down\n");
  assert.match((await at.run("status")).out, /^Agent: +down \(connect with: perch up\)/);
  assert.deepEqual([(await at.run("status --check ready")).code, (await at.run("status -4")).code], [1, 1]);
  assert.match((await at.run("peers wake peer-1")).err, /the agent is not up; start it with: perch up/);
});

test("doctor tells what it found in words and as JSON, and its exit code says whether something has to be mended", async (t) => {
  const at = scene(t);
  await at.startDaemon("--registered");
  const asleep = await at.run("doctor");
  assert.equal(asleep.code, EXIT.failure);
  assert.match(asleep.out, /^ok {5}Daemon {6}running for .*\nwrong {2}Agent {7}down\n {19}-> perch up\n/);
  assert.match(asleep.out, /\n\nOne thing has to be mended\.\n$/);
  assert.match((await at.run("doctor peer-1")).err, /the agent is not up; start it with: perch up/);
  assert.equal((await at.run(`up --management-url ${SERVER} --wireguard-port 51899`)).code, 0);

  const agent = await at.run("doctor");
  assert.equal(agent.code, 0, agent.out);
  const json = JSON.parse((await at.run("doctor --json")).out);
  const levels = Object.fromEntries(json.findings.map(({ area, level }: Record<string, string>) => [area, level]));
  assert.deepEqual(
    [levels.stun, levels.nat, levels.udp, levels.clock, levels.firewall],
    ["ok", "ok", "ok", "ok", "note"],
  );
  assert.equal(json.udp.servers[0].mapped, "203.0.113.7:51820");
  assert.match(agent.out, /\nok {5}STUN {8}198.51.100.1:3478 answers after 21 ms and sees 203.0.113.7:51820\n/);
  assert.match(agent.out, /\nnote {3}Firewall {4}the network has no access rules/);

  const direct = await at.run("doctor peer-3");
  assert.equal(direct.code, 0);
  assert.match(
    direct.out,
    /^peer-3.perch.test is Connected for .*\n\nWhy: {3}The two agents talk directly.*\nTo do: Nothing.\n/,
  );
  const relayed = await at.run("doctor 100.64.0.5");
  assert.equal(relayed.code, 1);
  assert.match(relayed.out, /\nWhy: {3}The NAT of peer-4 is symmetric,/);
  assert.match(relayed.out, /\nTo do: Forward UDP port 51899 to this machine/);
  assert.match(relayed.out, /\n {2}srflx 203.0.113.9:40112 {2}16 {4}0 {9}0 {9}failed {2}-\n$/);
  const document = JSON.parse((await at.run("doctor peer-4 --json")).out);
  assert.deepEqual(
    [document.healthy, document.verdict, document.certainty, document.there.mapping, document.search.pairs[0].sent],
    [false, "symmetric-there", "certain", "endpoint-dependent", 16],
  );
  const offline = await at.run("doctor peer-2");
  assert.deepEqual([offline.code, /peer-2 is offline/.test(offline.out)], [1, true]);
  const idle = await at.run("doctor peer-1");
  assert.deepEqual([idle.code, /is asleep and nothing is wrong/.test(idle.out)], [0, true]);
  const unknown = await at.run("doctor carol");
  assert.deepEqual([unknown.code, unknown.err], [1, 'perch: no peer "carol" in this network (4 peers are known)\n']);
});

test("lazy connections follow flag, environment, setting and network in this order", async (t) => {
  const at = scene(t);
  await at.startDaemon("--registered");
  const table: readonly (readonly [string, NodeJS.ProcessEnv, string])[] = [
    [`up --management-url ${SERVER}`, {}, "true, decided by the network"],
    ["up", { NB_LAZY_CONN: "off" }, "false, decided by the environment"],
    ["up", { NB_ENABLE_EXPERIMENTAL_LAZY_CONN: "true", PERCH_LAZY_CONN: "off" }, "false, decided by the environment"],
    ["up --enable-lazy-connection", { PERCH_LAZY_CONN: "off" }, "true, decided by the flag of perch up"],
    ["up --enable-lazy-connection=false", {}, "false, decided by the flag of perch up"],
    ["up", {}, "false, decided by the stored setting"],
  ];
  for (const [args, environment, lazy] of table) {
    await at.run("down");
    const { code, err } = await at.run(args, environment);
    assert.equal(code, 0, err);
    assert.match(
      (await at.run("status")).out,
      new RegExp(`Lazy connection: ${lazy}`),
      `${args} ${JSON.stringify(environment)}`,
    );
  }
});

test("deregister needs a yes and leaves a machine that needs a key again", async (t) => {
  const at = scene(t);
  await at.startDaemon("--registered");
  await at.run(`up --management-url ${SERVER}`);
  assert.equal((await at.run("deregister")).code, EXIT.usage);
  assert.equal((await at.run("deregister --yes")).out, "deregistered\n");
  assert.equal((await at.run("up")).code, EXIT.needsLogin);
  const login = await at.run(`login --setup-key ${KEY}`);
  assert.deepEqual([login.code, login.out], [0, "registered; connect with: perch up\n"]);
  assert.equal((await at.run("up")).code, 0);
});
