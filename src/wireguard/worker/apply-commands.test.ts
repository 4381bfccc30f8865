import assert from "node:assert/strict";
import { test } from "node:test";
import { type ApplyDeps, CommandApplier } from "./apply-commands.ts";
import { CommandSender } from "./commands.ts";
import { Command } from "./records.ts";
import { Ring } from "./ring.ts";

test("a producer whose wish for space comes after the last record was taken is told", () => {
  const ring = Ring.create(1024);
  let told = 0;
  const deps = {
    receiver: { endInjected: () => {} },
    reporter: { wakeMain: () => told++ },
    peers: { exists: () => false },
  };
  const applier = new CommandApplier(new Ring(ring.buffer), {
    ...({} as ApplyDeps),
    ...(deps as unknown as ApplyDeps),
  });
  const sender = new CommandSender(ring, () => {});
  let sent = 0;
  while (ring.begin(64) >= 0) sender.send({ opcode: Command.removePeer, slot: sent++ });
  // The worker empties the ring between main's attempt to write and its wish.
  const wantSpace = ring.wantSpace.bind(ring);
  ring.wantSpace = () => {
    assert.equal(applier.apply(1000), false);
    wantSpace();
  };
  sender.send({ opcode: Command.removePeer, slot: sent });
  assert.equal(told, 0);
  assert.equal(applier.apply(1000), false);
  assert.equal(told, 1);
});
