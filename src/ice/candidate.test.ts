import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { parseIp } from "#base/ip.ts";
import vectors from "../../test/vectors/candidate.json" with { type: "json" };
import {
  CANDIDATE_TYPES,
  candidateFoundation,
  candidatePriority,
  createCandidateId,
  formatCandidate,
  parseCandidate,
} from "./candidate.ts";

test("foundations are the CRC-32 stock agents compute", () => {
  for (const { type, address, foundation } of vectors.foundations) {
    const kind = CANDIDATE_TYPES.find((name) => name === type);
    assert.ok(kind);
    assert.equal(candidateFoundation(kind, parseIp(address)), foundation);
  }
});

test("priorities are those of stock agents", () => {
  for (const type of CANDIDATE_TYPES) assert.equal(candidatePriority(type), vectors.priorities[type]);
});

test("a candidate of a stock agent is read and written back byte for byte", () => {
  for (const line of vectors.lines) {
    const candidate = parseCandidate(line);
    assert.ok(candidate, line);
    assert.equal(formatCandidate(candidate), line);
  }
  const relay = parseCandidate(vectors.lines[2]!);
  assert.deepEqual(relay?.related, { address: "0.0.0.0", port: 51999 });
  assert.equal(relay?.cid, "candidate:Vd3abcdefghijklmnopqrstuvwx");
});

test("prefixes, an empty foundation, a zone, capitals and unknown extensions are tolerated", () => {
  const plain = parseCandidate("7 1 udp 99 fe80::1 5 typ host");
  assert.ok(plain);
  assert.deepEqual(parseCandidate("candidate:7 1 udp 99 fe80::1 5 typ host"), plain);
  assert.deepEqual(parseCandidate("a=candidate:7 1 UDP 99 fe80::1%eth0 5 TYP Host"), plain);
  assert.deepEqual(parseCandidate("7 1 udp 99 fe80::1 5 typ host generation 0 network-cost 10 last"), plain);
  assert.equal(parseCandidate(" 1 udp 99 fe80::1 5 typ host")?.foundation, "");
  assert.equal(parseCandidate("candidate: 1 udp 99 fe80::1 5 typ host")?.foundation, "");
  assert.equal(parseCandidate("7 1 udp 99 1.2.3.4 5 typ srflx raddr 1.1.1.1 rport 0")?.related, undefined);
  assert.equal(parseCandidate("7 1 udp 99 1.2.3.4 5 typ srflx raddr x.local rport 9")?.related, undefined);
});

test("what cannot be used is refused without an exception", () => {
  for (const line of [
    "",
    "candidate:",
    "7 1 tcp 99 1.2.3.4 5 typ host tcptype passive",
    "7 1 udp 99 host.local 5 typ host",
    "7 1 udp 99 1.2.3.4 0 typ host",
    "7 1 udp 99 1.2.3.4 65536 typ host",
    "7 1 udp 4294967296 1.2.3.4 5 typ host",
    "7 99999 udp 99 1.2.3.4 5 typ host",
    "7 1 udp 99 1.2.3.4 5 typ other",
    "7 1 udp 99 1.2.3.4 5 type host",
    "7 1 udp -1 1.2.3.4 5 typ host",
    "f_7 1 udp 99 1.2.3.4 5 typ host",
    `${"7".repeat(33)} 1 udp 99 1.2.3.4 5 typ host`,
    `7 1 udp 99 1.2.3.4 5 typ host ${"x ".repeat(600)}`,
  ])
    assert.equal(parseCandidate(line), undefined, line);
});

test("every candidate survives a round trip", () => {
  const endpoint = fc
    .tuple(fc.oneof(fc.ipV4(), fc.ipV6()), fc.integer({ min: 1, max: 65535 }))
    .map(([address, port]) => ({ address: parseIp(address), port }));
  const word = fc.stringMatching(/^[A-Za-z0-9+/]{1,32}$/);
  const candidate = fc.record(
    {
      foundation: word,
      component: fc.constant(1),
      transport: fc.constant("udp" as const),
      priority: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
      endpoint,
      type: fc.constantFrom(...CANDIDATE_TYPES),
      related: endpoint,
      ufrag: word,
      cid: word,
    },
    { requiredKeys: ["foundation", "component", "transport", "priority", "endpoint", "type"], noNullPrototype: true },
  );
  fc.assert(fc.property(candidate, (value) => assert.deepEqual(parseCandidate(formatCandidate(value)), value)));
});

test("ids are 32 characters of the ICE alphabet and differ", () => {
  const ids = new Set(Array.from({ length: 100 }, createCandidateId));
  assert.equal(ids.size, 100);
  for (const id of ids) assert.match(id, /^[A-Za-z0-9+/]{32}$/);
});

test("random text never throws", () => {
  const token = fc.oneof(
    fc.string(),
    fc.constantFrom("udp", "typ", "host", "1", "raddr", "rport", "1.2.3.4", "candidate:", "cid", "ufrag"),
  );
  const line = fc.array(token, { maxLength: 20 }).map((tokens) => tokens.join(" "));
  fc.assert(
    fc.property(line, (text) => void parseCandidate(text)),
    { interruptAfterTimeLimit: 2000, numRuns: 20_000 },
  );
});
