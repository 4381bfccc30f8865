import assert from "node:assert/strict";
import { test } from "node:test";
import { ipFromBytes, ipToBytes } from "#base/ip.ts";
import type { CommandRecord } from "#wireguard/worker/commands.ts";
import { buildPacket } from "#wireguard/worker/packet-model.ts";
import { Command, Report } from "#wireguard/worker/records.ts";
import { OLDER_MAX } from "#wireguard/worker/sessions.ts";
import { STAGED_DEVICE_MAX_BYTES } from "#wireguard/worker/staging.ts";
import { type Chance, fuzz } from "../chance.ts";
import { withHeader } from "./fake-kernel.ts";
import { MemoryGuard } from "./memory-guard.ts";
import { innerPacket, strangeDatagram, transport } from "./packets.ts";
import { innerAddress, Rig, type TestSession } from "./rig.ts";

const guard = MemoryGuard.install();
const PEER = 1;
const CAPACITY = 64;
/** Peer slots around those there are; most commands go to the first few. */
const SLOTS = [0, 1, 2, 2, 3, 3, 4, CAPACITY - 1, CAPACITY, CAPACITY + 1, 0x7fffffff, 0xffffffff];
const MTUS = [576, 1280, 1371, 1420, 65_535];

function session(chance: Chance, localIndex: number): TestSession {
  return { localIndex, remoteIndex: chance.word(), sendKey: chance.bytes(32), receiveKey: chance.bytes(32) };
}

/** Any command but those about slot 1, with values at and beyond the ends of what main would write. */
function command(chance: Chance, forged: TestSession, now: number): CommandRecord {
  const slot = chance.of(SLOTS.filter((each) => each !== PEER));
  const argument = chance.of([0, 1, 2, 24, 32, 33, 128, 129, 65_535, 65_536, 0x7fffffff, 0xffffffff]);
  const address = chance.once(2) ? ipFromBytes(chance.bytes(4)) : ipFromBytes(chance.bytes(16));
  switch (chance.below(14)) {
    case 0:
      return { opcode: Command.addPeer, slot, argument };
    case 1:
      return { opcode: Command.removePeer, slot };
    case 2:
      return { opcode: Command.setAsleep, slot, argument: chance.below(2) };
    case 3:
      return { opcode: Command.setKeepalive, slot, argument };
    case 4:
      return { opcode: chance.of([Command.addPrefix, Command.removePrefix]), slot, address, argument };
    case 5:
      return { opcode: Command.setPath, slot, family: chance.of([0, 1, 4, 6, 255]), port: chance.u16() };
    case 6:
      return { opcode: Command.setPath, slot, address, port: chance.u16() };
    case 7: {
      const payload = chance.bytes(72);
      const index = chance.of([0, 1, 7, 0x7fffffff, 0xffffffff, forged.remoteIndex]);
      new DataView(payload.buffer, payload.byteOffset).setUint32(0, index, true);
      const time = chance.of([0, now, now - 179_999, now - 180_000, now + 1e9]);
      return record(Command.installSession, slot, payload, { argument: chance.below(3), time });
    }
    case 8:
      return { opcode: Command.dropStaged, slot };
    case 9:
      return { opcode: Command.noteAuthenticated, slot, argument: chance.below(2), time: chance.of([0, 148, 1e15]) };
    case 10:
      return record(Command.inject, slot, strangeDatagram(chance, forged));
    case 11:
      return { opcode: Command.setMtu, slot: 0, argument: chance.of(MTUS) };
    case 12:
      return record(Command.setCookieSecret, 0, chance.bytes(32));
    default: {
      const opcode = chance.of([Command.filterBegin, Command.filterCommit, Command.filterSource, Command.filterSource]);
      if (opcode !== Command.filterSource) return { opcode, slot: 0, argument: 2 };
      const rules = chance.bytes(chance.of([0, 1, 23, 24, 25, 48, 240]));
      return { ...record(opcode, 0, rules), address, argument: chance.of([0, 8, 32, 128]) };
    }
  }
}

function record(opcode: Command, slot: number, payload: Uint8Array, more: Partial<CommandRecord> = {}): CommandRecord {
  return { opcode, slot, payloadBytes: payload.length, fill: (bytes, at) => bytes.set(payload, at), ...more };
}

test("no order and no value of commands ends the worker, and the traffic of another peer goes on", (t) => {
  fuzz(t, 20, (chance) => {
    const rig = new Rig(guard, { peerCapacity: CAPACITY });
    const live = session(chance, 0x22222222);
    rig.addPeer(PEER);
    rig.install(PEER, live);
    let counter = 0;
    for (let step = 0; step < 60; step++) {
      rig.setNow(rig.now + chance.of([0, 1, 100, 1000]));
      rig.command(...Array.from({ length: chance.below(8) }, () => command(chance, live, rig.now)));
      if (rig.path.timers.nextAt <= rig.now) rig.path.timers.run(rig.now);
      // Something for everybody.
      for (let i = 0; i < 4; i++) {
        const packet = buildPacket({ v6: chance.once(2), protocol: "udp", payload: chance.bytes(chance.below(1300)) });
        rig.kernel.tunIn.push(withHeader({}, packet));
      }
      rig.kernel.udpIn.push({ bytes: strangeDatagram(chance, live) });
      rig.transmit();
      rig.receive();
      rig.kernel.tunOut.length = 0;
      const before = rig.counter("rx-packets");
      rig.kernel.udpIn.push({ bytes: transport(live, counter++, innerPacket(chance, 0)) });
      rig.receive();
      assert.equal(rig.counter("rx-packets"), before + 1, "the session of slot 1");
      for (const ring of Object.values(rig.main)) rig.drain(ring);
      rig.kernel.sent.length = 0;
    }
    assert.deepEqual(guard.violations, []);
    rig.close();
  });
});

test("session keys are zeros in memory once their session ended, was replaced, its peer removed, or the worker closed", (t) => {
  fuzz(t, 3, (chance) => {
    const rig = new Rig(guard);
    const places: { address: number; why: string }[] = [];
    const keysAt = (address: number): Buffer => Buffer.from(guard.at(address, 64));
    const install = (slot: number, index: number, why: string): TestSession => {
      const made = session(chance, index);
      rig.install(slot, made);
      const { sendKey } = rig.path.sessions.find(index)!;
      assert.ok(keysAt(sendKey).equals(Buffer.concat([made.sendKey, made.receiveKey])));
      places.push({ address: sendKey, why });
      return made;
    };
    for (const slot of [1, 2, 3]) rig.addPeer(slot);
    install(1, 10, "newer ones pushed it out");
    // Current, previous, and those that are kept besides.
    for (let newer = 1; newer <= OLDER_MAX + 2; newer++) install(1, 10 + newer, "expired");
    assert.ok(keysAt(places[0]!.address).equals(Buffer.alloc(64)), places[0]!.why);
    rig.setNow(rig.now + 540_000);
    rig.path.timers.run(rig.now);
    install(2, 20, "peer removed");
    const last = places.at(-1)!;
    rig.command({ opcode: Command.removePeer, slot: 2 });
    assert.ok(keysAt(last.address).equals(Buffer.alloc(64)));
    install(3, 30, "closed");
    rig.close();
    for (const { address, why } of places) assert.ok(keysAt(address).equals(Buffer.alloc(64)), why);
  });
});

test("keys and cookie secrets are gone from the command ring once the worker has them", (t) => {
  fuzz(t, 1, (chance) => {
    const rig = new Rig(guard);
    rig.addPeer(1);
    const made = session(chance, 5);
    const secret = chance.bytes(32);
    rig.install(1, made);
    rig.command(record(Command.setCookieSecret, 0, secret));
    const ring = Buffer.from(rig.commandRing.bytes);
    for (const key of [made.sendKey, made.receiveKey, secret]) assert.equal(ring.indexOf(key), -1);
    rig.close();
  });
});

test("10,000 peers that came, had a session and packets waiting, and went, leave nothing behind", () => {
  const rig = new Rig(guard);
  const cycle = (count: number): void => {
    for (let i = 0; i < count; i++) {
      const slot = 1 + (i % 32);
      rig.addPeer(slot, { path: i % 2 === 0 ? "v4" : "none" });
      const keys = { sendKey: new Uint8Array(32).fill(i), receiveKey: new Uint8Array(32) };
      rig.install(slot, { localIndex: i + 1, remoteIndex: i, ...keys });
      rig.kernel.tunIn.push(withHeader({}, buildPacket({ v6: false, protocol: "udp", payload: new Uint8Array(900) })));
      rig.transmit();
      rig.command({ opcode: Command.removePeer, slot });
      rig.takeSent();
      for (const ring of Object.values(rig.main)) rig.drain(ring);
    }
  };
  cycle(1000);
  const regions = guard.regions;
  cycle(10_000);
  assert.equal(guard.regions, regions, "no more memory for keys than before");
  assert.equal(rig.path.sessions.size, 0);
  assert.equal(rig.path.timers.size, 0);
  assert.equal(rig.counter("staged-bytes"), 0);
  assert.equal([...rig.path.peers].length, 0);
  assert.equal(rig.path.routes.destination(0), -1);
  rig.close();
});

test("a ping sweep over 100,000 idle peers wakes each at most once, stages what fits, and takes no session, timer or socket call", () => {
  const PEERS = 100_000;
  const rig = new Rig(guard, { peerCapacity: 131_072 });
  const slots = Array.from({ length: PEERS }, (_, i) => 3 + i);
  const before = process.memoryUsage();
  for (const slot of slots) rig.addPeer(slot, { asleep: true });
  const after = process.memoryUsage();
  const bytesEach = (after.heapUsed + after.arrayBuffers - before.heapUsed - before.arrayBuffers) / PEERS;
  assert.ok(bytesEach < 1024, `${bytesEach} bytes for each`);
  assert.equal(rig.path.timers.size, 0);
  assert.equal([...rig.path.peers].length, 0, "no object for any");

  const calls = guard.calls.get("sendmmsg") ?? 0;
  const woken = new Set<number>();
  let staged = 0;
  for (let from = 0; from < PEERS; from += 500) {
    for (const slot of slots.slice(from, from + 500)) {
      const echo = new Uint8Array(84);
      echo.set([0x45, 0, 0, 84, 0, 0, 0, 0, 64, 1, 0, 0, 10, 77, 0, 1]);
      echo.set([...ipToBytes(innerAddress(slot, 4)), 8], 16);
      rig.kernel.tunIn.push(withHeader({}, echo), withHeader({}, echo));
      staged += 2;
    }
    rig.transmit();
    for (const { opcode, slot } of rig.drain(rig.main.events)) {
      if (opcode !== Report.wakePacket) continue;
      assert.ok(!woken.has(slot), `slot ${slot} twice`);
      woken.add(slot);
    }
  }
  assert.equal(woken.size, PEERS);
  assert.ok(rig.counter("staged-bytes") <= STAGED_DEVICE_MAX_BYTES);
  assert.equal(rig.counter("staged-packets") + rig.counter("drop-staged-device-full"), staged);
  assert.equal(rig.path.timers.size, 0);
  assert.equal(guard.calls.get("sendmmsg") ?? 0, calls);
  // Nobody was wanted: all go back to sleep, a second later so that what waits does not wake them again.
  rig.setNow(rig.now + 2000);
  for (const slot of slots) rig.command({ opcode: Command.setAsleep, slot, argument: 1 });
  assert.equal([...rig.path.peers].length, 0);
  assert.equal(rig.counter("staged-bytes"), 0);
  rig.close();
});
