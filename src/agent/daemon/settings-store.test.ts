import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { createLogger, silentLogger } from "#base/log.ts";
import { makeStateDir, SettingsStore } from "./settings-store.ts";

function scratch(): { readonly dir: string } & Disposable {
  const dir = mkdtempSync(join(tmpdir(), "perch-store-"));
  return { dir, [Symbol.dispose]: () => rmSync(dir, { recursive: true, force: true }) };
}

test("what was stored is there after a restart, in a file for its owner only", () => {
  using at = scratch();
  const dir = join(at.dir, "state");
  makeStateDir(dir);
  const store = new SettingsStore(dir, silentLogger);
  store.merge({ managementUrl: "http://m.test", mtu: 1300, lazy: true });
  store.setWantUp(true);
  const again = new SettingsStore(dir, silentLogger);
  assert.deepEqual(again.values, { managementUrl: "http://m.test", mtu: 1300, lazy: true });
  assert.equal(again.wantUp, true);
  assert.equal(statSync(store.path).mode & 0o777, 0o600);
  assert.equal(statSync(dir).mode & 0o777, 0o700);
  assert.deepEqual(readdirSync(dir), ["settings.json"]);
});

test("an empty text and remove take a stored value away, absent values leave it", () => {
  using at = scratch();
  const store = new SettingsStore(at.dir, silentLogger);
  store.merge({ presharedKey: "Z4Z4Z4Z4Z4Z4Z4Z4Z4Z4Z4Z4Z4Z4Z4Z4Z4Z4Z4Z4Z4Q=", lazy: false, mtu: 1400 });
  store.merge({ presharedKey: "", mtu: undefined });
  store.remove("lazy");
  assert.deepEqual(new SettingsStore(at.dir, silentLogger).values, { mtu: 1400 });
});

test("unknown keys of another version are written back as they were", () => {
  using at = scratch();
  const path = join(at.dir, "settings.json");
  writeFileSync(
    path,
    JSON.stringify({ version: 9, wantUp: true, later: [1], settings: { mtu: 1300, dns: { on: true } } }),
  );
  const store = new SettingsStore(at.dir, silentLogger);
  store.merge({ lazy: true });
  assert.deepEqual(JSON.parse(readFileSync(path, "utf8")), {
    version: 9,
    wantUp: true,
    later: [1],
    settings: { mtu: 1300, dns: { on: true }, lazy: true },
  });
});

test("a stored value outside its limits is ignored with a warning, the others count", () => {
  using at = scratch();
  const lines: string[] = [];
  writeFileSync(join(at.dir, "settings.json"), JSON.stringify({ settings: { mtu: 9, lazy: "yes", hostname: "a" } }));
  const store = new SettingsStore(
    at.dir,
    createLogger((level, _, fields) => lines.push(`${level} ${String(fields.name)}`)),
  );
  assert.deepEqual(store.values, { hostname: "a" });
  assert.deepEqual(lines, ["warn mtu", "warn lazy"]);
});

test("an unreadable file is set aside and does not keep the daemon from starting", () => {
  using at = scratch();
  writeFileSync(join(at.dir, "settings.json"), '{"wantUp": tr');
  const store = new SettingsStore(at.dir, silentLogger);
  assert.equal(store.wantUp, false);
  assert.deepEqual(store.values, {});
  assert.equal(existsSync(join(at.dir, "settings.json.unreadable")), true);
});

test("a draft that a crash left behind does not count", () => {
  using at = scratch();
  const store = new SettingsStore(at.dir, silentLogger);
  store.merge({ mtu: 1300 });
  writeFileSync(join(at.dir, "settings.json.new"), '{"settings": {"mtu": 14');
  const again = new SettingsStore(at.dir, silentLogger);
  assert.deepEqual(again.values, { mtu: 1300 });
  again.merge({ mtu: 1310 });
  assert.deepEqual(readdirSync(at.dir), ["settings.json"]);
});

test("a state directory that cannot be made is named", () => {
  using at = scratch();
  writeFileSync(join(at.dir, "file"), "");
  assert.throws(() => makeStateDir(join(at.dir, "file", "state")), {
    code: "daemon-path",
    message: /cannot use the state directory .*\/file\/state: /,
  });
});
