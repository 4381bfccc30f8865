import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { ipToBytes, isV6, type Prefix, parsePrefix } from "#base/ip.ts";
import { type FilterRule, type FilterRules, groupBySource, type SourceRule } from "../filter.ts";
import {
  LOCAL,
  LOCAL6,
  OTHER,
  REMOTE,
  REMOTE6,
  sampleErrors,
  sampleOthers,
  samplePackets,
  samplePort,
  sampleRules,
} from "../testing/filter-samples.ts";
import { FilterMode, PacketFilter } from "./filter.ts";
import { describeRules, encodePacket, FilterModel, ipPacket, type Packet } from "./filter-model.ts";
import { encodeRules } from "./filter-table.ts";

const MEMORY = new DataView(new ArrayBuffer(4096));
const AT = 64;

/** A filter that is spoken to as the command ring does. */
class Harness {
  readonly filter: PacketFilter;
  #seconds = 1000;

  constructor(rules: FilterRules, limit?: number) {
    this.filter = new PacketFilter(MEMORY, limit);
    this.filter.now = this.#seconds * 1000;
    this.set(rules);
  }

  set({ inbound, otherwise }: FilterRules): void {
    this.filter.begin(otherwise === "accept" ? FilterMode.acceptOtherwise : FilterMode.dropOtherwise);
    for (const { source, rules } of groupBySource(inbound).values()) this.setSource(source, rules);
    this.filter.commit();
  }

  setSource(source: Prefix, rules: readonly SourceRule[]): void {
    const address = new DataView(new ArrayBuffer(16));
    new Uint8Array(address.buffer).set(ipToBytes(source.address));
    this.filter.setSource(isV6(source.address), address, 0, source.bits, encodeRules(rules));
  }

  pass(seconds: number): void {
    this.#seconds += seconds;
    this.filter.now = this.#seconds * 1000;
  }

  /** Whether the packet passes. */
  take(packet: Packet): boolean {
    return this.takeBytes(encodePacket(packet), packet.direction);
  }

  takeBytes(bytes: Uint8Array, direction: "in" | "out" = "in"): boolean {
    new Uint8Array(MEMORY.buffer).fill(0xee);
    new Uint8Array(MEMORY.buffer).set(bytes, AT);
    if (direction === "in") return this.filter.accepts(AT, bytes.length);
    this.filter.outbound(AT, bytes.length);
    return true;
  }
}

function rule(text: string, more: Partial<FilterRule> = {}): FilterRule {
  const [verdict, protocol, source, ports] = text.split(" ") as [
    FilterRule["verdict"],
    FilterRule["protocol"],
    string,
    string?,
  ];
  const [first, last = first] = (ports ?? "").split("-").map(Number);
  return {
    verdict,
    protocol,
    source: parsePrefix(source),
    ...(ports === undefined ? {} : { ports: { first: first!, last: last! } }),
    ...more,
  };
}

const only = (...texts: string[]): FilterRules => ({ inbound: texts.map((text) => rule(text)), otherwise: "drop" });

const tcp = (direction: "in" | "out", localPort: number, remotePort: number, flags = "S", remote = REMOTE): Packet => ({
  direction,
  local: LOCAL,
  remote,
  body: { kind: "tcp", localPort, remotePort, flags },
});
const udp = (direction: "in" | "out", localPort: number, remotePort: number, remote = REMOTE): Packet => ({
  direction,
  local: LOCAL,
  remote,
  body: { kind: "udp", localPort, remotePort },
});

test("only what a rule accepts gets in, and its flow goes on", () => {
  const harness = new Harness(only(`accept tcp ${REMOTE}/32 22`));
  assert.equal(harness.take(tcp("in", 22, 4000)), true);
  assert.equal(harness.take(tcp("out", 22, 4000, "SA")), true);
  assert.equal(harness.take(tcp("in", 22, 4000, "A")), true);
  assert.equal(harness.take(tcp("in", 23, 4000)), false);
  assert.equal(harness.take(udp("in", 22, 4000)), false);
  assert.equal(harness.take(tcp("in", 22, 4000, "S", OTHER)), false);
  assert.equal(harness.filter.connections, 1);
});

test("a drop rule wins over every accept rule, whatever the prefixes", () => {
  const harness = new Harness(only(`accept all ${REMOTE}/32`, "drop tcp 100.64.0.0/24 25"));
  assert.equal(harness.take(tcp("in", 25, 4000)), false);
  assert.equal(harness.take(tcp("in", 26, 4000)), true);
});

test("a destination narrows a rule", () => {
  const destination = parsePrefix(`${LOCAL}/32`);
  const harness = new Harness({ inbound: [rule("accept all 0.0.0.0/0", { destination })], otherwise: "drop" });
  assert.equal(harness.take(udp("in", 53, 4000)), true);
  assert.equal(harness.take({ ...udp("in", 53, 4000), local: "192.168.1.1" }), false);
});

test("replies to what this machine asks pass, other packets of the same peer do not", () => {
  const harness = new Harness(only());
  harness.take(udp("out", 40000, 53));
  assert.equal(harness.take(udp("in", 40000, 53)), true);
  assert.equal(harness.take(udp("in", 40000, 54)), false);
  assert.equal(harness.take(udp("in", 40000, 53, OTHER)), false);
  harness.take(tcp("out", 40000, 443));
  assert.equal(harness.take(tcp("in", 40000, 443, "SA")), true);
  const ping = (direction: "in" | "out", kind: "question" | "answer", id: number): Packet => ({
    direction,
    local: LOCAL,
    remote: REMOTE,
    body: { kind, id },
  });
  harness.take(ping("out", "question", 0));
  assert.equal(harness.take(ping("in", "answer", 0)), true);
  assert.equal(harness.take(ping("in", "question", 0)), false, "our own ping opens no door for theirs");
  assert.equal(harness.take(ping("in", "answer", 1)), false);
});

test("an answered outgoing connection does not let the other end connect back", () => {
  const harness = new Harness(only());
  harness.take(tcp("out", 40000, 443));
  assert.equal(harness.take(tcp("in", 40000, 443, "SA")), true);
  harness.take(tcp("out", 40000, 443, "A"));
  assert.equal(harness.take(tcp("in", 40000, 443, "S")), false);
  assert.equal(harness.take(tcp("in", 40000, 443, "PA")), true, "the connection itself goes on");
});

test("both ends may open the same connection at once", () => {
  const harness = new Harness(only());
  harness.take(tcp("out", 40000, 443));
  assert.equal(harness.take(tcp("in", 40000, 443, "S")), true);
});

test("flows end with their idle times", () => {
  const harness = new Harness(only(`accept tcp ${REMOTE}/32 22`));
  harness.take(udp("out", 40000, 53));
  harness.pass(59);
  assert.equal(harness.take(udp("in", 40000, 53)), true);
  harness.pass(179);
  assert.equal(harness.take(udp("in", 40000, 53)), true);
  harness.pass(180);
  assert.equal(harness.take(udp("in", 40000, 53)), false);
  harness.take(tcp("out", 40000, 443));
  harness.pass(30);
  assert.equal(harness.take(tcp("in", 40000, 443, "SA")), false, "half open for 30 s");
  harness.take(tcp("out", 40000, 443));
  harness.take(tcp("in", 40000, 443, "SA"));
  harness.take(tcp("out", 40000, 443, "A"));
  harness.pass(2 * 3600 + 60);
  assert.equal(harness.take(tcp("in", 40000, 443, "A")), true, "a keepalive after two hours is answered");
  harness.take(tcp("out", 40000, 443, "R"));
  harness.pass(30);
  assert.equal(harness.take(tcp("in", 40000, 443, "A")), false, "closed for 30 s");
});

test("an incoming connection whose rule goes ends with its next packet, and comes back with the rule", () => {
  const harness = new Harness(only(`accept tcp ${REMOTE}/32 22`, `accept tcp ${REMOTE}/32 80`));
  for (const port of [22, 80]) {
    harness.take(tcp("in", port, 4000));
    harness.take(tcp("out", port, 4000, "SA"));
    harness.take(tcp("in", port, 4000, "A"));
  }
  harness.take(tcp("out", 40000, 443));
  harness.take(tcp("in", 40000, 443, "SA"));
  harness.setSource(parsePrefix(`${REMOTE}/32`), [rule(`accept tcp ${REMOTE}/32 80`)]);
  assert.equal(harness.take(tcp("in", 22, 4000, "PA")), false);
  assert.equal(harness.take(tcp("in", 80, 4000, "PA")), true);
  assert.equal(harness.take(tcp("in", 40000, 443, "PA")), true, "what began here is not asked about");
  harness.take(tcp("out", 22, 4000, "PA"));
  assert.equal(harness.take(tcp("in", 22, 4000, "A")), false, "what the service still sends does not open it again");
  harness.set(only(`accept tcp ${REMOTE}/32`));
  assert.equal(harness.take(tcp("in", 22, 4000, "PA")), true);
});

test("connections older than the table go on when they look like ours, not when they look like a service's", () => {
  const harness = new Harness(only());
  harness.take(tcp("out", 40000, 443, "PA"));
  harness.pass(3600);
  assert.equal(harness.take(tcp("in", 40000, 443, "A")), true);
  harness.take(tcp("out", 22, 4000, "PA"));
  assert.equal(harness.take(tcp("in", 22, 4000, "A")), false);
  harness.take(tcp("out", 40001, 4000, "SA"));
  assert.equal(harness.take(tcp("in", 40001, 4000, "A")), false, "an answer to a connection that was not let in");
});

test("an ICMP error passes when it is about a known flow and comes to its owner", () => {
  const harness = new Harness(only());
  const error = (about: Packet, local = LOCAL): Packet => ({
    direction: "in",
    local,
    remote: OTHER,
    body: { kind: "error", about },
  });
  harness.take(udp("out", 40000, 53));
  assert.equal(harness.take(error(udp("out", 40000, 53))), true, "from any router on the way");
  assert.equal(harness.take(error(udp("out", 40000, 54))), false);
  assert.equal(harness.take(error(udp("in", 40000, 53))), false, "about a packet that we did not send");
  assert.equal(harness.take(error(udp("out", 40000, 53), "100.64.0.77")), false);
  assert.equal(
    harness.take({ direction: "in", local: LOCAL, remote: REMOTE, body: { kind: "redirect" } }),
    false,
    "a redirect is no error",
  );
});

test("later IPv4 fragments pass only after their first one, for 30 seconds", () => {
  const harness = new Harness(only(`accept udp ${REMOTE}/32 53`));
  const first = (port: number, id: number): Uint8Array =>
    ipPacket(REMOTE, LOCAL, 17, Uint8Array.of(0, 99, port >> 8, port & 255, 0, 16, 0, 0), { fragment: 0x2000, id });
  const later = (id: number, protocol = 17): Uint8Array =>
    ipPacket(REMOTE, LOCAL, protocol, new Uint8Array(8), { fragment: 1, id });
  assert.equal(harness.takeBytes(later(7)), false);
  assert.equal(harness.takeBytes(first(54, 7)), false);
  assert.equal(harness.takeBytes(later(7)), false);
  assert.equal(harness.takeBytes(first(53, 7)), true);
  assert.equal(harness.takeBytes(later(7)), true);
  assert.equal(harness.takeBytes(later(8)), false);
  assert.equal(harness.takeBytes(later(7, 1)), false);
  harness.pass(30);
  assert.equal(harness.takeBytes(later(7)), false);
});

test("a fragment that would replace the TCP flags is dropped, as is a first one without them", () => {
  const harness = new Harness(only("accept all 0.0.0.0/0"));
  assert.equal(harness.takeBytes(ipPacket(REMOTE, LOCAL, 6, new Uint8Array(24), { fragment: 0x2000, id: 1 })), true);
  assert.equal(harness.takeBytes(ipPacket(REMOTE, LOCAL, 6, new Uint8Array(8), { fragment: 3, id: 1 })), true);
  assert.equal(harness.takeBytes(ipPacket(REMOTE, LOCAL, 6, new Uint8Array(8), { fragment: 1, id: 1 })), false);
  assert.equal(harness.takeBytes(ipPacket(REMOTE, LOCAL, 6, new Uint8Array(8), { fragment: 0x2000, id: 2 })), false);
});

test("the table of fragmented packets is bounded and keeps the young ones", () => {
  const harness = new Harness(only("accept all 0.0.0.0/0"));
  const first = (id: number): Uint8Array => ipPacket(REMOTE, LOCAL, 17, new Uint8Array(8), { fragment: 0x2000, id });
  for (let id = 0; id < 10_000; id++) assert.equal(harness.takeBytes(first(id)), true);
  let kept = 0;
  for (let id = 0; id < 10_000; id++)
    if (harness.takeBytes(ipPacket(REMOTE, LOCAL, 17, new Uint8Array(8), { fragment: 5, id }))) kept++;
  assert.ok(kept <= 1024 && kept > 500, `${kept} kept`);
  assert.equal(harness.takeBytes(ipPacket(REMOTE, LOCAL, 17, new Uint8Array(8), { fragment: 5, id: 9_999 })), true);
});

test("IPv6 extension headers are walked, fragments among them", () => {
  const harness = new Harness({ inbound: [rule(`accept udp ${REMOTE6}/128 53`)], otherwise: "drop" });
  const datagram = (port: number): Uint8Array => Uint8Array.of(0, 99, port >> 8, port & 255, 0, 8, 0, 0);
  const options = (next: number): number[] => [next, 0, 1, 4, 0, 0, 0, 0];
  const packet = (first: number, extension: number[], payload = datagram(53)): Uint8Array =>
    ipPacket(REMOTE6, LOCAL6, first, payload, { extension: Uint8Array.from(extension) });
  const fragment = (next: number, offset: number, more: boolean, id: number): number[] => [
    next,
    0,
    offset >> 5,
    ((offset & 31) << 3) | Number(more),
    0,
    0,
    0,
    id,
  ];
  assert.equal(harness.takeBytes(packet(17, [])), true);
  assert.equal(harness.takeBytes(packet(0, [...options(60), ...options(17)])), true);
  assert.equal(harness.takeBytes(packet(0, [...options(60), ...options(17)], datagram(54))), false);
  assert.equal(harness.takeBytes(packet(44, fragment(17, 0, false, 1))), true, "a whole packet as a fragment");
  assert.equal(harness.takeBytes(packet(44, fragment(17, 3, false, 2))), false);
  assert.equal(harness.takeBytes(packet(44, fragment(17, 0, true, 2))), true);
  assert.equal(harness.takeBytes(packet(44, fragment(17, 3, false, 2))), true);
  assert.equal(harness.takeBytes(packet(0, [17, 9, 0, 0, 0, 0, 0, 0])), false, "longer than the packet");
});

test("a packet whose headers do not end is what no narrow rule accepts and every drop rule refuses", () => {
  const options = [60, 0, 1, 4, 0, 0, 0, 0];
  const deep = ipPacket(REMOTE6, LOCAL6, 60, new Uint8Array(20), {
    extension: Uint8Array.from([...Array(8).fill(options).flat(), 6, 0, 1, 4, 0, 0, 0, 0]),
  });
  assert.equal(new Harness(only("accept tcp ::/0")).takeBytes(deep), false);
  assert.equal(new Harness(only("accept all ::/0")).takeBytes(deep), true);
  assert.equal(new Harness(only("accept all ::/0", "drop tcp ::/0 22")).takeBytes(deep), false);
});

test("a full table lets accepted packets pass untracked, and what this machine begins takes the oldest place", () => {
  const harness = new Harness(only("accept udp 0.0.0.0/0 53"), 64);
  harness.take(tcp("out", 50000, 443));
  harness.take(tcp("in", 50000, 443, "SA"));
  harness.take(tcp("out", 50000, 443, "A"));
  for (let port = 1; port <= 63; port++) harness.take(udp("in", 53, port));
  assert.equal(harness.filter.connections, 64);
  harness.pass(1);
  assert.equal(harness.take(udp("in", 53, 1000)), true);
  assert.equal(harness.take(udp("in", 54, 1000)), false);
  assert.equal(harness.filter.connections, 64);
  harness.take(udp("out", 40000, 123));
  assert.equal(harness.filter.connections, 64);
  assert.equal(harness.take(udp("in", 40000, 123)), true);
  assert.equal(harness.take(tcp("in", 50000, 443, "A")), true, "the established connection was not the one to go");
  harness.pass(60);
  harness.take(udp("in", 53, 2000));
  assert.ok(harness.filter.connections < 64, "expired flows make room");
});

test("10,000 flows in a table of 4,096 never lose one of this machine's latest", () => {
  const harness = new Harness(only(), 4096);
  for (let i = 0; i < 10_000; i++) {
    harness.take(udp("out", 1024 + (i % 50_000), 53, `100.64.${i >> 8}.${i & 255}`));
    assert.equal(harness.take(udp("in", 1024 + (i % 50_000), 53, `100.64.${i >> 8}.${i & 255}`)), true);
  }
  assert.equal(harness.filter.connections, 4096);
});

test("without a filter nothing is kept", () => {
  const harness = new Harness(only("accept all 0.0.0.0/0"));
  harness.take(udp("out", 1, 2));
  harness.filter.begin(FilterMode.off);
  harness.filter.commit();
  assert.equal(harness.filter.isOn, false);
  assert.equal(harness.filter.connections, 0);
});

test("it decides as the slow model does, over packets, changing rules and time", () => {
  const tcpBody = fc.record({
    kind: fc.constant("tcp" as const),
    localPort: samplePort,
    remotePort: samplePort,
    flags: fc.constantFrom("S", "SA", "A", "PA", "FA", "R", "A"),
  });
  const plain = fc.oneof(samplePackets(tcpBody), sampleOthers);
  const packet = fc.oneof({ weight: 8, arbitrary: plain }, { weight: 1, arbitrary: sampleErrors(plain) });
  const step = fc.oneof(
    { weight: 20, arbitrary: packet.map((value) => ({ kind: "packet" as const, value })) },
    { weight: 1, arbitrary: sampleRules.map((value) => ({ kind: "rules" as const, value })) },
    { weight: 2, arbitrary: fc.constantFrom(1, 29, 31, 100, 8000).map((value) => ({ kind: "wait" as const, value })) },
  );
  fc.assert(
    fc.property(sampleRules, fc.array(step, { minLength: 1, maxLength: 80 }), (rules, steps) => {
      const harness = new Harness(rules);
      const model = new FilterModel(rules);
      let inForce = rules;
      for (const [index, one] of steps.entries()) {
        if (one.kind === "packet") {
          const expected = model.take(one.value);
          const passed = harness.take(one.value);
          assert.equal(passed, expected, `step ${index}, ${JSON.stringify(one.value)}, ${describeRules(inForce)}`);
        } else if (one.kind === "rules") {
          inForce = one.value;
          harness.set(inForce);
          model.rules = inForce;
        } else {
          harness.pass(one.value);
          model.now += one.value;
        }
      }
    }),
    { numRuns: 2000 },
  );
});

test("no bytes make it throw, and garbage does not pass without a rule", () => {
  const harness = new Harness(only());
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 40, maxLength: 200 }), fc.boolean(), (bytes, v6) => {
      bytes[0] = v6 ? 0x60 : 0x40 | (5 + (bytes[0]! % 6));
      assert.equal(harness.takeBytes(bytes), false);
    }),
    { numRuns: 5000 },
  );
});
