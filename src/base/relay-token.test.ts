import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { createRelayToken, encodeRelayToken, RelayTokenError, relayTokenKey, verifyRelayToken } from "./relay-token.ts";

const vectors = JSON.parse(readFileSync(new URL("../../test/vectors/management.json", import.meta.url), "utf8"));
const SECRET = "perch-relay-secret";
const KEY = relayTokenKey(SECRET);
/** 2026-07-01, the year the verdicts of the document are given for. */
const NOW = 1_782_864_000;

test("the token of management.md section 8.4 comes out byte for byte", () => {
  const { secret, expiresAt, key, signatureBase64, binary } = vectors.relayToken;
  assert.equal(Buffer.from(relayTokenKey(secret)).toString("hex"), key);
  const token = createRelayToken(secret, expiresAt);
  assert.deepEqual(token, { payload: String(expiresAt), signatureBase64 });
  assert.equal(Buffer.from(encodeRelayToken(token)).toString("hex"), binary);
});

test("relay.md vectors 7, 8 and the token of vector 12 come out byte for byte", () => {
  assert.equal(Buffer.from(KEY).toString("hex"), "8f490901976a6ff189619f217086739958efe458c46b2c3728fd93ccd8fb86f8");
  const token = createRelayToken(SECRET, 1_893_456_000.9);
  assert.equal(token.signatureBase64, "PUcw16m/Z1kVO6A9xogchZVVgoACYWwsYMHc+gqPqaA=");
  assert.equal(
    Buffer.from(encodeRelayToken(token)).toString("hex"),
    "013d4730d7a9bf6759153ba03dc6881c859555828002616c2c60c1dcfa0a8fa9a031383933343536303030",
  );
});

/** relay.md vector 18, and around it. */
const VERDICTS: readonly (readonly [payload: string, verdict: string])[] = [
  ["1600000000", "expired"],
  ["0001893456000", "valid"],
  ["+1893456000", "valid"],
  ["18934560000000000", "valid"],
  ["189345600", "payload-too-short"],
  ["1893456000 ", "malformed-expiry"],
  [" 1893456000", "malformed-expiry"],
  ["1_893_456_000", "malformed-expiry"],
  ["0x1893456000", "malformed-expiry"],
  ["++1893456000", "malformed-expiry"],
  ["9223372036854775807", "valid"],
  ["9223372036854775808", "malformed-expiry"],
  ["-1893456000", "expired"],
  ["-9223372036854775809", "malformed-expiry"],
  [String(NOW), "valid"],
  [String(NOW - 1), "expired"],
];

for (const [payload, verdict] of VERDICTS) {
  test(`a correctly signed payload ${JSON.stringify(payload)} is ${verdict}`, () => {
    assert.equal(verifyRelayToken(KEY, signed(payload), NOW + 0.5).kind, verdict);
  });
}

test("the algorithm byte must be 1", () => {
  for (const algorithm of [0, 2, 255])
    assert.equal(verifyRelayToken(KEY, signed("1893456000", algorithm), NOW).kind, "unknown-algorithm");
});

test("lengths are judged before the algorithm, the algorithm before the signature, the signature before the expiry", () => {
  for (const length of [0, 3, 32]) assert.equal(verifyRelayToken(KEY, new Uint8Array(length), NOW).kind, "too-short");
  for (const length of [33, 42])
    assert.equal(verifyRelayToken(KEY, new Uint8Array(length), NOW).kind, "payload-too-short");
  assert.equal(verifyRelayToken(KEY, new Uint8Array(43), NOW).kind, "unknown-algorithm");
  const forged = signed("not-number");
  forged[1]! ^= 1;
  assert.equal(verifyRelayToken(KEY, forged, NOW).kind, "bad-signature");
  assert.equal(verifyRelayToken(relayTokenKey("other"), signed("1600000000"), NOW).kind, "bad-signature");
});

test("a signature that is not base64 of 32 bytes cannot be encoded", () => {
  for (const signatureBase64 of ["", "AAAA", "*".repeat(44), "A".repeat(43)])
    assert.throws(() => encodeRelayToken({ payload: "1893456000", signatureBase64 }), RelayTokenError);
});

function signed(payload: string, algorithm = 1): Buffer {
  const bytes = Buffer.from(payload, "latin1");
  return Buffer.concat([Buffer.of(algorithm), createHmac("sha256", KEY).update(bytes).digest(), bytes]);
}
