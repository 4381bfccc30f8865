import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { MARK_VARIABLE } from "#wireguard/external/device-mark.ts";
import { DeviceRecordStore, restoreDevice } from "./device-record.ts";

const MARK = "0123456789abcdef0123456789abcdef";

/** A state directory with a record of a program whose socket is in it, and of nobody's interface. */
function setUp() {
  const stateDir = mkdtempSync(join(tmpdir(), "perch-device-"));
  const store = new DeviceRecordStore(stateDir);
  const socketPath = join(stateDir, "perchnone0.sock");
  const write = (): void => store.write({ kind: "wireguard-go", interfaceName: "perchnone0", mark: MARK, socketPath });
  return { store, write, socketPath, [Symbol.dispose]: () => rmSync(stateDir, { recursive: true }) };
}

test("a program whose owner died is ended by its mark, another one of the same name is not", async () => {
  using world = setUp();
  const start = (env: NodeJS.ProcessEnv) =>
    spawn("sleep", ["60"], { stdio: "ignore", env: { PATH: "/usr/bin:/bin", ...env } });
  const ours = start({ [MARK_VARIABLE]: MARK });
  const other = start({ [MARK_VARIABLE]: MARK.replace("0", "f") });
  const ended = once(ours, "exit");
  world.write();
  writeFileSync(world.socketPath, "");
  const { done, problems } = await restoreDevice(world.store);
  await ended;
  assert.deepEqual(problems, []);
  assert.match(done[0]!, /^ended wireguard-go .*perchnone0/);
  assert.equal(existsSync(world.store.path), false);
  assert.equal(existsSync(world.socketPath), false);
  assert.equal(other.exitCode ?? other.signalCode, null);
  assert.deepEqual(await restoreDevice(world.store), { done: [], problems: [] });
  other.kill("SIGKILL");
});

test("what is left of a program that ended with its owner is told of, too", async () => {
  using world = setUp();
  world.write();
  const { done, problems } = await restoreDevice(world.store);
  assert.deepEqual({ done, problems }, { done: ["took away what was left of the interface perchnone0"], problems: [] });
});

test("a record that is none of ours is told and left alone", async () => {
  using world = setUp();
  writeFileSync(
    world.store.path,
    JSON.stringify({ version: 1, kind: "wireguard-go", interfaceName: "eth0", mark: "" }),
  );
  const { problems } = await restoreDevice(world.store);
  assert.match(problems[0]!, /device\.json is not readable/);
  assert.equal(existsSync(world.store.path), true);
});
