import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { NAT, Nat, type NatDependence, type NatOptions } from "./nat.ts";
import { encodeIcmpError, foldChecksum, ipv4, ipv4ToNumber, ipv4ToText, onesSum, read16 } from "./packet.ts";
import { createRandom } from "./random.ts";
import { encodeSamplePacket, type SamplePacket, transportChecksum } from "./sample-packet.ts";

const OUTER = "198.19.1.1";
const INNER = "192.168.1.2";
const DEPENDENCES: readonly NatDependence[] = [
  "endpoint-independent",
  "address-dependent",
  "address-and-port-dependent",
];

function makeNat(options: NatOptions): Nat {
  return new Nat(options, ipv4ToNumber(OUTER), createRandom(7));
}

/** Sends a packet of the inner host through the NAT and gives what comes out. */
function sendOut(nat: Nat, sample: Partial<SamplePacket>, now = 0): { verdict: string; packet: Uint8Array } {
  const packet = encodeSamplePacket({ protocol: "udp", source: INNER, destination: "9.0.0.1", ...sample });
  return { verdict: nat.outbound(packet, packet.length, now), packet };
}

function sendIn(nat: Nat, sample: Partial<SamplePacket>, now = 0): { verdict: string; packet: Uint8Array } {
  const packet = encodeSamplePacket({ protocol: "udp", source: "9.0.0.1", destination: OUTER, ...sample });
  return { verdict: nat.inbound(packet, packet.length, now), packet };
}

const sourcePort = (packet: Uint8Array): number => read16(packet, 20);
const destinationPort = (packet: Uint8Array): number => read16(packet, 22);

function assertChecksums(packet: Uint8Array): void {
  assert.equal(foldChecksum(onesSum(packet, 0, 20)), 0, "IPv4 header checksum");
  const at = { 17: 26, 6: 36, 1: 22 }[packet[9]!]!;
  assert.equal(read16(packet, at), transportChecksum(packet), "transport checksum");
}

describe("nat", () => {
  test("a reply finds its way back and every checksum stays right", () => {
    const ports = fc.integer({ min: 1, max: 65_535 });
    fc.assert(
      fc.property(
        fc.constantFrom(...DEPENDENCES),
        fc.constantFrom(...DEPENDENCES),
        fc.constantFrom("udp" as const, "tcp" as const, "icmp" as const),
        ports,
        ports,
        fc.integer({ min: 0x01000000, max: 0xdfffffff }),
        fc.uint8Array({ maxLength: 64 }),
        (mapping, filtering, protocol, inner, remote, address, payload) => {
          fc.pre(ipv4ToText(address) !== OUTER);
          const nat = makeNat({ mapping, filtering });
          const out = sendOut(nat, {
            protocol,
            destination: ipv4ToText(address),
            sourcePort: inner,
            destinationPort: remote,
            payload,
          });
          assert.equal(out.verdict, "forward");
          assert.equal(ipv4ToText(ipv4.source(out.packet)), OUTER);
          assertChecksums(out.packet);
          const outerPort = protocol === "icmp" ? read16(out.packet, 24) : sourcePort(out.packet);
          const back = sendIn(nat, {
            protocol,
            source: ipv4ToText(address),
            sourcePort: protocol === "icmp" ? outerPort : remote,
            destinationPort: outerPort,
            payload,
            type: 0,
            flags: 0x12,
          });
          assert.equal(back.verdict, "forward");
          assert.equal(ipv4ToText(ipv4.destination(back.packet)), INNER);
          assert.equal(protocol === "icmp" ? read16(back.packet, 24) : destinationPort(back.packet), inner);
          assertChecksums(back.packet);
        },
      ),
    );
  });

  test("UDP mapping and filtering agree with a list of everything that was sent", () => {
    const small = fc.integer({ min: 1, max: 2 });
    const step = fc.record({
      direction: fc.constantFrom("out" as const, "in" as const),
      host: small,
      port: small,
      remote: small,
      remotePort: small,
      pick: fc.nat(),
      wait: fc.constantFrom(0, 40, 40, 101),
    });
    const timeout = 100;
    fc.assert(
      fc.property(
        fc.constantFrom(...DEPENDENCES),
        fc.constantFrom(...DEPENDENCES),
        fc.array(step, { maxLength: 60 }),
        (mapping, filtering, steps) => {
          const nat = makeNat({ mapping, filtering, mappingTimeoutMs: timeout, refreshInbound: false });
          const sent: { key: string; outer: number; remote: string; remotePort: number; at: number; host: number }[] =
            [];
          let now = 0;
          for (const { direction, host, port, remote, remotePort, pick, wait } of steps) {
            now += wait;
            const address = `9.0.0.${remote}`;
            const alive = sent.filter((entry) => now - entry.at < timeout);
            if (direction === "out") {
              const key = [host, port]
                .concat(mapping === "endpoint-independent" ? [] : [remote])
                .concat(mapping === "address-and-port-dependent" ? [remotePort] : [])
                .join();
              const { verdict, packet } = sendOut(
                nat,
                {
                  source: `192.168.1.${host}`,
                  destination: address,
                  sourcePort: 5000 + port,
                  destinationPort: remotePort,
                },
                now,
              );
              assert.equal(verdict, "forward");
              const outer = sourcePort(packet);
              const same = alive.find((entry) => entry.key === key);
              if (same) assert.equal(outer, same.outer, "a living mapping keeps its port");
              else
                assert.ok(
                  alive.every((entry) => entry.outer !== outer),
                  "two living mappings never share a port",
                );
              sent.push({ key, outer, remote: address, remotePort, at: now, host });
              continue;
            }
            const target = sent[pick % Math.max(1, sent.length)];
            if (!target) continue;
            const entries = alive.filter((entry) => entry.outer === target.outer);
            const admitted = entries.filter(
              (entry) =>
                filtering === "endpoint-independent" ||
                (entry.remote === address && (filtering === "address-dependent" || entry.remotePort === remotePort)),
            );
            const { verdict, packet } = sendIn(
              nat,
              {
                source: address,
                sourcePort: remotePort,
                destinationPort: target.outer,
              },
              now,
            );
            const expected = entries.length === 0 ? "no-mapping" : admitted.length === 0 ? "filtered" : "forward";
            assert.equal(verdict, expected);
            if (expected === "forward")
              assert.equal(ipv4ToText(ipv4.destination(packet)), `192.168.1.${entries[0]!.host}`);
          }
        },
      ),
      { numRuns: 300 },
    );
  });

  test("endpoint-independent mapping keeps the inner port, another host with the same port gets another", () => {
    const nat = makeNat(NAT.portRestricted);
    assert.equal(sourcePort(sendOut(nat, { sourcePort: 51_820 }).packet), 51_820);
    const other = sourcePort(sendOut(nat, { source: "192.168.1.3", sourcePort: 51_820 }).packet);
    assert.notEqual(other, 51_820);
    assert.ok(other >= 1024);
  });

  test("the packets of a symmetric NAT to two ports of one host come from two ports", () => {
    const nat = makeNat(NAT.symmetric);
    const first = sourcePort(sendOut(nat, { destinationPort: 1 }).packet);
    const second = sourcePort(sendOut(nat, { destinationPort: 2 }).packet);
    assert.notEqual(first, second);
    assert.equal(sendIn(nat, { sourcePort: 2, destinationPort: first }).verdict, "filtered");
    assert.equal(sendIn(nat, { sourcePort: 1, destinationPort: first }).verdict, "forward");
  });

  test("a silent UDP mapping is forgotten after its time, and packets from outside keep it alive only where they may", () => {
    for (const refreshInbound of [true, false]) {
      const nat = makeNat({ ...NAT.portRestricted, mappingTimeoutMs: 30_000, refreshInbound });
      sendOut(nat, { sourcePort: 5000 }, 0);
      assert.equal(sendIn(nat, { sourcePort: 2000, destinationPort: 5000 }, 29_000).verdict, "forward");
      const late = sendIn(nat, { sourcePort: 2000, destinationPort: 5000 }, 31_000).verdict;
      assert.equal(late, refreshInbound ? "forward" : "no-mapping");
    }
  });

  test("rebinding forgets the mappings and gives other ports", () => {
    const nat = makeNat(NAT.endpointIndependent);
    const before = sourcePort(sendOut(nat, { sourcePort: 5000 }).packet);
    nat.rebind();
    assert.equal(sendIn(nat, { sourcePort: 2000, destinationPort: before }).verdict, "no-mapping");
    assert.notEqual(sourcePort(sendOut(nat, { sourcePort: 5000 }).packet), before);
  });

  test("a new outer address is used at once and the old mappings are gone", () => {
    const nat = makeNat(NAT.endpointIndependent);
    sendOut(nat, { sourcePort: 5000 });
    nat.setOuter(ipv4ToNumber("198.19.1.77"));
    assert.equal(nat.size, 0);
    assert.equal(ipv4ToText(ipv4.source(sendOut(nat, { sourcePort: 5000 }).packet)), "198.19.1.77");
  });

  test("a hairpin turns packets back between two inner hosts, with the outer address as their source", () => {
    const nat = makeNat({ ...NAT.endpointIndependent, hairpin: true });
    sendOut(nat, { source: "192.168.1.3", sourcePort: 6000 });
    const { verdict, packet } = sendOut(nat, { destination: OUTER, sourcePort: 5000, destinationPort: 6000 });
    assert.equal(verdict, "hairpin");
    assert.equal(ipv4ToText(ipv4.source(packet)), OUTER);
    assert.equal(ipv4ToText(ipv4.destination(packet)), "192.168.1.3");
    assertChecksums(packet);
    assert.equal(sendOut(makeNat(NAT.endpointIndependent), { destination: OUTER }).verdict, "no-hairpin");
  });

  test("TCP comes in only where a connection went out, even through a full cone", () => {
    const nat = makeNat(NAT.endpointIndependent);
    sendOut(nat, { protocol: "tcp", sourcePort: 5000, destinationPort: 443 });
    assert.equal(sendIn(nat, { protocol: "tcp", sourcePort: 443, destinationPort: 5000 }).verdict, "forward");
    assert.equal(sendIn(nat, { protocol: "tcp", sourcePort: 444, destinationPort: 5000 }).verdict, "filtered");
  });

  test("a TCP mapping outlives hours of silence while open and seconds after both sides have closed", () => {
    const fin = 0x11;
    for (const isClosed of [false, true]) {
      const nat = makeNat(NAT.portRestricted);
      sendOut(nat, { protocol: "tcp", sourcePort: 5000, destinationPort: 443 }, 0);
      if (isClosed) {
        sendOut(nat, { protocol: "tcp", sourcePort: 5000, destinationPort: 443, flags: fin }, 1);
        sendIn(nat, { protocol: "tcp", sourcePort: 443, destinationPort: 5000, flags: fin }, 2);
      }
      const late = sendIn(nat, { protocol: "tcp", sourcePort: 443, destinationPort: 5000, flags: 0x10 }, 3_600_000);
      assert.equal(late.verdict, isClosed ? "no-mapping" : "forward");
    }
  });

  test("an ICMP error from outside is brought to the inner host with the packet it knows", () => {
    const nat = makeNat(NAT.symmetric);
    const { packet: sent } = sendOut(nat, { sourcePort: 5000, destinationPort: 7, payload: new Uint8Array(11) });
    const error = new Uint8Array(576);
    const router = Uint8Array.of(9, 9, 9, 9);
    const length = encodeIcmpError(error, sent, sent.length, 4, router, { kind: "unreachable" });
    assert.equal(nat.inbound(error, length, 0), "forward");
    assert.equal(ipv4ToText(ipv4.destination(error)), INNER);
    const quote = error.subarray(28, length);
    assert.equal(ipv4ToText(ipv4.source(quote)), INNER);
    assert.equal(sourcePort(quote), 5000);
    assert.equal(read16(quote, 26), transportChecksum(quote), "checksum of the quoted packet");
    assert.equal(foldChecksum(onesSum(error, 20, length)), 0, "ICMP checksum");
    assert.equal(foldChecksum(onesSum(error, 0, 20)), 0, "IPv4 checksum");
  });

  test("an ICMP error from inside leaves with the outer address and the packet that the remote side knows", () => {
    const nat = makeNat(NAT.portRestricted);
    sendOut(nat, { sourcePort: 5000, destinationPort: 7 });
    const { packet: received } = sendIn(nat, { sourcePort: 7, destinationPort: 5000 });
    const error = new Uint8Array(576);
    const inner = Uint8Array.from(INNER.split(".").map(Number));
    const length = encodeIcmpError(error, received, received.length, 4, inner, { kind: "unreachable" });
    assert.equal(nat.outbound(error, length, 0), "forward");
    assert.equal(ipv4ToText(ipv4.source(error)), OUTER);
    const quote = error.subarray(28, length);
    assert.equal(ipv4ToText(ipv4.destination(quote)), OUTER);
    assert.equal(read16(quote, 26), transportChecksum(quote));
    assert.equal(foldChecksum(onesSum(error, 20, length)), 0);
  });

  test("a later fragment follows its first one, and is dropped without it", () => {
    const nat = makeNat(NAT.portRestricted);
    const fragment = (offset: number, more: boolean, id: number): Uint8Array => {
      const packet = encodeSamplePacket({
        protocol: "udp",
        source: INNER,
        destination: "9.0.0.1",
        payload: new Uint8Array(64),
      });
      packet[4] = id;
      packet[6] = (more ? 0x20 : 0) | (offset >> 8);
      packet[7] = offset & 0xff;
      packet[10] = packet[11] = 0;
      const sum = foldChecksum(onesSum(packet, 0, 20));
      packet[10] = sum >> 8;
      packet[11] = sum & 0xff;
      return packet;
    };
    assert.equal(nat.outbound(fragment(0, true, 1), 92, 0), "forward");
    const later = fragment(9, false, 1);
    assert.equal(nat.outbound(later, 92, 0), "forward");
    assert.equal(ipv4ToText(ipv4.source(later)), OUTER);
    assert.equal(foldChecksum(onesSum(later, 0, 20)), 0);
    assert.equal(nat.outbound(fragment(9, false, 2), 92, 0), "orphan-fragment");
  });

  test("a UDP packet without checksum stays without", () => {
    const nat = makeNat(NAT.symmetric);
    const packet = encodeSamplePacket({ protocol: "udp", source: INNER, destination: "9.0.0.1" });
    packet[26] = packet[27] = 0;
    assert.equal(nat.outbound(packet, packet.length, 0), "forward");
    assert.equal(read16(packet, 26), 0);
  });

  test("when every port is taken the packet is refused, and an expired mapping makes room", () => {
    const nat = makeNat({ ...NAT.symmetric, mappingTimeoutMs: 1000 });
    for (let port = 1024; port < 65_536; port++) {
      const verdict = sendOut(nat, { destinationPort: port }, 0).verdict;
      assert.equal(verdict, "forward");
    }
    assert.equal(sendOut(nat, { destinationPort: 1 }, 999).verdict, "ports-exhausted");
    assert.equal(sendOut(nat, { destinationPort: 1 }, 1000).verdict, "forward");
  });

  test("random bytes neither throw nor hang", () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 20, maxLength: 120 }), fc.boolean(), (bytes, isOut) => {
        bytes[0] = 0x45;
        const nat = makeNat({ ...NAT.symmetric, hairpin: true });
        if (isOut) nat.outbound(bytes, bytes.length, 0);
        else nat.inbound(bytes, bytes.length, 0);
      }),
    );
  });
});
