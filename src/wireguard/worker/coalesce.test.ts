import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Arena } from "./arena.ts";
import { Coalescer } from "./coalesce.ts";
import { buildPacket, kernelSegments, type PacketSpec } from "./packet-model.ts";

const ARENA_BYTES = 1 << 20;

/** Runs packets through a Coalescer; what the kernel was given, and what it makes of it. */
function coalesce(
  packets: readonly Uint8Array[],
  options: { virtioHeader?: boolean; mergeUdp?: boolean } = {},
): { writes: number; delivered: Uint8Array[] } {
  const arena = new Arena(ARENA_BYTES);
  const delivered: Uint8Array[] = [];
  let writes = 0;
  const take = (bytes: Uint8Array): void => {
    writes++;
    const made = kernelSegments(bytes.subarray(0, 10), bytes.subarray(10));
    assert.ok(made, `the kernel would refuse ${Buffer.from(bytes.subarray(0, 80)).toString("hex")}`);
    delivered.push(...made);
  };
  const coalescer = new Coalescer(
    arena,
    {
      virtioHeader: options.virtioHeader ?? true,
      writePacket: (at, length) => {
        writes++;
        delivered.push(arena.bytes.slice(at, at + length));
      },
      writePieces: (iovecs, count) => {
        const pieces = Array.from({ length: count }, (_, i) => {
          const at = Number(arena.view.getBigUint64(iovecs + 16 * i, true)) - arena.base;
          const length = Number(arena.view.getBigUint64(iovecs + 16 * i + 8, true));
          assert.ok(at >= 0 && at + length <= ARENA_BYTES, "inside the arena");
          return arena.bytes.slice(at, at + length);
        });
        take(new Uint8Array(Buffer.concat(pieces)));
      },
    },
    options.mergeUdp ?? true,
  );
  for (const packet of packets) {
    const at = arena.take(packet.length + 16, 4) + 16;
    arena.bytes.set(packet, at);
    coalescer.add(at, packet.length);
  }
  coalescer.flush();
  return { writes, delivered };
}

const same = (a: readonly Uint8Array[], b: readonly Uint8Array[]): void =>
  assert.deepEqual(
    a.map((packet) => Buffer.from(packet).toString("hex")),
    b.map((packet) => Buffer.from(packet).toString("hex")),
  );

/** A TCP stream cut into packets of the given payload sizes. */
function stream(sizes: readonly number[], spec: Partial<PacketSpec> = {}): Uint8Array[] {
  let sequence = 0xfffff000;
  return sizes.map((size, index) => {
    const payload = new Uint8Array(size).map((_, i) => (i * 31 + index * 7) & 0xff);
    const packet = buildPacket({ v6: false, protocol: "tcp", ...spec, payload, sequence: sequence >>> 0, id: index });
    sequence += size;
    return packet;
  });
}

test("a full-sized stream travels in one write, in both families, with options and odd sizes", () => {
  for (const v6 of [false, true]) {
    for (const size of [1368, 1367, 100]) {
      const options = size === 100 ? new Uint8Array(0) : Uint8Array.of(1, 1, 8, 10, 9, 9, 9, 9, 8, 8, 8, 8);
      const packets = stream([size, size, size, size - 3], { v6, options });
      const { writes, delivered } = coalesce(packets);
      assert.equal(writes, 1);
      same(delivered, packets);
    }
  }
});

test("UDP datagrams of one size and a smaller last one travel in one write", () => {
  for (const v6 of [false, true]) {
    const packets = [500, 500, 500, 20].map((size, id) =>
      buildPacket({ v6, protocol: "udp", payload: new Uint8Array(size).fill(id + 1), id }),
    );
    const merged = coalesce(packets);
    assert.equal(merged.writes, 1);
    same(merged.delivered, packets);
    assert.equal(coalesce(packets, { mergeUdp: false }).writes, 4);
  }
});

test("64 datagrams are the most in one write", () => {
  const packets = Array.from({ length: 130 }, (_, id) =>
    buildPacket({ v6: false, protocol: "udp", payload: new Uint8Array(8).fill(id), id }),
  );
  const { writes, delivered } = coalesce(packets);
  assert.equal(writes, 3);
  same(delivered, packets);
});

test("what must not be merged is not: each rule by itself", () => {
  const second: readonly [string, Partial<PacketSpec>][] = [
    ["another acknowledgement", { acknowledgement: 1 }],
    ["FIN", { flags: 0x11 }],
    ["SYN", { flags: 0x12 }],
    ["RST", { flags: 0x14 }],
    ["URG", { flags: 0x30 }],
    ["ECE", { flags: 0x50 }],
    ["CWR", { flags: 0x90 }],
    ["other options", { options: Uint8Array.of(1, 1, 1, 1) }],
    ["another traffic class", { tos: 2 }],
    ["another hop limit", { ttl: 63 }],
    ["a gap", { sequence: 7 }],
    ["another port", { sourcePort: 9 }],
    ["more payload than the first", { payload: new Uint8Array(101) }],
  ];
  for (const v6 of [false, true]) {
    const base = { v6, protocol: "tcp" as const, payload: new Uint8Array(100), sequence: 1000 };
    for (const [name, change] of second) {
      const packets = [buildPacket(base), buildPacket({ ...base, sequence: 1100, id: 1, ...change })];
      const { writes, delivered } = coalesce(packets);
      assert.equal(writes, 2, `${name} ${v6}`);
      same(delivered, packets);
    }
  }
});

test("PSH ends what it belongs to and arrives on the last segment", () => {
  const packets = stream([100, 100, 100, 100]);
  const pushed = stream([100, 100, 100, 100], { flags: 0x18 });
  const mixed = [packets[0]!, pushed[1]!, packets[2]!, packets[3]!];
  const { writes, delivered } = coalesce(mixed);
  assert.equal(writes, 2);
  same(delivered, mixed);
});

test("a packet with a wrong checksum is written alone, wherever it stands, and the rest still merges", () => {
  for (const broken of [0, 1, 3]) {
    const packets = stream([100, 100, 100, 100, 100]);
    packets[broken]![60]! ^= 0x40;
    const { writes, delivered } = coalesce(packets);
    same(delivered, packets);
    assert.ok(writes < packets.length, `broken ${broken}`);
  }
});

test("fragments, IP options, UDP without checksum, other protocols and pure acknowledgements pass as they are", () => {
  const [first, next] = stream([100, 100]) as [Uint8Array, Uint8Array];
  const fragment = next.slice();
  fragment[6] = 0x20;
  const laterFragment = next.slice();
  laterFragment[7] = 5;
  const icmp = next.slice();
  icmp[9] = 1;
  const noChecksum = buildPacket({ v6: false, protocol: "udp", payload: new Uint8Array(10) });
  noChecksum.set([0, 0], 26);
  const acknowledgement = stream([0])[0]!;
  const extension = buildPacket({ v6: true, protocol: "tcp", payload: new Uint8Array(50) });
  extension[6] = 0;
  for (const odd of [fragment, laterFragment, icmp, noChecksum, acknowledgement, extension]) {
    const { delivered } = coalesce([first, odd, odd]);
    assert.equal(delivered.length, 3);
    assert.ok(delivered.filter((packet) => Buffer.compare(packet, odd) === 0).length === 2);
  }
});

test("any mix of flows is delivered packet for packet, in order within each flow, with and without offload", () => {
  const packet = fc.record({
    flow: fc.nat(20),
    size: fc.constantFrom(0, 1, 50, 99, 100, 1368),
    psh: fc.boolean(),
    tcp: fc.boolean(),
    v6: fc.boolean(),
    skip: fc.boolean(),
  });
  fc.assert(
    fc.property(fc.array(packet, { maxLength: 120 }), fc.boolean(), (specs, virtioHeader) => {
      const next = new Map<string, number>();
      const keys: string[] = [];
      const packets = specs.map(({ flow, size, psh, tcp, v6, skip }, i) => {
        const key = `${flow} ${tcp} ${v6}`;
        const sequence = (next.get(key) ?? 0) + (skip && i % 5 === 0 ? 10 : 0);
        next.set(key, sequence + size);
        keys.push(key);
        const payload = new Uint8Array(size).map((_, n) => (n + i) & 0xff);
        return buildPacket({
          v6,
          protocol: tcp ? "tcp" : "udp",
          payload,
          sourcePort: 1000 + flow,
          sequence,
          flags: psh ? 0x18 : 0x10,
          // The kernel numbers segments by itself; only a first packet's id can be told.
          id: 0,
        });
      });
      const { delivered } = coalesce(packets, { virtioHeader });
      assert.equal(delivered.length, packets.length);
      const withoutId = (bytes: Uint8Array): string => {
        const copy = bytes.slice();
        if (copy[0] === 0x45) copy.set([0, 0, ...copy.subarray(6, 10), 0, 0], 4);
        return Buffer.from(copy).toString("hex");
      };
      const keyOf = (bytes: Uint8Array): string => {
        const v6 = bytes[0]! >> 4 === 6;
        const at = v6 ? 40 : 20;
        return `${((bytes[at]! << 8) | bytes[at + 1]!) - 1000} ${bytes[v6 ? 6 : 9] === 6} ${v6}`;
      };
      for (const key of new Set(keys)) {
        same(
          delivered.filter((bytes) => keyOf(bytes) === key).map((bytes) => Buffer.from(withoutId(bytes), "hex")),
          packets.filter((_, i) => keys[i] === key).map((bytes) => Buffer.from(withoutId(bytes), "hex")),
        );
      }
    }),
    { numRuns: 60 },
  );
});
