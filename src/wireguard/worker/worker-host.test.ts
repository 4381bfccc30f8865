import assert from "node:assert/strict";
import { EventEmitter } from "node:events";
import { test } from "node:test";
import { setImmediate as nextTurn } from "node:timers/promises";
import { Emitter } from "#base/emitter.ts";
import { createLogger } from "#base/log.ts";
import { FAULT_WINDOW, FAULTS_MAX, FaultBudget } from "./fault-budget.ts";
import type { DataPlaneEvents } from "./plane-events.ts";
import { Command, RECORD_HEADER_BYTES, RecordField, Report } from "./records.ts";
import { Ring } from "./ring.ts";
import { WorkerHost } from "./worker-host.ts";
import type { WorkerSetUp } from "./worker-life.ts";
import { ControlWord, type WorkerMessage, type WorkerStart } from "./worker-start.ts";

/** A thread that does what a test says, with the worker's ends of the rings. */
class ScriptedThread extends EventEmitter<{ message: [WorkerMessage | number]; error: [unknown]; exit: [] }> {
  readonly start: WorkerStart;
  readonly posted: unknown[] = [];
  readonly commands: Ring;
  readonly events: Ring;

  constructor(start: WorkerStart) {
    super();
    this.start = start;
    this.commands = new Ring(start.commands);
    this.events = new Ring(start.events);
  }

  postMessage(message: unknown): void {
    this.posted.push(message);
  }

  ready(): void {
    this.emit("message", { kind: "ready", features: ["test"] });
  }

  fault(reason: string): void {
    this.emit("message", { kind: "fault", reason, stack: `Error: ${reason}\n    at somewhere` });
    this.emit("exit");
  }

  report(report: Report, slot: number): void {
    const at = this.events.begin(RECORD_HEADER_BYTES);
    this.events.bytes.fill(0, at + 4, at + RECORD_HEADER_BYTES);
    this.events.bytes[at + RecordField.opcode] = report;
    this.events.view.setUint32(at + RecordField.slot, slot, true);
    this.events.commit();
  }

  /** Opcodes and slots of the commands that wait, which are taken. */
  takeCommands(): string[] {
    const taken: string[] = [];
    for (let at = this.commands.next(); at >= 0; at = this.commands.next()) {
      const slot = this.commands.view.getUint32(at + RecordField.slot, true);
      taken.push(`${this.commands.bytes[at + RecordField.opcode]} ${slot}`);
      this.commands.release();
    }
    return taken;
  }
}

function setUp() {
  const threads: ScriptedThread[] = [];
  const events = new Emitter<DataPlaneEvents>();
  const control = new SharedArrayBuffer(64);
  const told: string[] = [];
  const log: string[] = [];
  let now = 0;
  events.on("silent", ({ slot }) => told.push(`silent ${slot}`));
  events.on("gone", ({ reason }) => told.push(`gone: ${reason}`));
  const host: WorkerHost = new WorkerHost({
    events,
    control,
    log: createLogger((level, message, fields) => log.push(`${level} ${message}: ${fields.err ?? ""}`)),
    now: () => now,
    wake: () => told.push("wake"),
    filled: () => {},
    setUp: () => ({ control, mtu: 1420 }) as unknown as WorkerSetUp,
    restore: (reason) => {
      told.push(`restore: ${reason}`);
      host.commands.send({ opcode: Command.addPeer, slot: 7 });
    },
    spawn: (start) => {
      const thread = new ScriptedThread(start);
      threads.push(thread);
      return thread;
    },
  });
  return {
    host,
    events,
    threads,
    told,
    log,
    control,
    advance: (ms: number) => {
      now += ms;
    },
    latest: () => threads.at(-1)!,
  };
}

test("a worker that dies is replaced: what it had said is heard, the next one is given everything before it runs", async () => {
  const { host, threads, told, log, latest } = setUp();
  latest().ready();
  assert.deepEqual(await host.started, ["test"]);
  host.commands.send({ opcode: Command.removePeer, slot: 3 });
  latest().report(Report.silent, 5);
  // Half a record: begun and never published.
  latest().events.begin(RECORD_HEADER_BYTES);
  latest().fault("boom");
  assert.equal(threads.length, 2);
  assert.deepEqual(told, ["silent 5", "restore: boom"]);
  assert.deepEqual(latest().takeCommands(), [`${Command.addPeer} 7`], "and nothing of what the dead one did not read");
  assert.notEqual(threads[0]!.start.commands, threads[1]!.start.commands);
  assert.notEqual(threads[0]!.start.events, threads[1]!.start.events);
  host.commands.send({ opcode: Command.removePeer, slot: 7 });
  latest().ready();
  assert.deepEqual(latest().takeCommands(), [`${Command.removePeer} 7`], "sent while it started");
  latest().report(Report.silent, 7);
  latest().emit("message", 0);
  assert.equal(told.at(-1), "silent 7");
  assert.equal(host.restarts, 1);
  assert.deepEqual(log, ["error data worker died, another takes over: boom", "info data worker runs again: "]);
});

test("what takes long is left to the next turn, and whoever says that more came does not begin it early", async () => {
  const { events, advance, told, latest } = setUp();
  latest().ready();
  events.on("silent", () => advance(3));
  for (const slot of [1, 2, 3, 4, 5]) latest().report(Report.silent, slot);
  latest().emit("message", 0);
  assert.deepEqual(told, ["silent 1", "silent 2"]);
  latest().report(Report.silent, 6);
  latest().emit("message", 0);
  assert.equal(told.length, 2);
  await nextTurn();
  assert.equal(told.length, 4);
  await nextTurn();
  assert.deepEqual(
    told,
    [1, 2, 3, 4, 5, 6].map((slot) => `silent ${slot}`),
  );
});

test("a worker that takes over is heard although the last one had more to say", async () => {
  const { events, advance, told, latest } = setUp();
  latest().ready();
  events.on("silent", () => advance(9));
  for (const slot of [1, 2]) latest().report(Report.silent, slot);
  latest().emit("message", 0);
  latest().fault("boom");
  latest().ready();
  latest().report(Report.silent, 3);
  latest().emit("message", 0);
  await nextTurn();
  assert.deepEqual(told, ["silent 1", "silent 2", "restore: boom", "silent 3"]);
});

test("the late word of a dead worker is nobody's", () => {
  const { threads, told, latest } = setUp();
  latest().ready();
  latest().fault("boom");
  threads[0]!.report(Report.silent, 1);
  threads[0]!.emit("message", 0);
  assert.deepEqual(told, ["restore: boom"]);
});

test("a thread that ends without a word, or of an error of its own, counts as a fault", () => {
  const { told, latest } = setUp();
  latest().ready();
  latest().emit("exit");
  latest().ready();
  latest().emit("error", new Error("out of memory"));
  latest().emit("exit");
  assert.deepEqual(told, ["restore: the data worker ended without a word", "restore: out of memory"]);
});

test("the fifth fault within a minute ends the device with the reason, and no thread follows", async () => {
  const { host, threads, told, latest } = setUp();
  for (let fault = 1; fault <= FAULTS_MAX; fault++) {
    latest().ready();
    latest().fault(`boom ${fault}`);
  }
  assert.equal(threads.length, FAULTS_MAX);
  assert.equal(told.at(-1), "gone: the data worker died 5 times within 60 s, at last of: boom 5");
  assert.equal(told.filter((line) => line.startsWith("gone")).length, 1);
  assert.equal(host.restarts, FAULTS_MAX - 1);
  await host.over;
});

test("a worker that cannot start again is a fault too", () => {
  const { told, threads, latest } = setUp();
  latest().ready();
  for (let fault = 1; fault <= FAULTS_MAX; fault++) latest().fault("no library");
  assert.equal(threads.length, FAULTS_MAX);
  assert.match(told.at(-1)!, /^gone: .*no library/);
});

test("faults that are far apart are forgiven", () => {
  const { told, advance, latest } = setUp();
  for (let fault = 0; fault < 4 * FAULTS_MAX; fault++) {
    latest().ready();
    latest().fault("boom");
    advance(FAULT_WINDOW / (FAULTS_MAX - 1));
  }
  assert.deepEqual(
    told.filter((line) => line.startsWith("gone")),
    [],
  );
  const budget = new FaultBudget();
  const taken = [0, 1, 2, 3, 60_000, 60_001, 60_002, 60_003].map((at) => budget.take(at));
  assert.deepEqual(taken, [true, true, true, true, true, true, true, true]);
  assert.equal(budget.take(60_004), false);
});

test("a deleted interface ends the device at once", () => {
  const { threads, told, latest } = setUp();
  latest().ready();
  latest().emit("message", { kind: "interface-gone" });
  latest().emit("exit");
  assert.equal(threads.length, 1);
  assert.deepEqual(told, ["gone: the interface was deleted"]);
});

test("a first worker that cannot run is an error of the start, and no other is tried", async () => {
  const { host, threads, told, latest } = setUp();
  latest().fault("the AEAD self-test fails");
  await assert.rejects(host.started, {
    code: "worker-failed",
    message: "the data worker does not start: the AEAD self-test fails",
  });
  await host.over;
  assert.equal(threads.length, 1);
  assert.deepEqual(told, []);
});

test("a worker that was told to stop is not replaced, however it ends", async () => {
  const { host, threads, told, control, latest } = setUp();
  latest().ready();
  host.requestStop();
  assert.equal(new Int32Array(control)[ControlWord.stop], 1);
  latest().fault("on the way out");
  await host.over;
  assert.equal(threads.length, 1);
  assert.deepEqual(told, ["wake"]);
});

test("relayed datagrams that a dead worker did not take stay counted", () => {
  const { host, latest } = setUp();
  latest().ready();
  const inject = (): boolean =>
    host.commands.trySend({ opcode: Command.inject, slot: 0, payloadBytes: 60_000, fill: () => {} });
  while (inject());
  assert.equal(host.droppedCommands, 1);
  latest().fault("boom");
  assert.equal(host.droppedCommands, 1);
  while (inject());
  assert.equal(host.droppedCommands, 2);
});
