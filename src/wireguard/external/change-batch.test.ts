import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { parseEndpoint, parsePrefix } from "#base/ip.ts";
import { PrivateKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { ChangeBatch } from "./change-batch.ts";
import { ExternalDeviceError } from "./external-error.ts";
import { ScriptedControl } from "./testing/scripted-parts.ts";

const [A, B] = [PrivateKey.generate().publicKey, PrivateKey.generate().publicKey];
const SHARED = [parsePrefix("10.0.0.0/8")];
const ENDPOINT = parseEndpoint("192.0.2.1:1");

function setUp() {
  const state = { control: new ScriptedControl() };
  const told = { unanswered: 0 };
  const batch = new ChangeBatch({
    log: silentLogger,
    control: () => state.control,
    unanswered: () => told.unanswered++,
  });
  return { state, batch, told };
}

test("changes of one peer in one turn are one, and later calls say later things", async () => {
  const { state, batch } = setUp();
  batch.push({ key: A, allowedIps: [], keepalive: 0 });
  batch.push({ key: A, updateOnly: true, endpoint: ENDPOINT });
  await turn();
  assert.deepEqual(state.control.take(), ["add to 192.0.2.1:1 ips  keepalive 0"]);
  batch.push({ key: A, updateOnly: true, keepalive: 5 });
  await turn();
  assert.deepEqual(state.control.take(), ["keepalive 5"]);
});

test("a prefix is whose it was given last, whatever came before in the same turn", async () => {
  const { state, batch } = setUp();
  const owners: string[] = [];
  for (const key of [A, B, A]) batch.push({ key, allowedIps: SHARED });
  await turn();
  for (const { peers } of state.control.calls) for (const { key } of peers) owners.push(key);
  assert.equal(owners.at(-1), A);
  assert.equal(owners.length, 2);
});

test("off and on stay two, and so do taking away and adding", async () => {
  const { state, batch } = setUp();
  batch.push({ key: A, updateOnly: true, keepalive: 0 });
  batch.push({ key: A, updateOnly: true, keepalive: 25 });
  batch.push({ key: A, remove: true });
  batch.push({ key: A, allowedIps: [] });
  batch.push({ key: A, remove: true });
  await turn();
  assert.deepEqual(state.control.take(), ["keepalive 0", "keepalive 25", "remove", "add ips ", "remove"]);
});

test("a batch counts as settled when it is in the device or refused, never before", async () => {
  const { state, batch } = setUp();
  const { promise, resolve } = Promise.withResolvers<void>();
  state.control.gate = promise;
  const first = batch.push({ key: A, allowedIps: [] });
  await turn();
  const second = batch.push({ key: B, allowedIps: [] });
  assert.ok(second > first);
  await turn();
  assert.ok(batch.settled < first);
  state.control.failures.push(new Error("no"));
  resolve();
  await turn();
  assert.equal(batch.settled, second);
  assert.equal(batch.failures, 1);
});

test("a call that was not answered is told of, one that was refused is not", async () => {
  const { state, batch, told } = setUp();
  state.control.failures.push(new ExternalDeviceError("control-failed", "no such peer"));
  batch.push({ key: A, allowedIps: [] });
  await turn();
  assert.deepEqual(told, { unanswered: 0 });
  state.control.failures.push(new ExternalDeviceError("control-failed", "no answer", { retryable: true }));
  batch.push({ key: A, allowedIps: [] });
  await turn();
  assert.deepEqual(told, { unanswered: 1 });
});

test("what waited for a device that is gone is not told to the next, which gets all of it first", async () => {
  const { state, batch } = setUp();
  const { promise, reject } = Promise.withResolvers<void>();
  state.control.gate = promise;
  batch.push({ key: A, allowedIps: [] });
  await turn();
  batch.push({ key: A, updateOnly: true, keepalive: 9 });
  state.control = new ScriptedControl();
  const number = batch.replace({ listenPort: 7 }, [{ key: B, allowedIps: [] }]);
  batch.push({ key: B, updateOnly: true, endpoint: ENDPOINT });
  reject(new Error("dead"));
  await turn();
  assert.deepEqual(state.control.calls[0]!.change, { listenPort: 7, replacePeers: true });
  assert.deepEqual(state.control.take(), ["add to 192.0.2.1:1 ips "]);
  assert.equal(batch.settled, number);
  assert.equal(batch.failures, 0, "nobody refused anything");
});

test("after the end nothing is told", async () => {
  const { state, batch } = setUp();
  batch.push({ key: A, allowedIps: [] });
  await batch.close();
  batch.push({ key: B, allowedIps: [] });
  await turn();
  assert.deepEqual(state.control.calls, []);
});
