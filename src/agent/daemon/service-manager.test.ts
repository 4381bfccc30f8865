import assert from "node:assert/strict";
import { test } from "node:test";
import { silentLogger } from "#base/log.ts";
import { ManualClock } from "#base/time.ts";
import { encodeUnixAddress } from "#net/unix-datagram.ts";
import { ServiceManager, takeServiceManager } from "./service-manager.ts";

const address = encodeUnixAddress("/run/systemd/notify")!;

function scene(watchdogMs?: number) {
  const clock = new ManualClock();
  const at = { clock, sent: [] as string[], full: false, working: true, line: "down" };
  const send = (_: Uint8Array, text: string): boolean => {
    if (!at.full) at.sent.push(text);
    return !at.full;
  };
  const deps = { clock, log: silentLogger, send, isWorking: () => at.working, statusLine: () => at.line };
  const manager = new ServiceManager(deps, { address, watchdogMs });
  const taken = (): string[] => at.sent.splice(0);
  return Object.assign(at, { manager, taken });
}

test("the variables are read once and taken away, and the watchdog of another process is not ours", () => {
  const environment: NodeJS.ProcessEnv = {
    NOTIFY_SOCKET: "/run/systemd/notify",
    WATCHDOG_USEC: "30000000",
    WATCHDOG_PID: "7",
    PATH: "/bin",
  };
  assert.deepEqual(takeServiceManager({ ...environment }, 8, silentLogger), { address, watchdogMs: undefined });
  assert.deepEqual(takeServiceManager(environment, 7, silentLogger), { address, watchdogMs: 30_000 });
  assert.deepEqual(environment, { PATH: "/bin" });
  assert.equal(takeServiceManager(environment, 7, silentLogger), undefined);
  assert.equal(takeServiceManager({ NOTIFY_SOCKET: "vsock:2:9" }, 7, silentLogger), undefined);
  for (const interval of ["0", "-1", "soon", ""]) {
    const taken = takeServiceManager({ NOTIFY_SOCKET: "@n", WATCHDOG_USEC: interval }, 7, silentLogger);
    assert.equal(taken?.watchdogMs, undefined, interval);
  }
});

test("the watchdog is fed three times per interval, and not while the daemon does not work", () => {
  const { manager, clock, taken } = scene(30_000);
  clock.advance(60_000);
  assert.deepEqual(taken(), [], "nothing before it is ready");
  manager.ready();
  assert.deepEqual(taken(), ["READY=1\nSTATUS=down", "WATCHDOG=1"]);
  clock.advance(30_000);
  assert.deepEqual(taken(), ["WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]);
  manager[Symbol.dispose]();
  assert.equal(clock.pending, 0);
});

test("a daemon that hangs is silent, and one that goes on is fed again", () => {
  const at = scene(30_000);
  at.manager.ready();
  at.taken();
  at.working = false;
  at.clock.advance(30_000);
  assert.deepEqual(at.taken(), []);
  at.working = true;
  at.clock.advance(10_000);
  assert.deepEqual(at.taken(), ["WATCHDOG=1"]);
});

test("without a watchdog no timer is armed", () => {
  const { manager, clock, taken } = scene();
  manager.ready();
  assert.deepEqual([taken(), clock.pending], [["READY=1\nSTATUS=down"], 0]);
});

test("the status line is told when it changed, once a second at most", () => {
  const at = scene();
  at.manager.ready();
  at.taken();
  at.manager.noteChange();
  at.clock.advance(1000);
  assert.deepEqual(at.taken(), [], "it is the same");
  for (let count = 0; count < 35; count++) {
    at.line = `up, ${count} of 40 peers connected`;
    at.manager.noteChange();
    at.clock.advance(100);
  }
  assert.equal(at.taken().length, 4, "at once, and after each of the three seconds");
  at.clock.advance(1000);
  assert.deepEqual(at.taken(), ["STATUS=up, 34 of 40 peers connected"]);
});

test("a reload is enclosed by its two messages, also where it fails, and nothing but the end follows the end", () => {
  const at = scene();
  at.manager.reload(() => at.sent.push("reloaded"));
  const [first, ...rest] = at.taken();
  assert.match(first!, /^RELOADING=1\nMONOTONIC_USEC=\d+$/);
  assert.deepEqual(rest, ["reloaded", "READY=1"]);
  assert.throws(() => at.manager.reload(() => assert.fail("no such file")));
  assert.equal(at.taken().at(-1), "READY=1");
  at.line = "up";
  at.manager.noteChange();
  at.manager.stopping();
  at.clock.advance(5000);
  assert.deepEqual(at.taken(), ["STOPPING=1\nSTATUS=taking the tunnel down"]);
});

test("what a full queue did not take is sent later in the same order, the latest sixteen", () => {
  const at = scene(3_000);
  at.full = true;
  at.manager.ready();
  at.clock.advance(50_000);
  at.full = false;
  at.manager.stopping();
  assert.deepEqual(at.taken(), []);
  at.clock.advance(100);
  const sent = at.taken();
  assert.equal(sent.length, 16);
  assert.equal(sent.at(-1), "STOPPING=1\nSTATUS=taking the tunnel down");
});

test("a manager that is not there is reported once and hurts nobody", () => {
  const clock = new ManualClock();
  const said: string[] = [];
  const log = { ...silentLogger, warn: (message: string) => void said.push(message) };
  const gone = encodeUnixAddress("/nonexistent/notify")!;
  const deps = { clock, log, isWorking: () => true, statusLine: () => "down" };
  const manager = new ServiceManager(deps, { address: gone, watchdogMs: 3000 });
  manager.ready();
  clock.advance(10_000);
  manager.stopping();
  assert.deepEqual(said, ["the service manager cannot be told"]);
  manager[Symbol.dispose]();
});
