import assert from "node:assert/strict";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server as TcpServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { type Endpoint, parseEndpoint } from "#base/ip.ts";
import { PrivateKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { systemClock } from "#base/time.ts";
import { SignalClient } from "#signal/client/signal-client.ts";
import { ADMIN_CALLS, remoteAdmin } from "./admin.ts";
import { callAdmin } from "./admin-socket.ts";
import { openAdmin } from "./open-admin.ts";
import { createPerchServer, type PerchServer, type PerchServerOptions } from "./server.ts";

const base = mkdtempSync(join(tmpdir(), "perch-composed-"));
after(() => rmSync(base, { recursive: true }));
let counter = 0;
const fresh = (): string => join(base, `d${counter++}`);
const free = parseEndpoint("127.0.0.1:0");

const start = (options: Partial<PerchServerOptions> & { readonly dataDir: string }): Promise<PerchServer> =>
  createPerchServer({ clock: systemClock, log: silentLogger }, { listen: free, stunListen: free, ...options });

const statusOf = async (url: string, path: string): Promise<number> => (await fetch(`${url}${path}`)).status;

test("a start that fails at any step leaves no port, no directory and no database behind", async () => {
  const tcp: TcpServer = createServer().listen(0, "127.0.0.1");
  await once(tcp, "listening");
  const udp = createSocket("udp4").bind(0, "127.0.0.1");
  await once(udp, "listening");
  try {
    const taken = (port: number): Endpoint => ({ address: free.address, port });
    const file = fresh();
    writeFileSync(file, "");
    const cases: readonly (readonly [Partial<PerchServerOptions>, string, RegExp])[] = [
      [{ listen: taken((tcp.address() as { port: number }).port) }, "listen-taken", /127\.0\.0\.1:\d+/],
      [{ listen: parseEndpoint("192.0.2.1:4000") }, "listen-address", /192\.0\.2\.1:4000/],
      [{ stunListen: taken(udp.address().port) }, "listen-taken", /UDP 127\.0\.0\.1:\d+/],
      [{ databasePath: base }, "store-unusable", new RegExp(base)],
      [{ databasePath: join(base, "nowhere", "x.db") }, "store-unusable", /nowhere/],
      [{ setupKeyFile: join(base, "nowhere", "key") }, "setup-key-file", /nowhere/],
      [{ tls: { certFile: join(base, "nowhere"), keyFile: file } }, "tls-material", /--tls-cert.*nowhere/],
      [{ tls: { certFile: file, keyFile: file } }, "tls-material", /certificate/],
      [{ publicUrl: "perch" }, "option-invalid", /--public-url "perch"/],
      [{ roles: ["relay"] }, "option-unsupported", /--roles/],
      [{ roles: ["management", "stun"] }, "option-unsupported", /--roles/],
    ];
    for (const [options, code, message] of cases) {
      const missing = fresh();
      await assert.rejects(start({ dataDir: missing, ...options }), { code, message }, code);
      assert.ok(!existsSync(missing), code);
      const there = fresh();
      mkdirSync(there);
      await assert.rejects(start({ dataDir: there, ...options }), { code, message }, code);
      assert.deepEqual(readdirSync(there), [], code);
    }
  } finally {
    tcp.close();
    udp.close();
  }
});

test("a port is free again after a start that failed behind it", async () => {
  await using first = await start({ dataDir: fresh() });
  const { listen } = first;
  await first.close();
  await assert.rejects(start({ dataDir: fresh(), listen, setupKeyFile: join(base, "nowhere", "key") }));
  await using _ = await start({ dataDir: fresh(), listen });
});

test("the roles decide what is served", async () => {
  await using all = await start({ dataDir: fresh() });
  assert.equal(await statusOf(all.endpoints.managementUrl, "/health"), 200);
  assert.equal(await statusOf(all.endpoints.managementUrl, "/"), 404);
  assert.match(all.endpoints.stunUri ?? "", /^stun:127\.0\.0\.1:\d+$/);
  const unused = fresh();
  await using signalAlone = await start({ dataDir: unused, roles: ["signal"] });
  assert.equal(signalAlone.management, undefined);
  assert.equal(signalAlone.endpoints.stunUri, undefined);
  assert.ok(!existsSync(unused), "without management nothing is stored");
  assert.equal(await statusOf(signalAlone.endpoints.managementUrl, "/health"), 200);
});

test("an agent stays registered for signals past the time that a request body has", async () => {
  const bodyMs = 100;
  await using server = await start({ dataDir: fresh(), roles: ["signal"], limits: { bodyMs } });
  const uri = new URL(server.endpoints.managementUrl).host;
  const client = new SignalClient(
    { clock: systemClock, log: silentLogger },
    { uri, tls: false, key: PrivateKey.generate() },
  );
  const states: boolean[] = [];
  client.events.on("state", ({ connected }) => states.push(connected));
  client.start();
  try {
    await sleep(5 * bodyMs);
    assert.deepEqual(states, [true]);
  } finally {
    client.close();
  }
});

test("a setup key file that was removed is made again, one that is there is kept", async () => {
  const dataDir = fresh();
  const setupKeyFile = join(base, "setup-key");
  const first = await start({ dataDir, setupKeyFile });
  assert.equal(readFileSync(setupKeyFile, "utf8"), `${first.firstStart?.setupKey}\n`);
  await first.close();
  await (await start({ dataDir, setupKeyFile })).close();
  assert.equal(readFileSync(setupKeyFile, "utf8"), `${first.firstStart?.setupKey}\n`);
  rmSync(setupKeyFile);
  await using third = await start({ dataDir, setupKeyFile });
  assert.equal(third.firstStart, undefined);
  assert.match(readFileSync(setupKeyFile, "utf8"), /^[0-9A-F-]{36}\n$/);
});

test("close is idempotent, and what comes after it finds the directory free and the socket gone", async () => {
  const dataDir = fresh();
  const server = await start({ dataDir });
  await Promise.all([server.close(), server.close()]);
  await server.close();
  assert.deepEqual(readdirSync(dataDir), ["lock", "perch.db"]);
  await using _ = await start({ dataDir });
});

test("an administrator is answered by the running server, and by the store when none runs, alike", async () => {
  const dataDir = fresh();
  const server = await start({ dataDir });
  const clock = systemClock;
  let id: string;
  {
    await using admin = await openAdmin({ clock }, { dataDir });
    assert.equal(admin.running, true);
    const made = await admin.call("create-setup-key", { name: "one", reusable: true, usageLimit: 3, groups: ["g"] });
    ({ id } = made);
    assert.match(made.key, /^[0-9A-F-]{36}$/);
    assert.equal(made.expiresAt, undefined);
    assert.deepEqual(await admin.call("settings", {}), { lazy: true });
  }
  await server.close();
  {
    await using admin = await openAdmin({ clock }, { dataDir });
    assert.equal(admin.running, false);
    const keys = await admin.call("list-setup-keys", {});
    assert.deepEqual(
      keys.map(({ name, usageLimit, groups, state }) => [name, usageLimit, groups, state]),
      [
        ["first start", 0, [], "valid"],
        ["one", 3, ["g"], "valid"],
      ],
    );
    assert.equal((await admin.call("revoke-setup-key", { key: id.slice(0, 12) })).state, "revoked");
    assert.deepEqual(await admin.call("set-settings", { lazy: false }), { lazy: false });
    await assert.rejects(start({ dataDir }), { code: "data-dir-locked" });
  }
  await using again = await start({ dataDir });
  assert.equal(again.management?.lazy, false);
  await assert.rejects(openAdmin({ clock }, { dataDir: fresh() }), { code: "admin-refused" });
});

test("the admin socket refuses what it cannot take, with the field's name, and goes on", async () => {
  const dataDir = fresh();
  await using _ = await start({ dataDir });
  const path = join(dataDir, "admin.sock");
  const output = ADMIN_CALLS.settings.output;
  const call = (method: string, input: unknown) => callAdmin(path, method, input, output);
  await assert.rejects(call("create-setup-key", { expiresInMs: -1 }), {
    code: "option-invalid",
    message: /expiresInMs/,
  });
  await assert.rejects(call("create-setup-key", { reuseable: true }), { code: "option-invalid", message: /reuseable/ });
  await assert.rejects(call("create-setup-key", "x"), { code: "option-invalid" });
  await assert.rejects(call("create-setup-key", { name: "x".repeat(100_000) }), { message: /65536/ });
  await assert.rejects(call("no-such-call", {}), { code: "admin-refused", message: /no-such-call/ });
  await assert.rejects(call("toString", {}), { code: "admin-refused" });
  await assert.rejects(call("revoke-setup-key", { key: "nothing" }), { code: "admin-refused", message: /nothing/ });
  assert.deepEqual(await remoteAdmin(path).call("settings", {}), { lazy: true });
});
