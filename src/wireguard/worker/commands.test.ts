import assert from "node:assert/strict";
import { test } from "node:test";
import { parseIp } from "#base/ip.ts";
import { CommandSender } from "./commands.ts";
import { Command, RecordField, Report } from "./records.ts";
import { Ring } from "./ring.ts";

function setup() {
  const ring = Ring.create(1024);
  let wakes = 0;
  const sender = new CommandSender(ring, () => {
    wakes++;
  });
  const consumer = new Ring(ring.buffer);
  const slots = (): number[] => {
    const seen: number[] = [];
    for (let at = consumer.next(); at >= 0; at = consumer.next()) {
      seen.push(consumer.view.getUint32(at + RecordField.slot, true));
      consumer.release();
    }
    return seen;
  };
  return { sender, consumer, slots, wakes: () => wakes };
}

test("commands beyond the ring wait in memory and keep their order", () => {
  const { sender, consumer, slots } = setup();
  for (let slot = 0; slot < 40; slot++) sender.send({ opcode: Command.removePeer, slot });
  const seen: number[] = [];
  while (seen.length < 40) {
    seen.push(...slots());
    assert.ok(consumer.takeSpaceWish() || seen.length === 40);
    sender.flush();
  }
  assert.deepEqual(seen, [...Array(40).keys()]);
});

test("relayed datagrams do not wait: they are dropped and counted", () => {
  const { sender, slots } = setup();
  const record = { opcode: Command.inject, slot: 1, payloadBytes: 500, fill: () => undefined };
  assert.equal(sender.trySend(record), true);
  assert.equal(sender.trySend(record), false);
  assert.equal(sender.dropped, 1);
  assert.deepEqual(slots(), [1]);
  assert.equal(sender.trySend(record), true);
});

test("a sleeping worker is woken once", () => {
  const { sender, consumer, wakes } = setup();
  consumer.sleepUnlessFilled();
  sender.send({ opcode: Command.removePeer, slot: 1 });
  sender.send({ opcode: Command.removePeer, slot: 2 });
  assert.equal(wakes(), 1);
});

test("an address brings its family along", () => {
  const { sender, consumer } = setup();
  sender.send({ opcode: Command.addPrefix, slot: 3, address: parseIp("fd00::1"), argument: 64 });
  const at = consumer.next();
  assert.equal(consumer.bytes[at + RecordField.family], 6);
  assert.equal(consumer.bytes[at + RecordField.address], 0xfd);
  assert.equal(consumer.bytes[at + RecordField.address + 15], 1);
});

test("once closed, what waits and what comes is forgotten and its keys are wiped", () => {
  const { sender, slots } = setup();
  const keys = Array.from({ length: 20 }, () => new Uint8Array(64).fill(7));
  keys.forEach((key, slot) => {
    const fill = (bytes: Uint8Array, at: number): void => {
      bytes.set(key, at);
      key.fill(0);
    };
    if (slot === 19) sender.close();
    sender.send({ opcode: Command.installSession, slot, payloadBytes: 64, fill });
  });
  assert.ok(keys.every((key) => key.every((byte) => byte === 0)));
  assert.ok(slots().length < 19);
});

test("each command and each report has a number of its own", () => {
  for (const numbers of [Object.values(Command), Object.values(Report)]) {
    assert.equal(new Set<number>(numbers).size, numbers.length);
  }
});
