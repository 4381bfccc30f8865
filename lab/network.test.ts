import assert from "node:assert/strict";
import { readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import fc from "fast-check";
import { parseIp } from "#base/ip.ts";
import { NAT } from "./nat.ts";
import { FLIGHT_MAX_PACKETS, Network } from "./network.ts";
import { foldChecksum, ipv4, ipv4ToText, onesSum } from "./packet.ts";
import { PcapWriter } from "./pcap.ts";
import { encodeSamplePacket, type SamplePacket, transportChecksum } from "./sample-packet.ts";
import { type LabTopology, resolveTopology } from "./topology.ts";

const TOPOLOGY: LabTopology = {
  sites: [
    { name: "dc", latencyMs: 5 },
    { name: "home", latencyMs: 15, nat: NAT.portRestricted },
    { name: "cafe", latencyMs: 1, nat: NAT.symmetric, linkMtu: 1300 },
  ],
  hosts: [
    { name: "server", site: "dc" },
    { name: "a", site: "home" },
    { name: "a2", site: "home" },
    { name: "b", site: "cafe" },
  ],
};

interface Delivered {
  readonly to: string;
  readonly at: number;
  readonly packet: Uint8Array;
}

/** A network under test that moves its own time. */
class World {
  readonly topology = resolveTopology(TOPOLOGY);
  readonly delivered: Delivered[] = [];
  readonly seen: string[] = [];
  now = 0;
  readonly network = new Network(this.topology, {
    deliver: (host, bytes, length) => {
      const to = this.topology.hosts[host]!.name;
      this.delivered.push({ to, at: this.now, packet: bytes.slice(0, length) });
    },
    seenAtSite: (site, bytes) => {
      const [from, to] = [ipv4ToText(ipv4.source(bytes)), ipv4ToText(ipv4.destination(bytes))];
      this.seen.push(`${this.topology.sites[site]!.name} ${from}>${to}`);
    },
  });

  address(host: string): string {
    return this.topology.hosts.find((candidate) => candidate.name === host)!.address;
  }

  send(from: string, sample: Partial<SamplePacket> & { destination: string }): void {
    this.raw(from, encodeSamplePacket({ protocol: "udp", source: this.address(from), ...sample }));
  }

  raw(from: string, bytes: Uint8Array): void {
    const packet = this.network.take()!;
    packet.bytes.set(bytes);
    packet.length = bytes.length;
    this.network.receive(
      this.topology.hosts.findIndex((host) => host.name === from),
      packet,
      this.now,
    );
    this.settle();
  }

  /** Lets time pass until nothing is under way. */
  settle(): void {
    for (let due = this.network.nextDue(); due !== undefined; due = this.network.nextDue()) {
      this.now = Math.max(this.now, due);
      this.network.advance(this.now);
    }
  }

  take(): Delivered | undefined {
    return this.delivered.shift();
  }
}

describe("network", () => {
  test("the delay between two sites is the sum of both, and a LAN has none", () => {
    const world = new World();
    world.send("a", { destination: world.address("server") });
    assert.deepEqual([world.delivered[0]!.to, world.take()!.at], ["server", 20]);
    const start = world.now;
    world.send("a", { destination: world.address("a2") });
    assert.deepEqual([world.delivered[0]!.to, world.take()!.at], ["a2", start]);
  });

  test("hosts behind NATs reach each other through punched holes, and captures see public addresses", () => {
    const world = new World();
    const [home, server] = ["198.19.2.1", world.address("server")];
    world.send("a", { destination: server, sourcePort: 5000, destinationPort: 7 });
    world.take();
    world.send("server", { destination: home, sourcePort: 7, destinationPort: 5000 });
    const reply = world.take()!;
    assert.equal(reply.to, "a");
    assert.equal(reply.packet[8], 62, "two hops were taken off");
    assert.equal(foldChecksum(onesSum(reply.packet, 0, 20)), 0);
    assert.equal(transportChecksum(reply.packet), (reply.packet[26]! << 8) | reply.packet[27]!);
    world.send("b", { destination: home, sourcePort: 9, destinationPort: 5000 });
    assert.equal(world.take(), undefined, "a stranger is filtered");
    assert.equal(world.network.counters().drops.filtered, 1);
    assert.deepEqual(world.seen.slice(0, 2), [`home ${home}>${server}`, `dc ${home}>${server}`]);
  });

  test("blocked UDP passes neither way while TCP does", () => {
    const world = new World();
    world.network.setUdp(1, "blocked");
    world.send("a", { destination: world.address("server") });
    world.send("server", { destination: "198.19.2.1" });
    assert.equal(world.take(), undefined);
    world.send("a", { protocol: "tcp", destination: world.address("server") });
    assert.equal(world.take()!.to, "server");
    assert.equal(world.network.counters().drops["udp-blocked"], 2);
    world.network.setUdp(1, "pass");
    world.send("a", { destination: world.address("server") });
    assert.equal(world.take()!.to, "server");
  });

  test("a cut site is cut off, its LAN is not, and it comes back", () => {
    const world = new World();
    world.network.cutSite(1, true);
    world.send("a", { destination: world.address("server") });
    assert.equal(world.take(), undefined);
    world.send("a", { destination: world.address("a2") });
    assert.equal(world.take()!.to, "a2");
    world.network.cutSite(1, false);
    world.send("a", { destination: world.address("server") });
    assert.equal(world.take()!.to, "server");
  });

  test("an unknown public address is answered with an ICMP error, a private one with silence", () => {
    const world = new World();
    world.send("a", { destination: "9.9.9.9", sourcePort: 5000 });
    const answer = world.take()!;
    assert.equal(answer.to, "a");
    assert.deepEqual([...answer.packet.subarray(20, 22)], [3, 0]);
    assert.equal(
      ipv4ToText(ipv4.source(answer.packet.subarray(28))),
      world.address("a"),
      "the quote is translated back",
    );
    world.send("a", { destination: "192.168.77.1" });
    assert.equal(world.take(), undefined);
  });

  test("hops run out with an answer", () => {
    const world = new World();
    world.send("a", { destination: world.address("server"), ttl: 1 });
    assert.deepEqual([...world.take()!.packet.subarray(20, 22)], [11, 0]);
    world.send("a", { destination: world.address("server"), ttl: 2 });
    assert.equal(world.take(), undefined, "the far edge does not tell");
  });

  test("a narrow link tells the size it takes when the packet must not be cut", () => {
    const world = new World();
    const payload = new Uint8Array(1400);
    world.send("b", { destination: world.address("server"), payload, dontFragment: true });
    const near = world.take()!;
    assert.deepEqual(
      [near.to, ...near.packet.subarray(20, 22), (near.packet[26]! << 8) | near.packet[27]!],
      ["b", 3, 4, 1300],
    );
    world.send("b", { destination: world.address("server"), sourcePort: 1, destinationPort: 2, payload });
    assert.equal(world.take(), undefined, "one that may be cut is lost");
    world.send("server", { destination: "198.19.3.1", payload, dontFragment: true });
    assert.equal(world.take()!.to, "server", "the far side's narrow link is told from the core");
  });

  test("broadcast and multicast stay in the LAN", () => {
    const world = new World();
    for (const destination of ["192.168.2.255", "255.255.255.255", "224.0.0.251"]) world.send("a", { destination });
    assert.deepEqual(
      world.delivered.map((delivered) => delivered.to),
      ["a2", "a2", "a2"],
    );
  });

  test("a packet with a foreign source goes nowhere", () => {
    const world = new World();
    world.send("a", { source: "1.2.3.4", destination: world.address("server") });
    assert.equal(world.take(), undefined);
    assert.equal(world.network.counters().drops["foreign-source"], 1);
  });

  test("a host that is carried to another site is found there and no longer at the old one", () => {
    const world = new World();
    world.network.placeHost(1, { name: "a", site: "dc", address: parseIp("198.18.1.9"), address6: undefined });
    world.send("a", { source: "198.18.1.9", destination: world.address("server") });
    assert.equal(world.take()!.to, "server");
    world.send("b", { destination: "198.18.1.9" });
    assert.equal(world.take()!.to, "a");
    world.send("a2", { destination: "192.168.2.2" });
    assert.equal(world.take(), undefined);
  });

  test("a rule loses as many matching packets as it says", () => {
    const world = new World();
    world.network.addRule({ from: "a", to: "server", protocol: "udp", payloadStart: [1, 0], count: 2 });
    const destination = world.address("server");
    const initiation = Uint8Array.of(1, 0, 0, 0);
    world.send("a", { destination, payload: Uint8Array.of(4, 0, 0, 0) });
    assert.equal(world.delivered.length, 1);
    for (let i = 0; i < 3; i++) world.send("a", { destination, payload: initiation });
    assert.equal(world.delivered.length, 2);
    assert.equal(world.network.counters().drops.rule, 2);
  });

  test("counters tell who talked to whom", () => {
    const world = new World();
    world.send("a", { destination: world.address("server"), payload: new Uint8Array(72) });
    world.send("a", { protocol: "tcp", destination: world.address("server") });
    assert.deepEqual(world.network.counters().pairs, { a: { server: { packets: 2, bytes: 140, udpPackets: 1 } } });
  });

  test("whatever a host sends, nothing throws and every buffer comes back", () => {
    const header = fc.record({
      version: fc.constantFrom(4, 6),
      headerWords: fc.integer({ min: 4, max: 15 }),
      protocol: fc.constantFrom(0, 1, 6, 17, 44, 58),
      fragment: fc.constantFrom(0, 0x2000, 0x0001, 0x4000),
      destination: fc.constantFrom("198.18.1.2", "198.19.2.1", "198.19.3.1", "9.9.9.9", "192.168.2.3", "192.168.2.255"),
      rest: fc.uint8Array({ minLength: 40, maxLength: 120 }),
    });
    const world = new World();
    world.network.changeLink(1, "both", { duplicate: 0.3, reorder: 0.3, loss: 0.1 });
    fc.assert(
      fc.property(header, ({ version, headerWords, protocol, fragment, destination, rest }) => {
        const bytes = rest.slice();
        bytes[0] = version === 4 ? 0x40 | headerWords : 0x60;
        bytes.set(version === 4 ? [0, bytes.length] : [0, bytes.length - 40], version === 4 ? 2 : 4);
        if (version === 4) {
          bytes.set([fragment >> 8, fragment & 0xff, 64, protocol], 6);
          bytes.set(world.address("a").split(".").map(Number), 12);
          bytes.set(destination.split(".").map(Number), 16);
        }
        world.raw("a", bytes);
        assert.equal(world.network.nextDue(), undefined);
      }),
      { numRuns: 2000 },
    );
    assert.ok(world.delivered.length > 100);
    const buffers = Array.from({ length: FLIGHT_MAX_PACKETS }, () => world.network.take());
    assert.ok(
      buffers.every((buffer) => buffer !== undefined),
      "none was lost",
    );
    assert.equal(new Set(buffers).size, FLIGHT_MAX_PACKETS, "none was given back twice");
  });

  test("garbage is counted and dropped", () => {
    const world = new World();
    for (const bytes of [
      new Uint8Array(3),
      new Uint8Array(40),
      Uint8Array.of(0x4f, 0, 0xff, 0xff, ...Array(30).fill(1)),
    ])
      world.raw("a", bytes);
    assert.equal(world.network.counters().drops.malformed, 3);
  });
});

describe("topology", () => {
  const site = (name: string): LabTopology["sites"][number] => ({ name });
  const refused: readonly [string, LabTopology, RegExp][] = [
    ["a host in no site", { sites: [], hosts: [{ name: "a", site: "x" }] }, /host a is in site "x"/],
    [
      "two hosts of one name",
      {
        sites: [site("x")],
        hosts: [
          { name: "a", site: "x" },
          { name: "a", site: "x" },
        ],
      },
      /host a is there twice/,
    ],
    ["a name that a shell would read", { sites: [site("x;y")], hosts: [] }, /site name "x;y"/],
    [
      "an address outside the LAN",
      { sites: [site("x")], hosts: [{ name: "a", site: "x", address: "10.0.0.1" }] },
      /10\.0\.0\.1 of host a is not in 198\.18\.1\.0\/24/,
    ],
    [
      "an address twice",
      {
        sites: [site("x")],
        hosts: [
          { name: "a", site: "x", address: "198.18.1.9" },
          { name: "b", site: "x", address: "198.18.1.9" },
        ],
      },
      /198\.18\.1\.9 of host b is taken/,
    ],
    [
      "IPv6 where there is none",
      { sites: [site("x")], hosts: [{ name: "a", site: "x", address6: "2001:db8::1" }] },
      /site x has no IPv6/,
    ],
    ["a loss above one", { sites: [{ name: "x", loss: 2 }], hosts: [] }, /loss 2 of site x/],
    [
      "an outer address without NAT",
      { sites: [{ name: "x", publicAddress: "9.0.0.1" }], hosts: [] },
      /publicAddress but no nat/,
    ],
    [
      "an MTU below IPv6's least",
      { sites: [{ name: "x", mtu: 576 }], hosts: [] },
      /MTU 576 of site x must be 1280 to 9000/,
    ],
  ];
  for (const [what, topology, message] of refused) {
    test(`${what} is refused with a message that names it`, () => {
      assert.throws(() => resolveTopology(topology), { code: "topology-invalid", message });
    });
  }

  test("two sites may use the same private range, and free addresses go round the given ones", () => {
    const { hosts } = resolveTopology({
      sites: [
        { name: "x", nat: NAT.symmetric, lan: "10.0.0.0/8" },
        { name: "y", nat: NAT.symmetric, lan: "10.0.0.0/8", ipv6: true },
      ],
      hosts: [
        { name: "a", site: "x", address: "10.0.0.2" },
        { name: "b", site: "x" },
        { name: "c", site: "y" },
      ],
    });
    assert.deepEqual(
      hosts.map((host) => host.address),
      ["10.0.0.2", "10.0.0.3", "10.0.0.2"],
    );
    assert.equal(hosts[2]!.address6, "2001:db8:2::2");
  });
});

describe("pcap", () => {
  test("the file has the classic header and one record a packet", () => {
    const path = join(tmpdir(), `perch-pcap-${process.pid}.pcap`);
    const writer = new PcapWriter(path);
    writer.write(Uint8Array.of(1, 2, 3, 99), 3, 1_700_000_000_123.456);
    writer.close();
    const file = readFileSync(path);
    rmSync(path);
    assert.equal(file.readUInt32LE(0), 0xa1b2c3d4);
    assert.equal(file.readUInt32LE(20), 101);
    assert.deepEqual(
      [24, 28, 32, 36].map((at) => file.readUInt32LE(at)),
      [1_700_000_000, 123_456, 3, 3],
    );
    assert.deepEqual([...file.subarray(40)], [1, 2, 3]);
  });
});
