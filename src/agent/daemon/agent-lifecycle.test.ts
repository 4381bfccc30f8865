import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { silentLogger } from "#base/log.ts";
import { ManualClock } from "#base/time.ts";
import { AgentLifecycle, type UpOrder } from "./agent-lifecycle.ts";
import type { SettingValues } from "./settings.ts";
import { SettingsStore } from "./settings-store.ts";
import { FakeAgent } from "./testing/fake-agent.ts";

const KEY = "11111111-2222-3333-4444-555555555555";
const URL = "http://m.test:33073";

interface Bench extends AsyncDisposable {
  readonly agent: FakeAgent;
  readonly store: SettingsStore;
  readonly clock: ManualClock;
  readonly lifecycle: AgentLifecycle;
  up(flags?: SettingValues, environment?: SettingValues, signal?: AbortSignal): Promise<boolean>;
  readonly lines: string[];
}

function bench(environment: SettingValues = {}, prepare?: (store: SettingsStore, agent: FakeAgent) => void): Bench {
  const dir = mkdtempSync(join(tmpdir(), "perch-life-"));
  const agent = new FakeAgent();
  const store = new SettingsStore(dir, silentLogger);
  const clock = new ManualClock();
  prepare?.(store, agent);
  const lifecycle = new AgentLifecycle({ agent, store, clock, log: silentLogger, environment });
  const lines: string[] = [];
  return {
    agent,
    store,
    clock,
    lifecycle,
    lines,
    up(flags = { managementUrl: URL }, given = {}, signal = new AbortController().signal) {
      const order: UpOrder = { flags, environment: given, setupKey: KEY };
      return lifecycle.up(order, signal, (line) => lines.push(line));
    },
    async [Symbol.asyncDispose]() {
      await lifecycle.close();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

/** Lets everything that is ready run. */
async function settle(turns = 20): Promise<void> {
  for (let turn = 0; turn < turns; turn++) await new Promise((resolve) => setImmediate(resolve));
}

test("up connects, tells what happens, stores what was given and not the setup key", async () => {
  await using at = bench();
  assert.equal(await at.up({ managementUrl: URL, mtu: 1300 }, { hostname: "box", lazy: true }), false);
  assert.deepEqual(at.lines, [
    `connecting to ${URL}`,
    `connected to ${URL}`,
    "known as box.perch.test",
    "interface perch0 has 100.64.0.1/16",
    "signal connected at http://signal.test:10000",
  ]);
  assert.deepEqual(at.store.values, { managementUrl: URL, mtu: 1300, hostname: "box" });
  assert.equal(at.store.wantUp, true);
  assert.deepEqual(at.agent.settings?.lazy, { enabled: true, source: "environment" });
  assert.equal(at.agent.settings?.mtu, 1300);
});

test("up again with the same settings does nothing, with others it applies them", async () => {
  await using at = bench();
  await at.up();
  assert.equal(await at.up(), true);
  assert.equal(await at.up({}), true);
  assert.deepEqual(at.agent.calls, ["up"]);
  assert.equal(await at.up({ mtu: 1400 }), false);
  assert.deepEqual(at.agent.calls, ["up", "down", "up"]);
  assert.equal(at.lines.includes("taking the tunnel down to apply changed settings"), true);
});

test("without a server there is an error that names the flag, and nothing starts", async () => {
  await using at = bench();
  await assert.rejects(at.up({}), { code: "setting-missing", message: /--management-url URL/ });
  await assert.rejects(at.up({ managementUrl: URL, mtu: 1 }), { code: "value-invalid" });
  assert.deepEqual(at.agent.calls, []);
});

test("a failed up stores nothing, leaves the agent down and says why in the status", async () => {
  await using at = bench();
  at.agent.failures.push({ code: "unreachable", message: `cannot reach ${URL}`, retryable: true });
  await assert.rejects(at.up(), { code: "unreachable" });
  assert.deepEqual([at.store.values, at.store.wantUp, at.agent.status().state], [{}, false, "down"]);
  assert.equal(at.lifecycle.failure, `cannot reach ${URL}`);
  await at.up();
  assert.equal(at.lifecycle.failure, undefined);
});

test("a refused login stays visible as needs-login", async () => {
  await using at = bench();
  const order = { flags: { managementUrl: URL }, environment: {}, setupKey: "00000000-0000-0000-0000-000000000000" };
  await assert.rejects(
    at.lifecycle.up(order, new AbortController().signal, () => {}),
    { code: "setup-key-invalid" },
  );
  assert.equal(at.agent.status().state, "needs-login");
});

test("whoever leaves during up takes the agent down again", async () => {
  await using at = bench();
  at.agent.gate = new Promise(() => {});
  const stop = new AbortController();
  const going = at.up(undefined, {}, stop.signal);
  await settle();
  stop.abort();
  await assert.rejects(going, { code: "superseded" });
  assert.equal(at.agent.status().state, "down");
  assert.equal(at.store.wantUp, false);
});

test("down during up ends the attempt and is not undone by it", async () => {
  await using at = bench();
  at.agent.gate = new Promise(() => {});
  const going = at.up();
  await settle();
  const down = at.lifecycle.down();
  await assert.rejects(going, { code: "superseded", message: "a newer command took over" });
  await down;
  assert.equal(at.agent.status().state, "down");
  assert.equal(await at.lifecycle.down(), true);
});

test("a daemon that was up comes up again, trying until it works", async () => {
  await using at = bench({}, (store, agent) => {
    store.merge({ managementUrl: URL });
    store.setWantUp(true);
    agent.registered = true;
    agent.failures.push(
      { code: "unreachable", message: "no", retryable: true },
      { code: "unreachable", message: "no", retryable: true },
    );
  });
  at.lifecycle.resume();
  await settle();
  assert.equal(at.agent.status().state, "down");
  at.clock.advance(1200);
  await settle();
  assert.equal(at.agent.status().state, "down");
  at.clock.advance(2400);
  await settle();
  assert.equal(at.agent.status().state, "up");
  assert.equal(at.clock.pending, 0);
});

test("a daemon does not keep trying what only a person can mend, and down ends the trying", async () => {
  await using refused = bench({}, (store) => {
    store.merge({ managementUrl: URL });
    store.setWantUp(true);
  });
  refused.lifecycle.resume();
  await settle();
  assert.equal(refused.agent.status().state, "needs-login");
  assert.equal(refused.clock.pending, 0);

  await using trying = bench({}, (store, agent) => {
    store.merge({ managementUrl: URL });
    store.setWantUp(true);
    agent.failures.push({ code: "unreachable", message: "no", retryable: true });
  });
  trying.lifecycle.resume();
  await settle();
  assert.equal(trying.clock.pending, 1);
  await trying.lifecycle.down();
  assert.equal(trying.clock.pending, 0);
  assert.equal(trying.store.wantUp, false);
});

test("a daemon that comes up before its server has a map, or its port is free, keeps trying", async () => {
  await using at = bench({}, (store, agent) => {
    store.merge({ managementUrl: URL });
    store.setWantUp(true);
    agent.failures.push({ code: "map-invalid", message: "no network map within 20 s", retryable: false });
    agent.failures.push({ code: "port-taken", message: "port 51820 is taken", retryable: false });
  });
  at.agent.registered = true;
  at.lifecycle.resume();
  await settle();
  assert.equal(at.clock.pending, 1);
  at.clock.advance(120_000);
  await settle();
  at.clock.advance(120_000);
  await settle();
  assert.equal(at.agent.status().state, "up");
});

test("a failed change of settings falls back to the settings that worked", async () => {
  await using at = bench();
  await at.up();
  at.agent.failures.push({ code: "interface", message: "perch9 exists already" });
  await assert.rejects(at.up({ interfaceName: "perch9" }), { code: "interface" });
  await settle();
  assert.equal(at.agent.status().state, "up");
  assert.equal(at.agent.status().interfaceName, "perch0");
  assert.deepEqual(at.store.values, { managementUrl: URL });
});

test("the end of the daemon takes the agent down and keeps the wish to be up", async () => {
  await using at = bench();
  await at.up();
  await at.lifecycle.close();
  assert.equal(at.agent.status().state, "down");
  assert.equal(at.store.wantUp, true);
  await assert.rejects(at.up(), { code: "superseded", message: "the daemon is stopping" });
});

test("the lazy switch acts live, is stored, and replaces the flag of the last up", async () => {
  await using at = bench();
  await at.up({ managementUrl: URL, lazy: true });
  assert.deepEqual(at.lifecycle.setLazy(false), { enabled: false, source: "setting" });
  assert.equal(at.store.values.lazy, false);
  assert.deepEqual(at.lifecycle.settings.get("lazy"), { value: false, source: "setting" });
  assert.equal(await at.up({}), true);
  assert.deepEqual(at.lifecycle.setLazy(undefined), { enabled: true, source: "network" });
  assert.equal(at.store.values.lazy, undefined);
});

test("the lazy switch is stored but gives way to the environment, and the answer says so", async () => {
  await using at = bench({ lazy: true });
  await at.up();
  assert.deepEqual(at.lifecycle.setLazy(false), { enabled: true, source: "environment" });
  assert.equal(at.store.values.lazy, false);
  assert.deepEqual(at.agent.calls, ["up"]);
});

test("login registers without a tunnel, and up needs no key afterwards", async () => {
  await using at = bench();
  const order: UpOrder = { flags: { managementUrl: URL }, environment: {}, setupKey: KEY };
  assert.equal(await at.lifecycle.login(order, new AbortController().signal, () => {}), false);
  assert.deepEqual([at.agent.calls, at.agent.status().state, at.store.wantUp], [["login"], "down", false]);
  await at.lifecycle.up({ flags: {}, environment: {} }, new AbortController().signal, () => {});
  assert.equal(at.agent.status().state, "up");
});

test("deregister forgets the registration and the wish to be up", async () => {
  await using at = bench();
  await at.up();
  await at.lifecycle.deregister();
  assert.deepEqual([at.agent.registered, at.store.wantUp, at.agent.status().state], [false, false, "down"]);
});

test("down takes the tunnel down where nothing can be written, and says that it will come up again", async () => {
  await using at = bench();
  await at.up();
  rmSync(dirname(at.store.path), { recursive: true });
  writeFileSync(dirname(at.store.path), "in the way");
  await assert.rejects(at.lifecycle.down(), {
    code: "daemon-path",
    message: /^the tunnel is down, and comes up again when the daemon starts: cannot write /,
  });
  assert.equal(at.agent.status().state, "down");
});
