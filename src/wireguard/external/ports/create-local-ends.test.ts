import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { describe, type TestContext, test } from "node:test";
import type { PublicKey } from "#base/keys.ts";
import { silentLogger } from "#base/log.ts";
import { ManualClock, systemClock } from "#base/time.ts";
import { fakeInitiation } from "../testing/fake-initiation.ts";
import { FakeDevice, someKey, Watched } from "../testing/local-ends-suite.ts";
import { createLocalEnds } from "./create-local-ends.ts";
import { MOVE_GRACE } from "./loopback-mac1.ts";
import { PortThread } from "./port-thread.ts";

const THRESHOLD = 20;
const DATA = Uint8Array.of(4, 0, 0, 0, ...new Array<number>(60).fill(7));
const keys = (count: number): PublicKey[] => Array.from({ length: count }, someKey);

interface Bed extends AsyncDisposable {
  readonly device: FakeDevice;
  readonly watched: Watched;
  readonly clock: ManualClock;
}

async function bed(withThread: boolean): Promise<Bed> {
  const clock = new ManualClock();
  const stack = new AsyncDisposableStack();
  const device = stack.use(await FakeDevice.open());
  const thread = withThread ? stack.use(await PortThread.start({ log: silentLogger, clock: systemClock })) : undefined;
  const deps = { clock, log: silentLogger, thread };
  const ends = stack.use(createLocalEnds(deps, { devicePort: device.port, threshold: THRESHOLD }));
  return { device, watched: new Watched(ends), clock, [Symbol.asyncDispose]: () => stack.disposeAsync() };
}

for (const [name, withThread, many] of [
  ["where peers can have addresses", true, "loopback-addresses"],
  ["without system calls of our own", false, "loopback-mac1"],
] as const)
  describe(`local ends for few and many, ${name}`, () => {
    test("up to the threshold each peer has a socket, beyond it all move to one", { timeout: 15_000 }, async () => {
      await using b = await bed(withThread);
      const { watched, device } = b;
      const few = keys(THRESHOLD);
      for (const key of few) watched.open(key);
      assert.deepEqual([watched.ends.name, watched.moves], ["loopback-sockets", 0]);
      assert.equal(new Set(few.map((key) => watched.at(key).port)).size, THRESHOLD);
      const last = someKey();
      watched.open(last);
      assert.deepEqual([watched.ends.name, watched.moves], [many, THRESHOLD]);
      for (const key of [...few, last]) await device.send(fakeInitiation(key), watched.at(key));
      const told = await watched.told(THRESHOLD + 1);
      assert.deepEqual(new Set(told.map(({ key }) => key)), new Set([...few, last]));
    });

    test("what the device sends to the earlier endpoint arrives until it must have been told", {
      timeout: 15_000,
    }, async () => {
      await using b = await bed(withThread);
      const { watched, device, clock } = b;
      const few = keys(THRESHOLD);
      const key = few[0]!;
      for (const other of few) watched.open(other);
      const earlier = watched.at(key);
      watched.open(someKey());
      assert.notDeepEqual(watched.at(key), earlier);
      await device.send(DATA, earlier);
      assert.deepEqual(await watched.told(1), [{ key, datagram: Buffer.from(DATA) }]);
      // Data of a session is told apart at the new place as well.
      await device.send(DATA, watched.at(key));
      assert.equal((await watched.told(2))[1]!.key, key);
      watched.ends.deliver(key, DATA);
      assert.deepEqual((await device.received(1))[0]!.from, watched.at(key));
      clock.advance(MOVE_GRACE);
      await device.send(DATA, earlier).catch(() => {});
      await device.send(DATA, watched.at(key));
      assert.equal((await watched.told(3)).length, 3);
    });

    test("they go back when less than half of the threshold is left, and not before", { timeout: 15_000 }, async () => {
      await using b = await bed(withThread);
      const { watched, device, clock } = b;
      const all = keys(THRESHOLD + 1);
      for (const key of all) watched.open(key);
      const shared = watched.at(all[0]!);
      const half = THRESHOLD / 2;
      for (const key of all.slice(half)) watched.ends.close(key);
      assert.equal(watched.ends.name, many);
      watched.ends.close(all[half - 1]!);
      assert.equal(watched.ends.name, "loopback-sockets");
      const [key] = all;
      await device.send(fakeInitiation(key!), shared);
      await device.send(DATA, watched.at(key!));
      assert.deepEqual(
        (await watched.told(2)).map((event) => event.key),
        [key, key],
      );
      // Closed within the grace and opened again: a new peer, whose earlier places are gone.
      watched.ends.close(key!);
      watched.open(key!);
      clock.advance(MOVE_GRACE);
      await device.send(DATA, watched.at(key!));
      assert.equal((await watched.told(3))[2]!.key, key);
    });

    test("passing the threshold again and again within the grace loses nobody", { timeout: 15_000 }, async () => {
      await using b = await bed(withThread);
      const { watched, device, clock } = b;
      const stay = keys(5);
      for (const key of stay) watched.open(key);
      for (let round = 0; round < 4; round++) {
        const crowd = keys(THRESHOLD);
        for (const key of crowd) watched.open(key);
        assert.equal(watched.ends.name, many);
        for (const key of crowd) watched.ends.close(key);
        assert.equal(watched.ends.name, "loopback-sockets");
        if (round % 2 === 0) clock.advance(MOVE_GRACE / 2);
      }
      clock.advance(MOVE_GRACE);
      for (const key of stay) await device.send(DATA, watched.at(key));
      const told = await watched.told(stay.length);
      assert.deepEqual(new Set(told.map(({ key }) => key)), new Set(stay));
    });

    test("the device's port can change while peers are on both sides", { timeout: 15_000 }, async () => {
      await using b = await bed(withThread);
      const { watched } = b;
      await using other = await FakeDevice.open();
      const all = keys(THRESHOLD + 1);
      for (const key of all) watched.open(key);
      watched.ends.setDevicePort(other.port);
      await other.send(fakeInitiation(all[3]!), watched.at(all[3]!));
      assert.equal((await watched.told(1))[0]!.key, all[3]);
    });
  });

test("local ends say that nobody reads for them when their thread was given up", { timeout: 15_000 }, async () => {
  await using thread = await PortThread.start({ log: silentLogger, clock: systemClock });
  await using ends = createLocalEnds({ clock: systemClock, log: silentLogger, thread }, { devicePort: 1 });
  const { promise: failed, resolve } = Promise.withResolvers<string>();
  ends.events.on("failed", ({ reason }) => resolve(reason));
  // Nobody has so many descriptors: each thread dies of it.
  thread.watch(1 << 30, () => {});
  assert.match(await failed, /^the thread that reads its sockets died too often: .*closed while it was watched/);
});

test("500 peers have a socket each where nobody says otherwise, and the next one is the first of many", async (t: TestContext) => {
  await using ends = createLocalEnds({ clock: new ManualClock(), log: silentLogger }, { devicePort: 1 });
  for (const key of keys(500)) ends.open(key);
  t.assert.strictEqual(ends.name, "loopback-sockets");
  ends.open(someKey());
  t.assert.strictEqual(ends.name, "loopback-mac1");
});

test("a threshold of nothing shares from the first peer on", async (t: TestContext) => {
  const clock = new ManualClock();
  await using ends = createLocalEnds({ clock, log: silentLogger }, { devicePort: 1, threshold: 0 });
  ends.open(someKey());
  t.assert.strictEqual(ends.name, "loopback-mac1");
});

test("without descriptors for a socket each, all share one, and programs can still be started", {
  skip: process.platform !== "linux",
}, () => {
  const href = (path: string): string => JSON.stringify(import.meta.resolve(path));
  const program = `(async () => {
    const { createLocalEnds } = await import(${href("./create-local-ends.ts")});
    const { silentLogger: log } = await import(${href("#base/log.ts")});
    const { systemClock: clock } = await import(${href("#base/time.ts")});
    const { PublicKey } = await import(${href("#base/keys.ts")});
    for (let held = 0; held < 60; held++) require("node:fs").openSync("/dev/null");
    const ends = createLocalEnds({ log, clock }, { devicePort: 4711 });
    const ports = new Map();
    ends.events.on("moved", ({ key, endpoint }) => ports.set(key, endpoint.port));
    for (let i = 0; i < 300; i++) {
      const key = PublicKey.fromBytes(crypto.getRandomValues(new Uint8Array(32)));
      ports.set(key, ends.open(key).port);
    }
    console.log(JSON.stringify({ name: ends.name, opened: ports.size, lowest: Math.min(...ports.values()) }));
    require("node:child_process").execFileSync("true");
    await ends[Symbol.asyncDispose]();
  })()`;
  const limited = `ulimit -n 120; exec "$0" "$@"`;
  const { stdout, stderr } = spawnSync("sh", ["-c", limited, process.execPath, "-e", program], { timeout: 10_000 });
  assert.equal(`${stderr}`, "");
  const { name, opened, lowest } = JSON.parse(`${stdout}`);
  assert.deepEqual({ name, opened, isEndpoint: lowest > 0 }, { name: "loopback-mac1", opened: 300, isEndpoint: true });
});
