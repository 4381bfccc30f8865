import assert from "node:assert/strict";
import { test } from "node:test";
import { buildPacket } from "#wireguard/worker/packet-model.ts";
import { Command, Report } from "#wireguard/worker/records.ts";
import { type Chance, fuzz } from "../chance.ts";
import { type VirtioHeader, withHeader } from "./fake-kernel.ts";
import { MemoryGuard } from "./memory-guard.ts";
import { asPacket, transport } from "./packets.ts";
import { opened, Rig, type TestSession } from "./rig.ts";

const guard = MemoryGuard.install();
/** Owner of 10.77.0.2 and fd77::2, where packet-model.ts sends. */
const PEER = 2;
const MTU = 1420;

function session(chance: Chance): TestSession {
  return { localIndex: 11, remoteIndex: 12, sendKey: chance.bytes(32), receiveKey: chance.bytes(32) };
}

/** A virtio header: right for the packet, or with any of its fields absurd. */
function header(chance: Chance, packet: Uint8Array, sane: boolean): VirtioHeader {
  const v6 = packet.length > 0 && packet[0]! >> 4 === 6;
  const ipBytes = v6 ? 40 : 20;
  const tcp = packet[v6 ? 6 : 9] === 6;
  const right = {
    flags: 1,
    gsoType: tcp ? (v6 ? 4 : 1) : 5,
    headerBytes: ipBytes + (tcp ? 20 : 8),
    gsoSize: chance.between(100, 1400),
    checksumStart: ipBytes,
    checksumOffset: tcp ? 16 : 6,
  };
  if (sane) return right;
  return {
    flags: chance.once(2) ? right.flags : chance.below(256),
    gsoType: chance.once(2) ? right.gsoType : chance.of([0, 0, 0x80, 1, 3, 4, 5, 0x81, 255]),
    headerBytes: chance.once(2) ? right.headerBytes : chance.u16(),
    gsoSize: chance.once(2) ? right.gsoSize : chance.u16(),
    checksumStart: chance.once(2) ? right.checksumStart : chance.u16(),
    checksumOffset: chance.once(2) ? right.checksumOffset : chance.u16(),
  };
}

/** From the kernel, with headers that lie more often than not. */
function outbound(chance: Chance): { packet: Uint8Array; isSane: boolean } {
  const packet = buildPacket({
    v6: chance.once(3),
    protocol: chance.of(["tcp", "udp"] as const),
    payload: chance.bytes(chance.of([1, 2, 100, 1280, 1400, 9000, chance.once(4) ? 65_000 : 300])),
    sequence: chance.word(),
  });
  if (chance.once(3)) return { packet, isSane: true };
  if (chance.once(2)) {
    const at = chance.below(Math.min(packet.length - 1, 64));
    const view = new DataView(packet.buffer);
    if (chance.once(2)) view.setUint16(at, chance.u16());
    else packet[at] = chance.below(256);
    return { packet, isSane: false };
  }
  if (chance.once(2)) return { packet: packet.slice(0, chance.below(packet.length + 1)), isSane: false };
  const noise = chance.bytes(chance.of([0, 1, 19, 20, 28, 40, 48, 200, 65_526]));
  if (noise.length > 0) noise[0] = chance.of([0x45, 0x4f, 0x60, noise[0]!]);
  return { packet: noise, isSane: false };
}

test("whatever the TUN gives is sent, staged or dropped and counted; what is sent is authentic, in order, once", (t) => {
  fuzz(t, 12, (chance) => {
    const rig = new Rig(guard, { gso: !chance.once(3), mtu: MTU });
    const live = session(chance);
    const path = chance.of(["v4", "v6", "relay", "v4"] as const);
    rig.addPeer(PEER, { path });
    rig.install(PEER, live);
    if (chance.once(3))
      rig.command({ opcode: Command.filterBegin, slot: 0, argument: 1 }, { opcode: Command.filterCommit, slot: 0 });
    // The session's first packet: a keepalive.
    let last = -1n;
    let packets = 0;
    const check = (): void => {
      for (const datagram of rig.takeSent()) {
        const { counter, inner } = opened(live, datagram);
        assert.ok(counter > last, `counter ${counter} after ${last}`);
        last = counter;
        packets++;
        assert.ok(inner.length <= 65_600);
        assert.ok(inner.length % 16 === 0 || inner.length >= MTU || inner.length % MTU === 0, `${inner.length} bytes`);
      }
    };
    let reads = 0;
    for (let batch = 0; batch < 6; batch++) {
      for (let i = 0; i < 12; i++) {
        const { packet, isSane } = outbound(chance);
        rig.kernel.tunIn.push(withHeader(header(chance, packet, isSane), packet));
        reads++;
      }
      rig.transmit();
      check();
    }
    assert.equal(rig.counter("tun-read"), reads);
    // Every segment that got a counter has left; a full ring towards the relay is the one reason why it might not.
    const lost = rig.counter("drop-relay-queue");
    assert.equal(rig.counter("tx-packets"), packets, path);
    assert.equal(packets + lost, rig.path.peers.active(PEER)!.current!.sendCounter);
    assert.equal(rig.counter("drop-send") + rig.counter("drop-message-too-big"), 0);
    assert.deepEqual(guard.violations, []);
    rig.close();
  });
});

test("each packet read has one fate: malformed, without route, or on its way", (t) => {
  fuzz(t, 12, (chance) => {
    const rig = new Rig(guard, { mtu: MTU });
    const live = session(chance);
    rig.addPeer(PEER);
    rig.install(PEER, live);
    rig.transmit();
    rig.takeSent();
    for (let i = 0; i < 60; i++) {
      const { packet, isSane } = outbound(chance);
      const before = {
        bad: rig.counter("drop-outbound-malformed"),
        lost: rig.counter("drop-no-route"),
        sent: rig.counter("tx-packets"),
      };
      rig.kernel.tunIn.push(withHeader(header(chance, packet, isSane), packet));
      rig.transmit();
      const fates = [
        rig.counter("drop-outbound-malformed") - before.bad,
        rig.counter("drop-no-route") - before.lost,
        rig.counter("tx-packets") > before.sent ? 1 : 0,
      ];
      assert.equal(
        fates.reduce((a, b) => a + b, 0),
        1,
        `${fates} for ${Buffer.from(packet.subarray(0, 64)).toString("hex")}`,
      );
      if (!asPacket(packet)) assert.equal(fates[0], 1);
      if (isSane) assert.equal(fates[2], 1);
    }
    assert.deepEqual(guard.violations, []);
    rig.close();
  });
});

test("absurd segment sizes make no more than a batch holds, and every byte leaves", () => {
  for (const gso of [true, false]) {
    for (const gsoSize of [1, 7, 536, 1360, 65_535]) {
      const rig = new Rig(guard, { gso });
      const live = {
        localIndex: 1,
        remoteIndex: 2,
        sendKey: new Uint8Array(32).fill(1),
        receiveKey: new Uint8Array(32),
      };
      rig.addPeer(PEER);
      rig.install(PEER, live);
      rig.transmit();
      rig.takeSent();
      const payload = new Uint8Array(gso || gsoSize > 7 ? 65_000 : 5000).map((_, i) => i % 251);
      const packet = buildPacket({ v6: false, protocol: "tcp", payload });
      rig.kernel.tunIn.push(
        withHeader({ flags: 1, gsoType: 1, gsoSize, checksumStart: 20, checksumOffset: 16 }, packet),
      );
      rig.transmit();
      const sent = rig.takeSent().map((datagram) => asPacket(opened(live, datagram).inner)!);
      assert.equal(sent.length, Math.ceil(payload.length / gsoSize));
      const arrived = Buffer.concat(sent.map((segment) => segment.subarray(40)));
      assert.ok(arrived.equals(payload), `${gsoSize} gso ${gso}`);
      assert.deepEqual(guard.violations, []);
      rig.close();
    }
  }
});

test("packets of every size are padded to 16 and never beyond the MTU, also after the MTU changed", () => {
  const rig = new Rig(guard, { mtu: 1419 });
  const live = { localIndex: 1, remoteIndex: 2, sendKey: new Uint8Array(32).fill(3), receiveKey: new Uint8Array(32) };
  rig.addPeer(PEER);
  rig.install(PEER, live);
  rig.transmit();
  rig.takeSent();
  for (const mtu of [1419, 1280, 1420, 576, 9000]) {
    rig.command({ opcode: Command.setMtu, slot: 0, argument: mtu });
    for (let size = 28; size <= Math.min(mtu, 1500); size++) {
      const packet = buildPacket({ v6: false, protocol: "udp", payload: new Uint8Array(size - 28).fill(size) });
      rig.kernel.tunIn.push(withHeader({}, packet));
      rig.transmit();
      const [datagram, ...more] = rig.takeSent();
      assert.equal(more.length, 0);
      const { inner } = opened(live, datagram!);
      assert.equal(inner.length, Math.min((size + 15) & ~15, mtu), `${size} at MTU ${mtu}`);
      assert.ok(Buffer.from(packet).equals(inner.subarray(0, size)));
      assert.ok(inner.subarray(size).every((byte) => byte === 0));
    }
  }
  assert.deepEqual(guard.violations, []);
  rig.close();
});

const ERRNO = { EPERM: 1, EINTR: 4, EIO: 5, EAGAIN: 11, EINVAL: 22, EMSGSIZE: 90, ENETUNREACH: 101, ENOBUFS: 105 };

/** How a datagram that the kernel refused is counted, and whether main hears of it. */
const REFUSALS: readonly { name: keyof typeof ERRNO; counter: "drop-send" | "drop-message-too-big"; told: boolean }[] =
  [
    { name: "EPERM", counter: "drop-send", told: true },
    { name: "ENOBUFS", counter: "drop-send", told: false },
    { name: "EMSGSIZE", counter: "drop-message-too-big", told: true },
    { name: "ENETUNREACH", counter: "drop-send", told: true },
  ];
for (const { name, counter, told } of REFUSALS) {
  test(`a datagram refused with ${name} is counted as ${counter}, ${told ? "reported once" : "not reported"}, and the next one leaves`, () => {
    const { rig, send } = sender();
    rig.kernel.errors.set("sendmmsg", [ERRNO[name], 0, ERRNO[name]]);
    send();
    send();
    send();
    send();
    assert.equal(rig.kernel.sent.length, 2);
    assert.equal(rig.counter(counter), 2);
    const errors = rig.drain(rig.main.events).filter(({ opcode }) => opcode === Report.pathError);
    assert.equal(errors.length, told ? 1 : 0);
    assert.deepEqual(guard.violations, []);
    rig.close();
  });
}

test("an interrupted call is repeated, a full socket holds everything back until it has room", () => {
  const { rig, send } = sender();
  rig.kernel.errors.set("sendmmsg", [ERRNO.EINTR, 0]);
  send();
  assert.equal(rig.kernel.sent.length, 1);
  rig.kernel.errors.set("sendmmsg", new Array<number>(9).fill(ERRNO.EAGAIN));
  send();
  assert.equal(rig.path.queue.blockedFamily, 4);
  const reads = rig.counter("tun-read");
  send(3);
  assert.equal(rig.counter("tun-read"), reads, "the TUN is not read meanwhile");
  rig.kernel.errors.clear();
  rig.transmit();
  assert.equal(rig.path.queue.blockedFamily, 0);
  assert.equal(rig.kernel.sent.length, 5);
  assert.equal(rig.counter("drop-send"), 0);
  rig.close();
});

for (const name of ["EIO", "EINVAL", "EMSGSIZE"] as const) {
  test(`datagrams that the kernel does not cut (${name}) leave one by one, none lost`, () => {
    const { rig, send } = sender();
    rig.kernel.errors.set("sendmmsg", [ERRNO[name]]);
    send(10);
    assert.equal(rig.kernel.sent.length, 10);
    assert.equal(rig.counter("gso-refused"), 1);
    assert.equal(rig.counter("gso-disabled"), name === "EIO" ? 1 : 0);
    assert.equal(rig.counter("drop-send") + rig.counter("drop-message-too-big"), 0);
    assert.deepEqual(guard.violations, []);
    rig.close();
  });
}

test("what the TUN refuses is counted, and the next packet is written", () => {
  const { rig, live } = sender();
  rig.kernel.errors.set("write", [ERRNO.EIO, ERRNO.EINTR, 0]);
  rig.command({ opcode: Command.addPrefix, slot: PEER, address: "10.77.0.1" as never, argument: 32 });
  for (let counter = 0; counter < 3; counter++) {
    const inner = buildPacket({ v6: false, protocol: "udp", payload: new Uint8Array(4), id: counter });
    rig.kernel.udpIn.push({ bytes: transport(live, counter, inner) });
    rig.receive();
  }
  assert.equal(rig.counter("drop-tun-write"), 1);
  assert.equal(rig.kernel.tunOut.length, 2);
  assert.equal(rig.path.tun.gone, false);
  rig.close();
});

function sender(): { rig: Rig; live: TestSession; send: (count?: number) => void } {
  const rig = new Rig(guard);
  const live = { localIndex: 1, remoteIndex: 2, sendKey: new Uint8Array(32).fill(9), receiveKey: new Uint8Array(32) };
  rig.addPeer(PEER);
  rig.install(PEER, live);
  rig.transmit();
  rig.takeSent();
  const packet = buildPacket({ v6: false, protocol: "udp", payload: new Uint8Array(200) });
  const send = (count = 1): void => {
    for (let i = 0; i < count; i++) rig.kernel.tunIn.push(withHeader({}, packet));
    rig.transmit();
  };
  return { rig, live, send };
}
