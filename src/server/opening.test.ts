import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { decideOpening, OPENING_MAX_BYTES } from "./opening.ts";

test("a TLS handshake record is told by its first byte", () => {
  assert.equal(decideOpening(Uint8Array.of(0x16)), "tls");
  assert.equal(decideOpening(Uint8Array.of(0x16, 3, 1, 2, 0)), "tls");
  assert.equal(decideOpening(Uint8Array.of(0x15)), "http1");
});

test("the HTTP/2 preface is decided only when its first line is complete", () => {
  const preface = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
  for (let length = 0; length < OPENING_MAX_BYTES; length++)
    assert.equal(decideOpening(preface.subarray(0, length)), "more", `${length} bytes`);
  for (let length = OPENING_MAX_BYTES; length <= preface.length; length++)
    assert.equal(decideOpening(preface.subarray(0, length)), "h2", `${length} bytes`);
});

test("methods that begin like the preface are HTTP/1.1 from the first byte that differs", () => {
  assert.equal(decideOpening(Buffer.from("P")), "more");
  assert.equal(decideOpening(Buffer.from("PO")), "http1");
  assert.equal(decideOpening(Buffer.from("PRO")), "http1");
  assert.equal(decideOpening(Buffer.from("GET /relay HTTP/1.1\r\n")), "http1");
});

test("a longer opening never changes a decision, and at most the limit stays undecided", () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 1, maxLength: 40 }), fc.nat(40), (bytes, cut) => {
      const early = decideOpening(bytes.subarray(0, cut));
      const late = decideOpening(bytes);
      if (early !== "more" && cut <= bytes.length) assert.equal(late, early);
      if (bytes.length >= OPENING_MAX_BYTES) assert.notEqual(late, "more");
    }),
  );
});
