import assert from "node:assert/strict";
import { type ChildProcessWithoutNullStreams, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, test } from "node:test";
import { PrivateKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { systemClock } from "#base/time.ts";
import type { SyncResponse } from "#gen/management_pb.ts";
import { ManagementClient } from "#management/client/management-client.ts";
import { ManagementError } from "#management/errors.ts";
import { TEST_OPTIONS, TestAgent, TestServer, testMeta } from "#management/test-server.ts";
import { missingPython } from "./python.ts";

/** Debian's own Python, which alone sees Debian's modules. */
const PYTHON = "/usr/bin/python3";
const HERE = import.meta.dirname;
const PROTO = join(HERE, "../../proto");

const MODULES = { grpc: "python3-grpcio", "nacl.public": "python3-nacl", "google.protobuf": "python3-protobuf" };
const skip = missingPython(MODULES, ["protoc"]) ?? false;

type Line = Readonly<Record<string, unknown>> & { readonly kind: string };

/** A Python program that speaks JSON lines. */
class Program {
  readonly child: ChildProcessWithoutNullStreams;
  readonly lines: Line[] = [];
  readonly #waiting = new Set<() => void>();

  constructor(script: string, stubs: string, ...args: readonly string[]) {
    this.child = spawn(PYTHON, [join(HERE, script), ...args], {
      env: { ...process.env, PYTHONPATH: `${stubs}:${HERE}`, PYTHONDONTWRITEBYTECODE: "1" },
    });
    this.child.stderr.pipe(process.stderr);
    createInterface({ input: this.child.stdout }).on("line", (text) => {
      this.lines.push(JSON.parse(text) as Line);
      for (const look of this.#waiting) look();
    });
  }

  /** The first line, past or future, of the kind that satisfies `wanted`. */
  async until(kind: string, wanted: (line: Line) => boolean = () => true): Promise<Line> {
    const { promise, resolve, reject } = Promise.withResolvers<Line>();
    const look = (): void => {
      const found = this.lines.find((line) => line.kind === kind && wanted(line));
      if (found) resolve(found);
    };
    const timer = setTimeout(() => reject(new Error(`no ${kind} among ${JSON.stringify(this.lines)}`)), 8_000);
    this.#waiting.add(look);
    look();
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      this.#waiting.delete(look);
    }
  }

  command(line: string): void {
    this.child.stdin.write(`${line}\n`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const exited = once(this.child, "exit");
    this.child.kill("SIGKILL");
    await exited;
  }
}

describe("management with grpcio and PyNaCl on the other side", { skip, timeout: 60_000 }, () => {
  let stubs: string;
  before(() => {
    stubs = mkdtempSync(join(tmpdir(), "perch-stubs-"));
    execFileSync("protoc", [`--proto_path=${PROTO}`, `--python_out=${stubs}`, "management.proto"]);
  });
  after(() => rmSync(stubs, { recursive: true, force: true }));

  test("a foreign agent registers, gets maps, learns of changes and logs out", async () => {
    await using server = await TestServer.start();
    const { key } = await server.server.createSetupKey({});
    await using agent = new Program("management-agent.py", stubs, `127.0.0.1:${server.port}`, key);
    const ownKey = (await agent.until("key")).key;
    assert.equal((await agent.until("probe")).code, "PERMISSION_DENIED");
    assert.equal((await agent.until("bad-key")).code, "PERMISSION_DENIED");
    const login = await agent.until("login");
    assert.equal(login.fqdn, "python-agent.perch.internal");
    assert.equal(login.signal, TEST_OPTIONS.signal.uri);
    assert.equal(login.signalProtocol, 2);
    assert.deepEqual(login.relays, TEST_OPTIONS.relayUrls);
    assert.equal(login.hasSsh, true);
    assert.equal(login.hasDeadline, true);
    assert.equal((await agent.until("unknown-method")).code, "UNIMPLEMENTED");
    assert.equal((await agent.until("job")).code, "UNIMPLEMENTED");
    assert.equal((await agent.until("device-flow")).code, "NOT_FOUND");
    const first = await agent.until("update");
    assert.equal(first.address, login.address);
    assert.equal(first.addressV6, login.addressV6);
    assert.equal((first.addressV6 as string).length, 34);
    assert.equal(first.isEmpty, true);
    assert.equal(first.lazy, true);
    assert.equal(first.hasRelay, true);
    assert.deepEqual(first.stuns, TEST_OPTIONS.stunUris);
    assert.deepEqual([first.hasDeadline, first.deadline], [true, 0]);

    await using other = new TestAgent(server.url);
    const second = await server.server.createSetupKey({});
    const otherLogin = await other.client.login({ setupKey: second.key, meta: testMeta("other") });
    const update = await agent.until("update", (line) => (line.peers as unknown[]).length === 1);
    const [peer] = update.peers as { key: string; allowedIps: string[]; fqdn: string }[];
    const address = otherLogin.peerConfig!.address.replace("/16", "");
    assert.equal(peer!.key, other.key.publicKey);
    assert.equal(peer!.allowedIps[0], `${address}/32`);
    assert.equal(peer!.fqdn, "other.perch.internal");
    assert.equal(update.hasConfig, false);
    const compact = `${address
      .split(".")
      .map((part) => Number(part).toString(16).padStart(2, "0"))
      .join("")}20`;
    const rules = (update.rules as unknown[][]).filter(([ip]) => ip === address);
    assert.deepEqual(rules, [
      [address, "IN", "ACCEPT", "ALL", [compact]],
      [address, "OUT", "ACCEPT", "ALL", [compact]],
    ]);
    const [zone] = update.zones as { domain: string; records: unknown[][] }[];
    assert.equal(zone!.domain, "perch.internal.");
    assert.ok(zone!.records.some((record) => record[0] === "other.perch.internal" && record[2] === address));
    other.sync(testMeta("other"));
    await other.until((message) => message.NetworkMap?.remotePeers[0]?.wgPubKey === ownKey);

    agent.command("sync-meta");
    assert.equal((await agent.until("sync-meta")).code, "OK");
    agent.command("logout");
    assert.equal((await agent.until("logout")).code, "OK");
    assert.equal((await agent.until("sync-end")).code, "OK");
    assert.equal(agent.lines.findLast((line) => line.kind === "update")?.isEmpty, true);
    agent.command("login");
    assert.equal((await agent.until("login-again")).code, "PERMISSION_DENIED");
    await other.until((message) => message.NetworkMap?.remotePeersIsEmpty === true);
  });

  test("our client registers at a foreign server, follows its maps, outlives its restart with a new key", async () => {
    let server = new Program("management-server.py", stubs, "0");
    try {
      const port = Number((await server.until("port")).port);
      const key = PrivateKey.generate();
      const meta = testMeta("perch-agent");
      await using client = new ManagementClient(
        { clock: systemClock, log: silentLogger },
        { url: `http://127.0.0.1:${port}`, key },
      );
      assert.equal(await client.isHealthy(), true);
      const denied = (error: unknown) => error instanceof ManagementError && error.code === "permission-denied";
      await assert.rejects(client.login({ meta }), denied);
      await client.login({ meta, setupKey: "A2C8E62B-38F5-4553-B31E-DD66C696CEBB" });
      const answer = await client.login({ meta });
      assert.equal(answer.peerConfig?.address, "100.77.0.5/16");
      await server.until("call", () => server.lines.filter((line) => line.method === "Login").length === 3);
      const logins = server.lines.filter((line) => line.method === "Login");
      assert.deepEqual(
        logins.map((line) => [line.setupKey, line.hostname, line.wgPubKey]),
        ["", "a2c8e62b-38f5-4553-b31e-dd66c696cebb", ""].map((text) => [text, "perch-agent", key.publicKey]),
      );
      for (const login of logins) {
        assert.ok(Number(login.deadline) > 5 && Number(login.deadline) <= 10, `10 s, got ${login.deadline}`);
        assert.deepEqual(
          (login.metadata as string[]).filter((name) => !["user-agent", "accept-encoding"].includes(name)),
          [],
          "no metadata of our own",
        );
      }

      const updates: SyncResponse[] = [];
      const arrived = async (wanted: (update: SyncResponse) => boolean): Promise<void> => {
        for (let i = 0; i < 800 && !updates.some(wanted); i++) await new Promise((resolve) => setTimeout(resolve, 10));
        assert.ok(updates.some(wanted));
      };
      const stop = new AbortController();
      const syncing = client.sync(
        () => meta,
        (update) => void updates.push(update),
        stop.signal,
      );
      const opened = await server.until("call", (line) => line.method === "Sync");
      assert.ok(opened.deadline === null || Number(opened.deadline) > 1e6, "Sync has no deadline");
      server.command("push 7");
      await arrived((update) => update.NetworkMap?.Serial === 7n);
      server.command("config");
      await arrived((update) => update.netbirdConfig !== undefined && update.NetworkMap === undefined);
      await client.syncMeta(meta);
      await server.until("call", (line) => line.method === "SyncMeta");

      // Restarted: another key, and an empty memory; the key the client had is good for nothing now.
      await server[Symbol.asyncDispose]();
      server = new Program("management-server.py", stubs, String(port));
      await server.until("port");
      const ended = await syncing.then(
        () => undefined,
        (error: unknown) => error,
      );
      assert.ok(denied(ended), "the new server does not know the peer");
      await client.login({ meta, setupKey: "A2C8E62B-38F5-4553-B31E-DD66C696CEBB" });
      const again = client.sync(
        () => meta,
        (update) => void updates.push(update),
        stop.signal,
      );
      await server.until("call", (line) => line.method === "Sync" && line.admitted === true);
      server.command("push 8");
      await arrived((update) => update.NetworkMap?.Serial === 8n);
      server.command("end");
      await new Promise((resolve) => setTimeout(resolve, 50));
      await client.logout();
      await server.until("call", (line) => line.method === "Logout");
      assert.ok(denied(await again.catch((error: unknown) => error)));
      stop.abort();
    } finally {
      await server[Symbol.asyncDispose]();
    }
  });
});
