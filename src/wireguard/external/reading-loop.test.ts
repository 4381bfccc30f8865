import assert from "node:assert/strict";
import { test } from "node:test";
import { setImmediate as turn } from "node:timers/promises";
import { createLogger, silentLogger } from "#base/log.ts";
import { ManualClock } from "#base/time.ts";
import type { DeviceReading } from "./parts.ts";
import { ReadingLoop } from "./reading-loop.ts";
import { ScriptedControl } from "./testing/scripted-parts.ts";

test("a device that cannot be read is told of at the second time, and once", async () => {
  const clock = new ManualClock(100_000);
  const control = new ScriptedControl();
  const messages: string[] = [];
  const loop = new ReadingLoop({
    clock,
    log: createLogger((_, message) => messages.push(message)),
    control: () => control,
    batch: { settled: 0 },
    watching: () => "awake",
    take: () => false,
  });
  control.gate = Promise.reject(new Error("no device listens there"));
  control.gate.catch(() => {});
  loop.arm();
  const told: number[] = [];
  for (let reading = 0; reading < 4; reading++) {
    clock.advance(1_000);
    await turn();
    told.push(messages.length);
  }
  assert.deepEqual([control.reads, told], [4, [0, 1, 1, 1]]);
  await loop.close();
});

test("a device that answers again after it was stuck is read a second later, for what was asked before", async () => {
  const clock = new ManualClock(100_000);
  const control = new ScriptedControl();
  const taken: DeviceReading[] = [];
  const loop = new ReadingLoop({
    clock,
    log: silentLogger,
    control: () => control,
    batch: { settled: 0 },
    watching: () => "nobody",
    take: (reading) => taken.push(reading) === 0,
  });
  const stuck = Promise.withResolvers<void>();
  control.gate = stuck.promise;
  loop.look();
  clock.advance(3);
  await turn();
  clock.advance(10_000);
  control.gate = undefined;
  stuck.reject(new Error("no answer for 10 s"));
  await turn();
  assert.deepEqual([control.reads, taken.length], [1, 0]);
  clock.advance(1_000);
  await turn();
  assert.deepEqual([control.reads, taken.length], [2, 1]);
  clock.advance(60_000);
  await turn();
  assert.equal(control.reads, 2);
  await loop.close();
});
