import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { parseIp } from "#base/ip.ts";
import vectors from "../../test/vectors/stun.json" with { type: "json" };
import {
  encodeStun,
  isStun,
  parseStun,
  type StunFields,
  TransactionId,
  verifyStunFingerprint,
  verifyStunIntegrity,
} from "./stun-message.ts";

const tx = vectors.responder.transactionId as TransactionId;
const check = Buffer.from(vectors.check.hex, "hex");

test("the responder's request and answers are encoded byte for byte", () => {
  const request = encodeStun({ class: "request", transactionId: tx }, { fingerprint: false });
  assert.equal(Buffer.from(request).toString("hex"), vectors.responder.request);
  for (const { address, port, hex } of vectors.responder.answers) {
    const endpoint = { address: parseIp(address), port };
    const bytes = encodeStun({ class: "success", transactionId: tx, xorMappedAddress: endpoint });
    assert.equal(Buffer.from(bytes).toString("hex"), hex);
    const message = parseStun(bytes);
    assert.ok(message);
    assert.deepEqual(message.xorMappedAddress, endpoint);
    assert.ok(verifyStunFingerprint(message));
  }
});

test("a check with 0x8100 behind the fingerprint verifies, and is encoded the same way", () => {
  const message = parseStun(check);
  assert.ok(message);
  assert.equal(message.username, vectors.check.username);
  assert.deepEqual(message.ice, { role: "controlling", tieBreaker: BigInt(`0x${vectors.check.tieBreaker}`) });
  assert.equal(message.priority, vectors.check.priority);
  assert.equal(message.candidateIds, vectors.check.candidateIds);
  assert.ok(verifyStunIntegrity(message, vectors.check.password));
  assert.ok(verifyStunFingerprint(message));
  assert.ok(!verifyStunIntegrity(message, `${vectors.check.password.slice(1)}Q`));
  const bytes = encodeStun(
    {
      class: "request",
      transactionId: tx,
      username: vectors.check.username,
      ice: { role: "controlling", tieBreaker: BigInt(`0x${vectors.check.tieBreaker}`) },
      priority: vectors.check.priority,
      candidateIds: vectors.check.candidateIds,
    },
    { password: vectors.check.password },
  );
  assert.equal(Buffer.from(bytes).toString("hex"), vectors.check.hex);
});

test("the sample request and response of RFC 5769 verify", () => {
  const request = parseStun(Buffer.from(vectors.rfc5769.request, "hex"));
  assert.ok(request);
  assert.equal(request.username, "evtj:h6vY");
  assert.equal(request.software, "STUN test client");
  assert.equal(request.priority, 0x6e0001ff);
  assert.deepEqual(request.ice, { role: "controlled", tieBreaker: 0x932ff9b151263b36n });
  const success = parseStun(Buffer.from(vectors.rfc5769.success, "hex"));
  assert.ok(success);
  assert.deepEqual(success.xorMappedAddress, { address: "192.0.2.1", port: 32853 });
  for (const message of [request, success]) {
    assert.ok(verifyStunIntegrity(message, vectors.rfc5769.password));
    assert.ok(verifyStunFingerprint(message));
  }
});

test("one changed bit before the integrity attribute is noticed", () => {
  for (let i = 0; i < 0x3c + 20; i++) {
    const bytes = Buffer.from(check);
    bytes[i]! ^= 1;
    const message = parseStun(bytes);
    // Bytes 2 and 3 hold the length, which the integrity does not cover by design.
    if (i === 2 || i === 3) continue;
    assert.ok(!message || !verifyStunIntegrity(message, vectors.check.password), `byte ${i}`);
  }
});

test("attributes behind the integrity cannot nominate", () => {
  const signed = encodeStun(
    { class: "request", transactionId: tx, username: "a:b", priority: 1 },
    { password: "secret", fingerprint: false },
  );
  const forged = Buffer.concat([signed, Buffer.from("00250000", "hex"), Buffer.from("7ffe0000", "hex")]);
  forged.writeUInt16BE(forged.length - 20, 2);
  const message = parseStun(forged);
  assert.ok(message);
  assert.ok(verifyStunIntegrity(message, "secret"));
  assert.equal(message.useCandidate, false);
  assert.deepEqual(message.unknownRequired, []);
});

test("unknown attributes that must be understood are listed, wrong sizes count as absent", () => {
  const header = "000100182112a442000102030405060708090a0b";
  const message = parseStun(Buffer.from(`${header}00240003000000000003000400000000802a0000c0570000`, "hex"));
  assert.ok(message);
  assert.deepEqual(message.unknownRequired, [3]);
  assert.equal(message.priority, undefined);
  assert.equal(message.ice, undefined);
});

test("a message cut or stretched anywhere is refused or ignored, never an exception", () => {
  for (let i = 0; i < check.length; i++) assert.equal(parseStun(check.subarray(0, i)), undefined);
  assert.ok(parseStun(Buffer.concat([check, Buffer.alloc(7)])));
  assert.equal(parseStun(Buffer.alloc(1501)), undefined);
  assert.ok(!isStun(Buffer.from("4001", "hex")));
});

test("every message survives a round trip", () => {
  const endpoint = fc
    .tuple(fc.oneof(fc.ipV4(), fc.ipV6()), fc.integer({ min: 0, max: 65535 }))
    .map(([address, port]) => ({ address: parseIp(address), port }));
  const fields: fc.Arbitrary<StunFields> = fc.record(
    {
      class: fc.constantFrom("request", "indication", "success", "error"),
      method: fc.integer({ min: 0, max: 0xfff }),
      transactionId: fc.constant(null).map(() => TransactionId.create()),
      software: fc.string(),
      username: fc.string(),
      mappedAddress: endpoint,
      xorMappedAddress: endpoint,
      error: fc.record({ code: fc.integer({ min: 300, max: 699 }), reason: fc.string() }, { noNullPrototype: true }),
      unknownAttributes: fc.array(fc.integer({ min: 0, max: 65535 }), { maxLength: 5 }),
      useCandidate: fc.boolean(),
      ice: fc.record(
        { role: fc.constantFrom("controlling", "controlled"), tieBreaker: fc.bigInt(0n, 2n ** 64n - 1n) },
        { noNullPrototype: true },
      ),
      priority: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
      candidateIds: fc.string(),
    },
    { requiredKeys: ["class", "method", "transactionId", "useCandidate"], noNullPrototype: true },
  );
  fc.assert(
    fc.property(fields, fc.boolean(), fc.boolean(), (value, fingerprint, signed) => {
      const message = parseStun(encodeStun(value, { fingerprint, ...(signed && { password: "pw" }) }));
      assert.ok(message);
      for (const name of Object.keys(value) as (keyof StunFields)[]) assert.deepEqual(message[name], value[name], name);
      assert.equal(message.hasFingerprint, fingerprint);
      assert.equal(verifyStunFingerprint(message), fingerprint);
      assert.equal(verifyStunIntegrity(message, "pw"), signed);
    }),
  );
});

test("random and mutated datagrams never throw", () => {
  const mutated = fc
    .tuple(fc.uint8Array({ maxLength: 60 }), fc.nat(check.length), fc.nat(check.length))
    .map(([noise, from, until]) => Buffer.concat([check.subarray(0, from), noise, check.subarray(until)]));
  fc.assert(
    fc.property(fc.oneof(mutated, fc.uint8Array({ maxLength: 200 })), (bytes) => {
      const message = parseStun(bytes);
      if (message) {
        verifyStunIntegrity(message, "pw");
        verifyStunFingerprint(message);
      }
    }),
    { interruptAfterTimeLimit: 2000, numRuns: 20_000 },
  );
});
