import assert from "node:assert/strict";
import { test } from "node:test";
import { kernelSegments } from "#wireguard/worker/packet-model.ts";
import { Command } from "#wireguard/worker/records.ts";
import { type Chance, fuzz } from "../chance.ts";
import type { Incoming } from "./fake-kernel.ts";
import { MemoryGuard } from "./memory-guard.ts";
import {
  asPacket,
  DATAGRAM_ENDS,
  damaged,
  innerPacket,
  isFromPeer,
  MAX_DATAGRAM_BYTES,
  strangeDatagram,
  transport,
} from "./packets.ts";
import { Rig, type TestSession } from "./rig.ts";

const guard = MemoryGuard.install();
const PEER = 1;
const VIRTIO_BYTES = 10;

function session(chance: Chance, localIndex: number): TestSession {
  return { localIndex, remoteIndex: localIndex + 1, sendKey: chance.bytes(32), receiveKey: chance.bytes(32) };
}

/** Where a datagram can end; each is counted in exactly one of them. */
function outcomes(rig: Rig): Record<string, number> {
  return Object.fromEntries(DATAGRAM_ENDS.map((name) => [name, rig.counter(name)]));
}

const sum = (counts: Record<string, number>): number => Object.values(counts).reduce((all, count) => all + count, 0);

/** What came out of the TUN, packet by packet; ids and header checksums of IPv4 left out, for the kernel numbers segments. */
function written(rig: Rig, virtioHeader: boolean): string[] {
  return rig.kernel.tunOut.splice(0).flatMap((write) => {
    if (!virtioHeader) return [plain(write)];
    const segments = kernelSegments(write.subarray(0, VIRTIO_BYTES), write.subarray(VIRTIO_BYTES));
    assert.ok(segments, "the kernel would refuse what was merged");
    return segments.map(plain);
  });
}

function plain(packet: Uint8Array): string {
  const copy = Buffer.from(packet);
  if (copy[0] === 0x45) copy.fill(0, 4, 6).fill(0, 10, 12);
  return copy.toString("hex");
}

test("whatever arrives, each datagram is counted once, each good packet is written once, and nothing else", (t) => {
  fuzz(t, 60, (chance) => {
    const virtioHeader = !chance.once(4);
    const rig = new Rig(guard, { virtioHeader, gro: !chance.once(4) });
    const live = session(chance, chance.word() | 1);
    const old = session(chance, live.localIndex ^ 0x0f0f0f00);
    rig.addPeer(PEER, { path: chance.of(["v4", "v6", "relay", "none"] as const) });
    rig.install(PEER, old);
    rig.setNow(rig.now + 200_000);
    rig.install(PEER, live, chance.of(["initiator", "responder"] as const));
    const isOn = chance.once(3);
    if (isOn)
      rig.command({ opcode: Command.filterBegin, slot: 0, argument: 2 }, { opcode: Command.filterCommit, slot: 0 });

    const expected: string[] = [];
    const wanted = { datagrams: 0, truncated: 0, replay: 0, expired: 0, inner: 0, source: 0, authentic: 0 };
    let counter = 0;
    const used: Uint8Array<ArrayBuffer>[] = [];
    /** One datagram, and what must become of it. */
    const next = (): Uint8Array => {
      switch (chance.below(8)) {
        case 0:
        case 1:
          return strangeDatagram(chance, live);
        case 2:
          wanted.replay++;
          return transport(live, chance.of([2n ** 64n - 1n, 2n ** 53n, 2n ** 63n]), innerPacket(chance, 0));
        case 3:
          wanted.expired++;
          return transport(old, counter, innerPacket(chance, 0));
        case 4:
          if (used.length > 0) {
            wanted.replay++;
            return chance.of(used);
          }
          return strangeDatagram(chance, live);
        case 5:
          return damaged(chance, transport(live, counter, innerPacket(chance, 0)));
        default: {
          const inner = innerPacket(chance, expected.length * 100);
          // Out of order, inside the window.
          const message = transport(live, (counter++ >> 2) * 4 + (3 - (counter & 3)), inner);
          used.push(message);
          wanted.authentic++;
          const padded = new Uint8Array((inner.length + 15) & ~15);
          padded.set(inner);
          const packet = asPacket(padded);
          if (padded.length === 0) return message;
          if (!packet) wanted.inner++;
          else if (!isFromPeer(packet)) wanted.source++;
          else expected.push(plain(packet));
          return message;
        }
      }
    };
    const messages: Incoming[] = Array.from({ length: 150 }, () => {
      const first = next();
      wanted.datagrams++;
      if (!chance.once(5) || first.length === 0 || first.length > 1500) return { bytes: first, port: chance.u16() };
      // Merged with others of its size, as UDP_GRO does, whatever they are.
      const parts = [first];
      for (let i = chance.below(5); i > 0; i--) {
        const other = next();
        parts.push(other);
        wanted.datagrams++;
        if (other.length !== first.length) break;
      }
      const fits = parts.every(
        (part, i) =>
          part.length === first.length || (i === parts.length - 1 && part.length > 0 && part.length < first.length),
      );
      if (fits) return { bytes: new Uint8Array(Buffer.concat(parts)), segmentBytes: first.length };
      // The kernel would not merge these: they come one by one.
      rig.kernel.udpIn.push(...parts.slice(1).map((bytes) => ({ bytes })));
      return { bytes: first };
    });
    rig.kernel.udpIn.push(...messages);
    rig.receive();

    const counts = outcomes(rig);
    const reported = rig.drain(rig.main.datagrams).length;
    assert.equal(rig.counter("rx-datagrams"), wanted.datagrams, "datagrams");
    assert.equal(sum(counts) + reported, wanted.datagrams, JSON.stringify(counts));
    if (!isOn) {
      assert.deepEqual(written(rig, virtioHeader).sort(), expected.sort());
      assert.equal(rig.counter("drop-inner-malformed"), wanted.inner);
      assert.equal(rig.counter("drop-allowed-ips"), wanted.source);
      assert.equal(rig.counter("rx-packets"), wanted.authentic);
      assert.ok(rig.counter("drop-replay") >= wanted.replay);
      assert.ok(rig.counter("drop-expired") >= wanted.expired);
    }
    assert.deepEqual(guard.violations, []);
    rig.close();
  });
});

test("every truncation and every changed byte of a transport message is refused and counted, and the whole one taken", (t) => {
  fuzz(t, 1, (chance) => {
    const rig = new Rig(guard);
    const live = session(chance, 77);
    rig.addPeer(PEER);
    rig.install(PEER, live);
    const message = transport(live, 5, innerPacketOf(chance));
    let sent = 0;
    const give = (bytes: Uint8Array): void => {
      rig.kernel.udpIn.push({ bytes });
      sent++;
    };
    for (let length = 0; length < message.length; length++) give(message.slice(0, length));
    for (let at = 0; at < message.length; at++) {
      for (const bit of [1, 0x80]) {
        const copy = message.slice();
        copy[at]! ^= bit;
        give(copy);
      }
    }
    rig.receive();
    assert.equal(rig.counter("rx-packets"), 0);
    assert.equal(rig.counter("rx-datagrams"), sent);
    assert.equal(sum(outcomes(rig)) + rig.drain(rig.main.datagrams).length, sent);
    give(message);
    rig.receive();
    assert.equal(rig.counter("rx-packets"), 1);
    assert.equal(rig.kernel.tunOut.length, 1);
    assert.deepEqual(guard.violations, []);
    rig.close();
  });
});

test("nothing and the largest datagram are counted like any other", () => {
  const rig = new Rig(guard, { gro: false });
  rig.kernel.udpIn.push({ bytes: new Uint8Array(0) }, { bytes: new Uint8Array(MAX_DATAGRAM_BYTES) });
  rig.kernel.udpIn.push({ bytes: new Uint8Array(70_000) });
  rig.receive();
  assert.equal(rig.counter("rx-datagrams"), 2);
  assert.equal(rig.counter("drop-unknown-type"), 2);
  assert.equal(rig.counter("drop-truncated"), 1);
  assert.deepEqual(guard.violations, []);
  rig.close();
});

test("a counter of the last of 64 bits is refused before anything is believed, and the session goes on", (t) => {
  fuzz(t, 1, (chance) => {
    const rig = new Rig(guard);
    const live = session(chance, 3);
    rig.addPeer(PEER);
    rig.install(PEER, live);
    const give = (counter: bigint): void => {
      rig.kernel.udpIn.push({ bytes: transport(live, counter, innerPacketOf(chance)) });
      rig.receive();
    };
    for (const counter of [2n ** 64n - 1n, 2n ** 63n, 2n ** 53n]) give(counter);
    assert.equal(rig.counter("drop-replay"), 3);
    assert.equal(rig.counter("rx-packets"), 0);
    give(2n ** 53n - 1n);
    assert.equal(rig.counter("rx-packets"), 1, "the last that can be counted");
    give(0n);
    give(2n ** 53n - 1n - 8128n);
    give(2n ** 53n - 1n);
    assert.equal(rig.counter("drop-replay"), 5);
    assert.equal(rig.counter("rx-packets"), 2);
    rig.close();
  });
});

function innerPacketOf(chance: Chance): Uint8Array {
  for (;;) {
    const inner = innerPacket(chance, 0);
    const packet = inner.length % 16 === 0 ? asPacket(inner) : undefined;
    if (packet && isFromPeer(packet)) return packet;
  }
}
